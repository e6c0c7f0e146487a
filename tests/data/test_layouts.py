"""Which layout a folder has: the other usual names, and no guess where two fit."""

import shutil

import pytest

from convlora.data.check import check_dataset
from convlora.errors import DataError
from small import write_roboflow, write_shapes, write_table, write_yolo


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 3, "val": 2, "test": 2})


def inside_out(data, root):
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            shutil.copytree(data / split / kind, root / kind / split)
    return root


def test_splits_inside(data, tmp_path):
    root = inside_out(data, tmp_path / "inside")
    report = check_dataset(root, splits=("train", "val", "test"))
    assert report.problems == []
    assert report.dataset.fingerprint == check_dataset(data).dataset.fingerprint
    assert report.statistics["layout"] == "images and masks in folders, splits inside"
    assert check_dataset(data).statistics["layout"] == "images and masks in the folders of the splits"


@pytest.mark.parametrize(("gone", "other"), [("images", "masks"), ("masks", "images")])
def test_splits_inside_of_one_only(data, tmp_path, gone, other):
    root = inside_out(data, tmp_path / "inside")
    shutil.rmtree(root / gone / "val")
    with pytest.raises(DataError, match=rf"{other} has a folder 'val', but .*{gone} has none"):
        check_dataset(root).raise_if_errors()


def test_splits_inside_and_loose_images(data, tmp_path):
    root = inside_out(data, tmp_path / "inside")
    shutil.copy(data / "train" / "images" / "train_00.png", root / "images")
    with pytest.raises(
        DataError, match=r"folders of splits, but also 1 images of its own, such as train_00.png"
    ):
        check_dataset(root).raise_if_errors()


@pytest.mark.parametrize("name", ["mask", "labels", "annotations", "gt", "ground_truth"])
@pytest.mark.parametrize("inside", [False, True])
def test_other_names_of_the_masks(data, tmp_path, name, inside):
    root = inside_out(data, tmp_path / "inside") if inside else data
    for path in list(root.rglob("masks")):
        path.rename(path.with_name(name))
    report = check_dataset(root)
    assert report.problems == []
    assert len(report.dataset.splits["train"]) == 3


def test_two_names_of_the_masks(data):
    (data / "train" / "masks").rename(data / "train" / "gt")
    shutil.copytree(data / "train" / "gt", data / "train" / "labels")
    with pytest.raises(
        DataError, match=r"train holds labels and gt, and any of them could be the masks. Name the"
    ):
        check_dataset(data).raise_if_errors()
    shutil.copytree(data / "train" / "gt", data / "train" / "masks")  # the documented name wins
    assert check_dataset(data).ok


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_table, r"a table \(data.csv\)"),
        (write_yolo, r"YOLO polygons \(data.yaml\)"),
        (write_roboflow, r"COCO json \(train/_annotations.coco.json\)"),
    ],
)
def test_two_layouts_in_one_folder(data, write, name):
    write(data)
    with pytest.raises(
        DataError, match=rf"could be read as {name} or as folders of images and masks. Give the file"
    ):
        check_dataset(data).raise_if_errors()


def test_a_yaml_of_names_beside_masks_is_no_yolo(data):
    (data / "data.yaml").write_text("train: train/images\nval: val/images\nnames: [ground, disc]\n")
    report = check_dataset(data)
    assert report.dataset.classes == ("ground", "disc")
    assert "folders of the splits" in report.statistics["layout"]


@pytest.mark.parametrize("name", ["pairs.csv", "instances.json"])
def test_a_file_of_another_name_is_pointed_to(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"If {name} tells the data, give .*{name} as DATA"):
        check_dataset(tmp_path).raise_if_errors()


def test_a_file_of_another_kind(data):
    (data / "list.xlsx").write_text("")
    with pytest.raises(
        DataError, match=r"list.xlsx is a file, but none that data is read from: .csv \(a table\)"
    ):
        check_dataset(data / "list.xlsx").raise_if_errors()
