"""COCO json: layouts, categories, shapes, and every mistake by the annotation's id."""

import json
import pickle

import numpy as np
import pytest

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from convlora.data.masks import MaskEncoding
from convlora.errors import DataError
from small import coco, square, write_image, write_roboflow


@pytest.fixture
def data(tmp_path):
    return write_roboflow(tmp_path / "data")


def json_of(root, split="train"):
    return root / split / "_annotations.coco.json"


def edit(root, change, split="train"):
    content = json.loads(json_of(root, split).read_text())
    change(content)
    json_of(root, split).write_text(json.dumps(content))


def ids_of(dataset, split="train", place=0):
    return read_label(dataset.splits[split][place].mask, dataset.encoding)


def first_ids(root):
    return ids_of(check_dataset(root).dataset)


def expected():
    ids = np.zeros((20, 30), np.uint8)
    ids[2:10, 2:10] = 1
    ids[10:14, 20:24] = 2
    return ids


def test_roboflow_layout(data):
    report = check_dataset(data, splits=("train", "val", "test"))
    assert report.problems == []
    found = report.dataset
    assert found.classes == ("background", "cat", "dog")
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 3, "val": 3, "test": 3}
    assert report.statistics["layout"] == "COCO json, 2 categories"
    np.testing.assert_array_equal(ids_of(found), expected())
    assert found.shares["cat"] == pytest.approx(64 / 600)


@pytest.mark.parametrize("folder", ["train", "train2017", "images/train", "images/train2017", "images"])
def test_layout_of_cocos_own_files(data, tmp_path, folder):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        year = "2017" if "2017" in folder else ""
        json_of(data, split).rename(root / "annotations" / f"instances_{split}{year}.json")
        place = root / folder.replace("train", split)
        place.mkdir(parents=True, exist_ok=True)
        for path in (data / split).iterdir():
            path.rename(place / path.name)
    (root / "annotations" / "captions_train.json").write_text("{}")
    report = check_dataset(root)
    assert report.problems == []
    np.testing.assert_array_equal(ids_of(report.dataset), expected())


@pytest.mark.parametrize("beside", [".", "images"])
def test_one_json_without_splits(tmp_path, beside):
    images = {f"{i}.png": [{"category_id": 1, "segmentation": [square(3, 3, 5)]}] for i in range(5)}
    for name in images:
        write_image(tmp_path / beside / name)
    (tmp_path / "all.json").write_text(json.dumps(coco(images, ("cat",))))
    found = check_dataset(tmp_path / "all.json").dataset
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert found.classes == ("background", "cat")
    assert ids_of(found).sum() == 25


def test_categories_are_sorted_by_their_ids(data):
    def change(content):
        content["categories"] = [
            {"id": 70, "name": "dog"},
            {"id": 9, "name": "ant"},
            {"id": 30, "name": "cat"},
        ]
        for annotation in content["annotations"]:
            annotation["category_id"] = {1: 30, 2: 70}[annotation["category_id"]]

    for split in ("train", "val", "test"):
        edit(data, change, split)
    found = check_dataset(data).dataset
    assert found.classes == ("background", "ant", "cat", "dog")
    np.testing.assert_array_equal(ids_of(found), np.array([0, 2, 3], np.uint8)[expected()])


def add_placeholder(content):
    for category in content["categories"]:
        category["supercategory"] = "animals"
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})


def test_roboflows_placeholder_is_left_out_and_said(data):
    for split in ("train", "val", "test"):
        edit(data, add_placeholder, split)
    report = check_dataset(data)
    assert report.dataset.classes == ("background", "cat", "dog")
    assert report.statistics["layout"] == "COCO json, 2 categories (without the placeholder 'animals')"
    np.testing.assert_array_equal(ids_of(report.dataset), expected())


def test_a_category_0_with_annotations_is_a_class(data):
    for split in ("train", "val", "test"):
        edit(data, add_placeholder, split)
    edit(data, lambda c: c["annotations"][0].update(category_id=0))
    assert check_dataset(data).dataset.classes == ("background", "animals", "cat", "dog")


def test_runs_and_crowds(data):
    counts = [0, 20, 580]  # the first column; below, the third, as pycocotools writes it

    def change(content):
        content["annotations"][0].update(segmentation={"size": [20, 30], "counts": counts})
        content["annotations"][1].update(segmentation={"size": [20, 30], "counts": "X1d0l`0"}, iscrowd=1)

    edit(data, change)
    ids = first_ids(data)
    assert (ids[:, 0] == 1).all()
    assert (ids == 255).sum() == 20
    assert (ids[:, 2] == 255).all()


