# ruff: noqa: E501 - tables
"""Broken COCO json, YOLO labels and tables: each ends in a named problem, none in a traceback."""

import json

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from small import write_roboflow, write_table, write_yolo


def of_annotation(**values):
    return lambda content: content["annotations"][0].update(values)


def of_image(**values):
    return lambda content: content["images"][0].update(values)


COCO = {
    "endless number": (of_annotation(segmentation=[[10**400, 2, 3, 4, 5, 6]]), "bad-polygon", "annotation 100", "numbers"),
    "far away": (of_annotation(segmentation=[[1e308, 2, 3, 4, 5, 6]]), "bad-polygon", "annotation 100", "numbers"),
    "iscrowd": (of_annotation(iscrowd="1"), "bad-annotation", "annotation 100", "iscrowd is '1'"),
    "true as category": (of_annotation(category_id=True), "unknown-category", "annotation 100", "True"),
    "no area": (of_annotation(segmentation=[[1, 1, 5, 5, 3, 3]]), "no-area", "_annotations.coco.json", "annotation 100"),
    "list as id": (of_image(id=[1]), "layout", "_annotations.coco.json", "no valid 'id'"),
    "list as name": (of_image(file_name=["a"]), "layout", "_annotations.coco.json", "no valid 'id' or 'file_name'"),
    "true as height": (of_image(height=True), "layout", "_annotations.coco.json", "sizes are pixels"),
    "large": (of_image(height=10**9, width=10**9), "layout", "_annotations.coco.json", "more than can be read"),
    "long name": (of_image(file_name="a" * 300), "missing-image", "_annotations.coco.json", "does not exist"),
    "half a character": (of_image(file_name="\ud800.png"), "missing-image", "_annotations.coco.json", "does not exist"),
    "null category": (lambda content: content["categories"][0].update(name=None), "layout", "_annotations.coco.json", "no 'name'"),
}  # fmt: skip


@pytest.mark.parametrize("case", COCO)
def test_coco(tmp_path, case):
    spoil, code, file, found = COCO[case]
    path = write_roboflow(tmp_path) / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    assert_named(check_dataset(tmp_path), code, file, found)


def assert_named(report, code, file, found):
    told = [p for p in report.problems if p.code == code]
    assert told, report.problems
    assert any(file in p.file and found in p.found + p.fix for p in told), told
    report.to_json().encode()
    report.to_text().encode()


def test_json_without_end(tmp_path):
    (write_roboflow(tmp_path) / "train" / "_annotations.coco.json").write_text("[" * 100_000)
    assert_named(check_dataset(tmp_path), "layout", "_annotations.coco.json", "is not valid JSON")


LABELS = {
    "9" * 5000 + " .1 .1 .5 .1 .5 .5": ("bad-label", "train0.txt, line 1", "data.yaml names 0 to 1"),
    "0 .1 .1 .2 .2 .3 .3": ("no-area", "train0.txt", "line 1"),
}


@pytest.mark.parametrize("text", LABELS, ids=["endless class", "no area"])
def test_yolo(tmp_path, text):
    (write_yolo(tmp_path) / "train/labels/train0.txt").write_text(text)
    assert_named(check_dataset(tmp_path), *LABELS[text])


def test_yolo_images_that_cannot_be_read_are_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    root = write_yolo(tmp_path)
    Image.fromarray(np.zeros((50, 50), bool)).save(root / "train/images/train0.png")
    (root / "train/images/train1.png").write_bytes(b"")
    errors = check_dataset(root).errors
    assert [p.code for p in errors] == ["unreadable-image"] * 2
    assert "more pixels" in errors[0].found


def test_yolo_labels_without_image(tmp_path):
    root = write_yolo(tmp_path)
    (root / "train/labels/lost.txt").write_text("0 .1 .1 .5 .1 .5 .5")
    (root / "train/labels/classes.txt").write_text("cat\ndog\n")
    (root / "train/images/._train0.png").write_bytes(b"x")
    report = check_dataset(root)
    assert [p.code for p in report.problems] == ["unused-labels"]
    assert_named(report, "unused-labels", "lost.txt", "1 label file without an image")


def test_one_folder_for_two_splits(tmp_path):
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text("train: train/images\nval: train/images\nnames: [cat, dog]\n")
    errors = check_dataset(root).errors
    assert [p.code for p in errors] == ["same-image"] * 3
    assert errors[0].found == "the file is in train and in val"


def test_yaml_words_that_are_no_texts(tmp_path):
    (write_yolo(tmp_path) / "data.yaml").write_text("names: [yes, no]\n")
    assert_named(check_dataset(tmp_path), "layout", "data.yaml", "A name must be a text")


@pytest.mark.parametrize(
    ("name", "fix"), [("a" * 300, "Correct the name"), ("pictures\\train0.png", "Write / in place of \\.")]
)
def test_table(tmp_path, name, fix):
    file = write_table(tmp_path) / "data.csv"
    file.write_text(file.read_text().replace("pictures/train0.png", name))
    assert_named(check_dataset(tmp_path), "missing-file", "data.csv, line 2", fix)
