"""YOLO polygons: layouts, paths in data.yaml, and every mistake by file and line."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from convlora.errors import DataError
from small import write_image, write_yolo


@pytest.fixture
def data(tmp_path):
    return write_yolo(tmp_path / "data")


def first_ids(found, split="train"):
    return read_label(found.splits[split][0].mask, found.encoding)


def expected():
    ids = np.zeros((20, 30), np.uint8)
    ids[2:10, 2:10] = 1
    ids[10:14, 20:24] = 2
    return ids


def label(data):
    return data / "train" / "labels" / "train0.txt"


def test_splits_outside(data):
    report = check_dataset(data, splits=("train", "val", "test"))
    assert report.problems == []
    assert report.dataset.classes == ("background", "cat", "dog")
    assert report.statistics["layout"] == "YOLO polygons, 2 classes"
    assert {split: len(pairs) for split, pairs in report.dataset.splits.items()} == dict.fromkeys(
        ("train", "val", "test"), 3
    )
    np.testing.assert_array_equal(first_ids(report.dataset), expected())
    assert check_dataset(data / "data.yaml").dataset.fingerprint == report.dataset.fingerprint


def turn_inside_out(data, root):
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            shutil.copytree(data / split / kind, root / kind / split)
    shutil.copy(data / "data.yaml", root / "data.yaml")
    return root


def test_splits_inside(data, tmp_path):
    root = turn_inside_out(data, tmp_path / "inside")
    np.testing.assert_array_equal(first_ids(check_dataset(root).dataset), expected())


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nval: images/val\n",
        "path: .\ntrain: images/train\nval: [images/val, images/test]\n",
        "path: /nowhere/that/exists\ntrain: ../images/train\nval: images/val\n",  # as Roboflow writes it
        "path: PATH\ntrain: images/train\nvalid: images/val\n",
        "train: train.txt\nval: images/val\n",
    ],
)
def test_paths_in_the_yaml(data, tmp_path, text):
    root = turn_inside_out(data, tmp_path / "inside")
    place = root.parent / "elsewhere" if "PATH" in text else root
    place.mkdir(exist_ok=True)
    (place / "my.yaml").write_text(text.replace("PATH", str(root)) + "nc: 2\nnames: {0: cat, 1: dog}\n")
    (root / "train.txt").write_text("".join(f"./images/train/train{i}.png\n" for i in range(2)))
    found = check_dataset(place / "my.yaml").dataset
    np.testing.assert_array_equal(first_ids(found), expected())
    assert "test" not in found.splits
    assert len(found.splits["train"]) == (2 if "train.txt" in text else 3)
    assert len(found.splits["val"]) == (6 if "images/test" in text else 3)


def test_without_splits(data, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "flat" / kind).mkdir(parents=True)
        for path in data.glob(f"*/{kind}/*"):
            shutil.copy(path, tmp_path / "flat" / kind)
    (tmp_path / "flat" / "data.yaml").write_text("names: [cat, dog]\n")
    found = check_dataset(tmp_path / "flat").dataset
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 7, "val": 1, "test": 1}
    assert found.by_seed


def test_the_label_is_of_the_image_as_shown(data):
    """A photograph that is stored turned by a quarter."""
    path = data / "train" / "images" / "train0.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    np.testing.assert_array_equal(first_ids(check_dataset(data).dataset), expected())


def test_a_missing_or_empty_file_is_an_empty_mask(data):
    label(data).unlink()
    label(data).with_name("train1.txt").write_text("\n\n")
    report = check_dataset(data)
    assert [(p.severity, p.code) for p in report.problems] == [("warning", "missing-labels")]
    assert "1 of 3 images have no label file, first train0.png" in report.to_text()
    for pair in report.dataset.splits["train"][:2]:
        assert read_label(pair.mask, report.dataset.encoding).shape == (20, 30)
        assert not read_label(pair.mask, report.dataset.encoding).any()


def test_no_label_file_at_all(data):
    shutil.rmtree(data / "train" / "labels")
    with pytest.raises(DataError, match=r"none of the 3 images has a label file.*folder 'labels'"):
        check_dataset(data).raise_if_errors()


POLYGON = "0 0.1 0.1 0.5 0.1 0.5 0.5"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.1 0.5 0.1 0.5 1.5", "the coordinate 1.5 is not between 0 and 1"),
        ("0 0.1 0.1 0.5 0.1 0.5 nan", "the coordinate nan is not between 0 and 1"),
        ("0 0.1 0.1 0.5 0.1 0.5", "5 coordinates, which is an odd number"),
        ("2 0.1 0.1 0.5 0.1 0.5 0.5", "the class is 2, but data.yaml names 0 to 1"),
        ("cat 0.1 0.1 0.5 0.1 0.5 0.5", "the class is 'cat', which is no whole number"),
        ("-1 0.1 0.1 0.5 0.1 0.5 0.5", "the class is '-1', which is no whole number"),
        ("0 0.1 0.1 0.5 0,1 0.5 0.5", "'0,1' is no number"),
        ("0 0.1 0.1", "1 points; a polygon has three or more"),
    ],
)
def test_bad_lines_are_named(data, line, message):
    label(data).write_text(f"{POLYGON}\n\n{line}\n")
    report = check_dataset(data)
    (problem,) = report.errors
    assert problem.file == f"{label(data)}, line 3"
    assert message in problem.found
    assert "A line is 'class x1 y1 x2 y2 x3 y3 ...'" in problem.rule


def test_every_bad_line_is_told(data):
    label(data).write_text("9 0.1 0.1 0.5 0.1 0.5 0.5\n" * 3)
    assert [p.file.rsplit(", ")[1] for p in check_dataset(data).errors] == ["line 1", "line 2", "line 3"]


def test_boxes_are_not_masks(data):
    label(data).write_text(f"{POLYGON}\n1 0.5 0.5 0.2 0.2\n1 0.4 0.5 0.2 0.2\n")
    (problem,) = check_dataset(data).errors
    assert problem.file.endswith("train0.txt, line 2")
    assert "2 of 3 lines hold class and four numbers: boxes are not masks" in problem.found


def test_rounded_coordinates_at_the_border(data):
    label(data).write_text("0 0 0 1.00001 0 1.00001 1.00001 -0.00001 1\n")
    assert (first_ids(check_dataset(data).dataset) == 1).all()


def test_labels_that_are_no_text(data):
    label(data).write_bytes(b"0 \xff\xfe")
    with pytest.raises(DataError, match=r"train0.txt: is not UTF-8 text"):
        check_dataset(data).raise_if_errors()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: train/images\n", "must hold 'names'"),
        ("names: []\n", "names no class"),
        ("names: [cat, background]\n", "names the class 'background', but id 0 'background' is added"),
        ("names: [cat, cat]\n", "names the class 'cat' more than once"),
        ("nc: 3\nnames: [cat, dog]\n", "has nc: 3, but 2 names"),
        ("train: pictures\nnames: [cat, dog]\n", "train is 'pictures', but .*pictures does not exist"),
        ("train: list.txt\nnames: [cat, dog]\n", "list.txt, line 2: the image .*lost.png does not exist"),
    ],
)
def test_bad_yaml(data, text, message):
    (data / "data.yaml").write_text(text)
    (data / "list.txt").write_text("train/images/train0.png\nlost.png\n")
    with pytest.raises(DataError, match=message):
        check_dataset(data).raise_if_errors()


def test_a_yaml_without_images(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(DataError, match="names no folder of images, and none is beside it"):
        check_dataset(tmp_path / "data.yaml").raise_if_errors()


def test_classes_txt_as_yolo_writes_it(data):
    """Without the background that is added here."""
    (data / "classes.txt").write_text("cat\ndog\n")
    assert check_dataset(data).dataset.classes == ("background", "cat", "dog")


def test_without_a_yaml(data):
    (data / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"Its labels/ holds text: for YOLO polygons, write data.yaml"):
        check_dataset(data).raise_if_errors()


def test_a_folder_images_further_up(data, tmp_path):
    """Only the last 'images' of the path stands for 'labels'."""
    root = shutil.copytree(data, tmp_path / "images" / "mine")
    np.testing.assert_array_equal(first_ids(check_dataset(root).dataset), expected())


def test_one_name_in_two_folders(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "images" / "train" / name / "1.png", seed=ord(name))
        (tmp_path / "labels" / "train" / name).mkdir(parents=True)
        (tmp_path / "labels" / "train" / name / "1.txt").write_text(POLYGON)
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    found = check_dataset(tmp_path, splits=("train",)).dataset
    assert [pair.stem for pair in found.splits["train"]] == ["a__1", "b__1"]


def test_labels_go_to_other_processes_and_hash(data):
    found = check_dataset(data).dataset
    again = pickle.loads(pickle.dumps(found.splits["train"][0].mask))
    np.testing.assert_array_equal(again.read(), expected())
    label(data).write_text(POLYGON)
    assert check_dataset(data).dataset.fingerprint != found.fingerprint


def test_a_path_that_is_not_there(tmp_path):
    root = write_yolo(tmp_path / "data")
    (root / "data.yaml").write_text("path: ../elsewhere\nnames: [cat, dog]\n")
    report = check_dataset(root)
    assert [(p.code, p.severity) for p in report.problems] == [("yolo-path", "warning")]
    assert "the folders beside data.yaml are taken" in report.problems[0].fix
    assert len(report.dataset.splits["train"]) == 3


def test_pictures_that_are_not_read(tmp_path):
    root = write_yolo(tmp_path / "data")
    (root / "train" / "images" / "more.gif").write_bytes(b"GIF89a")
    (problem,) = check_dataset(root).errors
    assert (problem.code, problem.file) == ("unread-format", str(root / "train" / "images" / "more.gif"))


def test_a_key_twice(tmp_path):
    root = write_yolo(tmp_path / "data")
    (root / "data.yaml").write_text("names: [cat, dog]\nnames: [dog, cat]\n")
    (problem,) = check_dataset(root).errors
    assert "the key 'names' is there twice" in str(problem)
    assert "data.yaml" in problem.file