def test_several_polygons_are_one_object(data):
    edit(data, lambda c: c["annotations"][0].update(segmentation=[square(0, 0, 3), square(10, 10, 3)]))
    assert (first_ids(data) == 1).sum() == 18


def test_images_without_annotations_are_empty(data):
    def change(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 10]

    edit(data, change)
    assert not first_ids(data).any()
    assert check_dataset(data).ok


def test_ignored_pixels_alone_are_not_taken_for_foreground(tmp_path):
    """0 and 255 in all masks would mean background and foreground, were these mask files."""
    for split in ("train", "val"):
        write_image(tmp_path / split / f"{split}.png")
        crowd = {"category_id": 1, "iscrowd": 1, "segmentation": [square(2, 2, 4)]}
        content = coco({f"{split}.png": [crowd]}, ("cat",))
        json_of(tmp_path, split).write_text(json.dumps(content))
    report = check_dataset(tmp_path, splits=("val",))
    assert report.dataset.encoding is MaskEncoding.IDS
    assert set(np.unique(ids_of(report.dataset, "val"))) == {0, 255}


def test_fingerprint(data):
    before = check_dataset(data).dataset.fingerprint
    edit(data, lambda c: c.update(info={"exported": "today"}))
    moved = data.rename(data.with_name("elsewhere"))
    assert check_dataset(moved).dataset.fingerprint == before
    edit(moved, lambda c: c["annotations"][0].update(segmentation=[square(3, 2, 8)]))
    assert check_dataset(moved).dataset.fingerprint != before


def test_labels_go_to_other_processes(data):
    label = check_dataset(data).dataset.splits["train"][0].mask
    again = pickle.loads(pickle.dumps(label))
    assert again == label
    np.testing.assert_array_equal(again.read(), expected())


def annotation(**values):
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (annotation(image_id=99), "unknown-image", "the image_id 99 is of no image"),
        (annotation(image_id=[1]), "unknown-image", r"the image_id \[1\] is of no image"),
        (annotation(category_id=7), "unknown-category", "category_id 7 is of no category.*1 cat, 2 dog"),
        (annotation(segmentation=[[1, 1, 5, 5]]), "bad-polygon", "a polygon has 2 points"),
        (annotation(segmentation=[[1, 1, 5, 5, 9, 1, 4]]), "bad-polygon", "7 numbers, which is odd"),
        (annotation(segmentation=[[1, 1, 5, 5, 9, "a"]]), "bad-polygon", "something else than numbers"),
        (annotation(segmentation="abc"), "bad-polygon", "neither polygons nor RLE"),
        (
            annotation(segmentation={"size": [20, 30], "counts": [5]}),
            "bad-rle",
            "counts add up to 5.* 600 pixels",
        ),
        (
            annotation(segmentation={"size": [30, 20], "counts": [600]}),
            "bad-rle",
            r"size \[30, 20\], the image is",
        ),
        (annotation(segmentation={"size": [20, 30], "counts": "\x7f"}), "bad-rle", "cannot be read"),
        (annotation(segmentation={"size": [20, 30], "counts": [700, -100]}), "bad-rle", "are no lengths"),
    ],
)
def test_bad_annotations_are_named_by_id(data, change, code, message):
    edit(data, change)
    with pytest.raises(
        DataError, match=rf"(?s)\[{code}\] .*_annotations.coco.json, annotation 100: .*{message}"
    ):
        check_dataset(data).raise_if_errors()


def test_boxes_are_not_masks(data):
    edit(data, lambda c: [a.update(segmentation=[]) for a in c["annotations"]])
    report = check_dataset(data)
    (problem,) = [p for p in report.errors if p.code == "boxes"]
    assert "6 annotations have no segmentation, first annotation 100; boxes are not masks" in problem.found


def test_outside_of_the_image(data):
    edit(data, annotation(segmentation=[square(40, 2, 5)]))
    report = check_dataset(data)
    assert report.ok
    assert "wholly outside of the image: annotation 100" in report.to_text()
    edit(data, annotation(segmentation=[square(-3, 2, 5)]))  # what is partly outside is cut off
    report = check_dataset(data)
    assert report.problems == []
    assert (ids_of(report.dataset) == 1).sum() == 10


