# ruff: noqa: E501 - tables
"""A second battery: labels that could be misread, odd files and names, and which split a fault is of."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from breaks import (
    MASK,
    PICTURE,
    Case,
    assert_told,
    both,
    by_name,
    edit,
    edit_all,
    move,
    put,
    remove,
    rename_all,
    with_pixels,
    write,
)
from convlora.cli.app import app
from convlora.data import images
from convlora.data.check import check_dataset
from small import write_shapes


def rgba(value, alpha):
    """An RGBA mask whose grey is `value(ids)` and whose alpha is `alpha(ids)`."""

    def change(ids):
        grey = value(ids).astype(np.uint8)
        return np.stack([grey, grey, grey, alpha(ids).astype(np.uint8)], axis=-1)

    return change


def jpeg_named_png(name):
    def act(root):
        Image.open(root / name).save(root / "x.jpg", quality=60)
        (root / "x.jpg").replace(root / name)

    return act


def not_finite(root):
    grey = np.linspace(0, 1, 60 * 40, dtype=np.float32).reshape(60, 40)
    grey[0, :3] = (np.nan, np.inf, -np.inf)
    (root / PICTURE).unlink()
    Image.fromarray(grey).save((root / PICTURE).with_suffix(".tif"))


def hundredfold(ids):
    return ids * 255


LABELS = [
    Case("half transparent label", edit(MASK, rgba(lambda i: i, lambda i: 255 - 100 * i)), "alpha-mask",
         file=MASK, remedy="without an alpha", found="transparent pixels"),
    Case("label in the alpha channel", edit(MASK, rgba(lambda i: i * 0, lambda i: i * 255)), "alpha-mask",
         file=MASK, remedy="of its own", found="same value 0"),
    Case("one pixel of 1 among 0 and 255",
         both(edit_all(hundredfold), edit(MASK, lambda a: with_pixels(a, 1))), "mixed-encoding",
         file=MASK, remedy="change 1 to 0 or 255", found="value 1 (1 pixels)"),
    Case("the same with class names",
         both(edit_all(hundredfold), edit(MASK, lambda a: with_pixels(a, 1)), write("classes.txt", "no\nyes\n")),
         "mixed-encoding", "warning", MASK, "change 1 to 0 or 255"),
    Case("JPEG called PNG", both(edit(MASK, hundredfold), jpeg_named_png(MASK)), "jpeg-mask", file=MASK, remedy="Save masks as PNG",
         found="in truth a JPEG"),
    Case("image that is not finite", not_finite, "not-finite", "warning", "train_00.tif", "look at", "3 pixels"),
    Case("numbered names", write("classes.txt", "0 background\n1 cell\n"), "class-names", file="classes.txt",
         remedy="Remove the numbers"),
    Case("nc", write("data.yaml", "nc: 3\nnames: [no, yes]\n"), "class-names", file="data.yaml",
         remedy="Correct one", found="nc: 3, but 2 names"),
    Case("folder called data.yaml", write("data.yaml/x.txt", ""), "class-names", file="data.yaml", remedy="text file"),
]  # fmt: skip

NAMES = [
    Case("image00 and mask00",
         both(rename_all("train/images", lambda p: f"image{p.stem[-2:]}.png"),
              rename_all("train/masks", lambda p: f"mask{p.stem[-2:]}.png")),
         "name-pattern", file="mask00.png", remedy="Rename it to image00.png"),
    Case("Cityscapes",
         both(rename_all("train/images", lambda p: f"{p.stem}_leftImg8bit.png"),
              rename_all("train/masks", lambda p: f"{p.stem}_gtFine_labelIds.png")),
         "name-pattern", file="train_00_gtFine_labelIds.png", remedy="Rename it to train_00_leftImg8bit.png"),
    Case("decomposed letter",
         both(move(PICTURE, "train/images/zell\u00e4.png"), move(MASK, "train/masks/zella\u0308.png")),
         "name-pattern", file="zell", remedy="Rename it", found="Unicode form"),
    Case("blank at the end", move(MASK, "train/masks/train_00 .png"), "name-pattern", file="train_00 .png",
         remedy="Rename it to train_00.png", found="blanks"),
    Case("a split without masks", remove("train/masks"), "layout", file="train", remedy="{train,val,test}"),
    Case("its other faults", both(remove("train/masks"), write("val/masks/val_00.png", "x")), "unreadable-mask",
         file="val/masks/val_00.png", remedy="Replace"),
    Case("imgs", move("train/images", "train/imgs"), "layout", file="train", remedy="Rename imgs to images"),
    Case("SegmentationClass", move("train/masks", "train/SegmentationClass"), "layout", file="train",
         remedy="Rename SegmentationClass to masks"),
]  # fmt: skip

BROKEN = [*LABELS, *NAMES]
GOOD = [
    Case("transparent background", edit(MASK, rgba(lambda i: i, lambda i: i * 255))),
    Case("alpha everywhere the same", edit(MASK, rgba(lambda i: i, lambda i: 0 * i + 40))),
    Case(
        "an image that is ignored among 0 and 1",
        both(write("classes.txt", "no\nyes\n"), edit(MASK, lambda a: with_pixels(a, *[255] * 20))),
    ),
]


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("labels") / "data", 2, {"train": 8, "val": 4})


@pytest.fixture
def data(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


@pytest.mark.parametrize("case", BROKEN, ids=by_name)
def test_every_break_is_told(data, case):
    case.break_it(data)
    report = check_dataset(data)
    assert_told(case, json.loads(report.to_json())["problems"])
    assert f"[{case.code}]" in report.to_text()


@pytest.mark.parametrize("case", GOOD, ids=by_name)
def test_what_is_fine_is_not_complained_of(data, case):
    case.break_it(data)
    assert check_dataset(data).problems == []


def test_a_mask_of_255_alone_is_ignored_not_mixed(data):
    edit(MASK, lambda ids: np.full_like(ids, 255))(data)
    assert [(p.code, p.severity) for p in check_dataset(data).problems] == [("all-ignored", "warning")]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems demand Unicode")
def test_names_that_are_no_text(data, tmp_path):
    for kind in ("images", "masks"):
        folder = os.fsencode(data / "train" / kind)
        os.rename(folder + b"/train_00.png", folder + b"/zelle\xff.png")  # noqa: PTH104
    report = check_dataset(data)
    assert report.problems == []
    assert report.dataset.fingerprint
    (data / "val" / "masks" / "val_00.png").rename(
        os.fsdecode(os.fsencode(data / "val" / "masks") + b"/\xfe.png")
    )
    result = CliRunner().invoke(app, ["check", str(data)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    result = CliRunner().invoke(app, ["check", str(data), "--json"])
    assert len(json.loads(result.stdout)["problems"]) == 2


def test_huge_images_are_named(data, monkeypatch):
    monkeypatch.setattr("convlora.data.check_files.MANY_PIXELS", 2000)
    assert images.MANY_PIXELS > 50_000_000
    told = [p for p in check_dataset(data).problems if p.code == "huge-image"]
    assert len(told) == 12
    assert "tiles" in told[0].fix


def test_a_bomb_is_an_error(data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    problem = check_dataset(data).errors[0]
    assert problem.found.startswith("has more pixels than can be read safely")
    assert problem.fix == "Cut it into tiles."


def test_damaged_tiff_has_a_clean_message(data):
    both(remove(PICTURE), write("train/images/train_00.tif", b"II*\0" + b"\xff" * 40))(data)
    (problem,) = check_dataset(data).errors
    assert problem.code == "unreadable-image"
    assert "0x" not in problem.found
    assert "BytesIO" not in problem.found


def test_counts_of_one_and_many(data):
    put(MASK, np.full((60, 40), 7, np.uint8))(data)
    assert check_dataset(data).to_text().endswith("\n1 error, 0 warnings")
    assert check_dataset(data / "none").to_text().endswith("1 error, 0 warnings")


@pytest.mark.parametrize("names", ["", "a,,b", "a, a"])
def test_odd_names_on_the_command_line(data, names):
    result = CliRunner().invoke(app, ["check", str(data), "--classes", names])
    assert result.exit_code == 1
    assert "--classes names" in result.stdout


def test_faults_of_other_splits_do_not_stop_an_evaluation(data):
    write(MASK, "no picture")(data)
    assert not check_dataset(data).ok
    report = check_dataset(data, splits=("val",), scored="val")
    assert report.ok
    assert [(p.code, p.severity) for p in report.problems] == [("unreadable-mask", "warning")]
    assert report.dataset.splits["val"]
    write("val/masks/val_00.png", "no picture")(data)
    assert [p.file for p in check_dataset(data, splits=("val",), scored="val").errors] == [
        str(data / "val/masks/val_00.png")
    ]
