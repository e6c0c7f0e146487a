"""The check before one split is scored: faults of other splits are told, but are no obstacle."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from breaks import MASK, PICTURE, cut, edit, edit_all, remove, rename_all, same_picture, with_pixels, write
from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from small import write_roboflow, write_shapes, write_table, write_yolo

FAULTS = {
    "unreadable-image": cut(PICTURE, 0.5),
    "unreadable-mask": write(MASK, b""),
    "missing-mask": remove(MASK),
    "missing-image": remove(PICTURE),
    "size-mismatch": edit(MASK, lambda ids: ids[:-3]),
    "unknown-ids": edit(MASK, lambda ids: with_pixels(ids, 7)),
    "mixed-encoding": edit(MASK, lambda ids: ids * 255),
    "name-pattern": rename_all("train/masks", lambda path: f"{path.stem}_gt.png"),
    "colour-mask": edit(MASK, lambda ids: np.dstack([ids * 9, ids, ids])),
    "layout": remove("train/masks"),
    "same-image": same_picture(".png"),
    "unread-format": write("train/images/a.gif", "x"),
}


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 8, "val": 4})


@pytest.mark.parametrize("code", FAULTS)
def test_faults_of_the_training_split(data, code):
    FAULTS[code](data)
    assert code in {p.code for p in check_dataset(data).errors}
    report = check_dataset(data, splits=("val",), scored="val")
    assert report.errors == []
    told = [p for p in report.warnings if p.code == code]
    assert told
    assert "Only the split 'val' is used here." in told[0].rule
    assert len(report.dataset.splits["val"]) == 4


@pytest.mark.parametrize("code", sorted(set(FAULTS) - {"same-image", "layout"}))
def test_faults_of_the_split_itself(data, code):
    FAULTS[code](data)
    assert code in {p.code for p in check_dataset(data, splits=("train",), scored="train").errors}


@pytest.mark.parametrize("spoil", ["ids", "jpeg", "encoding"])
def test_broken_masks_do_not_decide_how_others_are_read(data, spoil):
    """All masks are 0 and 255 but for one of the training split."""
    edit_all(lambda ids: ids * 255)(data)
    if spoil == "ids":
        edit(MASK, lambda ids: with_pixels(ids, 7))(data)
    elif spoil == "encoding":
        edit(MASK, lambda ids: ids // 255)(data)
    else:
        Image.open(data / MASK).save(data / MASK, format="JPEG", quality=30)
    report = check_dataset(data, splits=("val",), scored="val")
    found = report.dataset
    ids = read_label(found.splits["val"][0].mask, found.encoding)
    assert set(np.unique(ids)) == {0, 1}
    assert not any(p.code == "full-masks" for p in report.problems)


def test_table(tmp_path):
    root = write_table(tmp_path)
    rows = (root / "data.csv").read_text().replace("train0.png,", "lost.png,", 1)
    (root / "data.csv").write_text(rows)
    assert [p.code for p in check_dataset(root).errors] == ["missing-file"]
    report = check_dataset(root, splits=("val",), scored="val")
    assert report.errors == []
    assert [p.file for p in report.warnings] == [f"{root / 'data.csv'}, line 2"]
    assert [p.code for p in check_dataset(root, splits=("train",), scored="train").errors] == ["missing-file"]


def test_coco(tmp_path):
    root = write_roboflow(tmp_path)
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    file.write_text(json.dumps(content))
    assert [p.code for p in check_dataset(root).errors] == ["bad-polygon"]
    assert check_dataset(root, splits=("val",), scored="val").ok
    assert not check_dataset(root, splits=("train",), scored="train").ok


def test_yolo(tmp_path):
    root = write_yolo(tmp_path)
    (root / "train" / "labels" / "train0.txt").write_text("0 0.1 0.1 0.5\n")
    assert [p.code for p in check_dataset(root).errors] == ["bad-label"]
    assert check_dataset(root, splits=("val",), scored="val").ok
    assert not check_dataset(root, splits=("train",), scored="train").ok


def test_splits_by_seed(data, tmp_path):
    for kind in ("images", "masks"):
        shutil.copytree(data / "train" / kind, tmp_path / "flat" / kind)
    first = check_dataset(tmp_path / "flat", splits=("val",)).dataset.splits["train"][0]
    first.image.write_bytes(b"")
    assert check_dataset(tmp_path / "flat", splits=("val",), scored="val").ok
    assert not check_dataset(tmp_path / "flat", splits=("train",), scored="train").ok


def test_a_name_that_is_no_utf8_in_another_split(data):
    """The fingerprint is of all splits."""
    for kind in ("images", "masks"):
        folder = os.fsencode(data / "train" / kind)
        (data / "train" / kind / "train_00.png").rename(os.fsdecode(folder + b"/\xe9.png"))
    report = check_dataset(data, splits=("val",), scored="val")
    assert [p.code for p in report.warnings] == ["bad-name", "bad-name"]
    assert len(report.dataset.fingerprint) == 16


def test_evaluate_scores_what_is_sound(data, binary_adapter, command):
    (data / PICTURE).write_bytes(b"")
    code, _, err = command("evaluate", binary_adapter, data, "--split", "val")
    assert code == 0, err
    assert f"warning: [unreadable-image] {data / PICTURE}" in err
    (data / "val/images/val_00.png").write_bytes(b"")
    code, _, err = command("evaluate", binary_adapter, data, "--split", "val")
    assert code == 2
    assert "The data has 1 error:" in err