def test_images_and_files(data):
    (data / "train" / "train0.png").unlink()
    edit(data, lambda c: c["images"][1].update(height=25))
    edit(data, lambda c: c["images"].pop(), "val")
    edit(data, lambda c: c["annotations"].clear(), "val")
    report = check_dataset(data)
    assert {(p.severity, p.code) for p in report.problems} == {
        ("error", "missing-image"),
        ("error", "size-mismatch"),
        ("warning", "unlisted-images"),
    }
    text = report.to_text()
    assert "image train0.png: the file does not exist; looked in" in text
    assert "image train1.png: 25 x 30, but its image is 20 x 30" in text
    assert "1 images are in no annotation file, first val2.png" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["categories"].pop(), "different categories: 2 'dog' only in _annotations.coco.json"),
        (lambda c: c["categories"][0].update(name="background"), "different categories"),
        (lambda c: c["categories"][0].update(id=2), "two categories have the id 2"),
        (lambda c: c["categories"][0].pop("name"), "has no whole 'id' or no 'name'"),
        (lambda c: c["images"][0].pop("width"), "has no 'width'; each has id, file_name, height, width"),
        (lambda c: c["images"][0].update(width="x"), "is 20 x 'x'; sizes are pixels"),
        (lambda c: c["images"][0].update(id=11), "two images have the id 11"),
        (lambda c: c.pop("annotations"), "has no list 'annotations'; it is not a COCO instances file"),
    ],
)
def test_bad_files(data, change, message):
    edit(data, change)
    with pytest.raises(DataError, match=message):
        check_dataset(data).raise_if_errors()


def test_a_category_called_background(data):
    for split in ("train", "val", "test"):
        edit(data, lambda c: c["categories"][0].update(name="Background"), split)
    with pytest.raises(DataError, match="names the class 'Background', but id 0 'background' is added"):
        check_dataset(data).raise_if_errors()


def test_no_json(data):
    json_of(data).write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        check_dataset(data).raise_if_errors()


def test_names_that_say_no_split(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mine.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"holds mine.json; no name says a split.*instances_\{train,val,test\}"
    ):
        check_dataset(tmp_path).raise_if_errors()


def test_two_files_of_one_split(data):
    (data / "training").mkdir()
    json_of(data, "training").write_text("{}")
    with pytest.raises(DataError, match="are both of the split 'train'"):
        check_dataset(data).raise_if_errors()


def test_classes_of_another_name(data):
    assert check_dataset(data, ["background", "cat", "dog"]).ok
    with pytest.raises(
        DataError, match=r"names the classes background, cat, dog, but the classes asked for are"
    ):
        check_dataset(data, ["background", "dog", "cat"]).raise_if_errors()
    (data / "classes.txt").write_text("cat\nhorse\n")
    with pytest.raises(DataError, match=r"classes.txt says cat, horse. Both must be the same"):
        check_dataset(data).raise_if_errors()


def test_ids_of_annotations_that_are_there_twice(tmp_path):
    root = write_roboflow(tmp_path / "data")
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    file.write_text(json.dumps(content))
    (problem,) = check_dataset(root).problems
    assert (problem.code, problem.severity, problem.file) == ("repeated-id", "warning", str(file))
    assert "1 ids of annotations are there more than once, first 100" in problem.found


def test_backslashes_in_names(data):
    edit(data, lambda c: c["images"][0].update(file_name="images\\train0.png"))
    errors = check_dataset(data).errors
    assert [p.code for p in errors] == ["missing-image"]
    assert errors[0].fix.endswith("or remove it from the json. Write / in place of \\.")
    (data / "train" / "train1.png").unlink()
    assert not check_dataset(data).errors[1].fix.endswith("\\.")


def test_coordinates_that_are_shares(data):
    def to_shares(content):
        for a in content["annotations"]:
            a["segmentation"] = [[number / 30 for number in polygon] for polygon in a["segmentation"]]

    edit(data, to_shares)
    errors = check_dataset(data).errors
    assert [p.code for p in errors] == ["shares"]
    assert errors[0].file.endswith("train/_annotations.coco.json")
    assert "are from 0 to 1" in errors[0].found
    assert errors[0].fix.startswith("Multiply each x by the image's width")


def test_one_small_polygon_is_no_share(data):
    edit(data, lambda c: c["annotations"][0].update(segmentation=[square(0, 0, 1)]))
    assert check_dataset(data).ok
