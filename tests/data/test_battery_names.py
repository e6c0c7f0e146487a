# ruff: noqa: E501 - tables
"""Names of files, folders and classes that are close to the right ones: the cause and the fix are told, nothing is guessed."""

import json
import os
import shutil

import numpy as np
import pytest

from breaks import (
    MASK,
    PICTURE,
    Case,
    assert_told,
    both,
    copy,
    edit,
    edit_all,
    move,
    remove,
    with_pixels,
    write,
)
from convlora.data.check import check_dataset
from convlora.data.hints import core, same_numbering
from small import write_shapes


def renamed(image, mask, splits=("train", "val")):
    """Names of all images and masks from their numbers; `{0}` is a number from 0 on."""

    def act(root):
        for split in splits:
            for kind, pattern in (("images", image), ("masks", mask)):
                for number, path in enumerate(sorted((root / split / kind).iterdir())):
                    path.rename(path.with_name(pattern.format(number)))

    return act


def folders(images, masks):
    return both(
        *(
            move(f"{s}/{old}", f"{s}/{new}")
            for s in ("train", "val")
            for old, new in (("images", images), ("masks", masks))
            if old != new
        )
    )


def pipe(name):
    return both(remove(name), lambda root: os.mkfifo(root / name))


FILES = [
    Case(f"{image}, {mask}", renamed(f"{image}.png", f"{mask}.png"), "name-pattern", file=f"{mask.format(1)}.png",
         remedy=f"Rename it to {image.format(1)}.png", found=found)
    for image, mask, found in (
        ("image{0:02}", "mask{0:02}", "close to image01.png"),
        ("a_{0:06}_leftImg8bit", "a_{0:06}_gtFine_labelIds", "close to a_000001_leftImg8bit.png"),
        ("x{0}_sat", "x{0}_mask", "close to x1_sat.png"),
        ("caf\u00e9{0}", "cafe\u0301{0}", "NFC against NFD"),
        ("x{0}", "x{0} ", "blank"),
        (" x{0}", "x{0}", "blank"),
        ("x{0}", "x{0:03}", "close to x1.png"),
        ("a b{0}", "a_b{0}", "close to a b1.png"),
        ("scan {0} early", "truth-{0}", "close to scan 1 early.png"),
    )
] + [
    Case("several masks", both(copy(MASK, "train/masks/train_00_gtFine_color.png"), move(MASK, "train/masks/train_00_gtFine_labelIds.png")),
         "name-pattern", file=PICTURE, remedy="Rename the one that holds class ids to train_00.png", found="2 masks have names close to it"),
    Case("pipe", pipe(PICTURE), "unreadable-image", file=PICTURE, remedy="Replace it", found="a pipe"),
    Case("pipe as mask", pipe(MASK), "unreadable-mask", file=MASK, remedy="Replace it", found="a pipe"),
]  # fmt: skip

FOLDERS = [
    *(Case(f"{images} and {masks}", folders(images, masks), "layout", file="train", remedy=f"{wrong} seems to be meant: rename it to {right}")
      for images, masks, wrong, right in (
          ("Images", "masks", "Images", "images"), ("imgs", "masks", "imgs", "images"), ("JPEGImages", "masks", "JPEGImages", "images"),
          ("images", "Masks", "Masks", "masks"), ("images", "SegmentationClass", "SegmentationClass", "masks"))),
    Case("VOC", lambda r: both(move("train/images", "JPEGImages"), move("train/masks", "SegmentationClass"), remove("train"), remove("val"))(r),
         "layout", remedy="JPEGImages seems to be meant: rename it to images. SegmentationClass seems to be meant: rename it to masks"),
    Case("a file called masks", both(remove("train/masks"), write("train/masks", "")), "layout", file="train", remedy="A data folder", found="a file 'masks'"),
    Case("a file called images", both(remove("train/images"), write("train/images", "")), "layout", file="train", remedy="A data folder", found="is a file"),
    *(Case(f"folder {name}", write(f"{name}/a", ""), "not-a-file", file=name, remedy="Rename or remove")
      for name in ("data.yaml", "data.yml", "data.csv", "palette.txt")),
]  # fmt: skip

CLASSES = [
    *(Case(f"numbers {text!r}", write("classes.txt", text), "class-names", file="classes.txt", remedy="Remove the numbers", found="line 1 is")
      for text in ("0 a\n1 b\n", "0: a\n1: b\n", "1. a\n2. b\n", "0,a\n1,b\n")),
    Case("one line", write("classes.txt", "sea, land\n"), "class-names", file="classes.txt", remedy="Write one name a line", found="one line"),
    Case("nc", write("data.yaml", "nc: 3\nnames: [a, b]\n"), "class-names", file="data.yaml", remedy="Correct one", found="nc: 3, but 2 names"),
]  # fmt: skip

VALUES = [
    Case("one pixel of 1", both(edit_all(lambda a: a * 255), edit(MASK, lambda a: with_pixels(a, 1))), "mixed-encoding", "warning", MASK,
         "If 255 is foreground, correct the pixels", "1 (1 pixel), 255 (249 pixels), while 5 masks"),
    Case("one mask of 255", edit(MASK, lambda a: a * 0 + 255), "mixed-encoding", file=MASK, remedy="here 1 for foreground in place of 255"),
    Case("one mask of 1", both(edit_all(lambda a: a * 255), edit(MASK, lambda a: a * 0 + 1)), "mixed-encoding", file=MASK,
         remedy="here 255 for foreground in place of 1"),
]  # fmt: skip

GOOD = [
    Case("names with numbers", write("classes.txt", "2 wheels\n4 wheels\n")),
    Case("one ignored mask of many", both(edit(MASK, lambda a: a * 0 + 255), edit("train/masks/train_01.png", lambda a: with_pixels(a, 255)))),
]  # fmt: skip


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("names") / "data", 2, {"train": 4, "val": 2})


@pytest.fixture
def data(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


@pytest.mark.parametrize("case", [*FILES, *FOLDERS, *CLASSES, *VALUES], ids=lambda case: case.name)
def test_every_break_is_told(data, case):
    case.break_it(data)
    report = check_dataset(data)
    assert_told(case, json.loads(report.to_json())["problems"])
    assert report.ok is (case.severity == "warning")


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_what_is_fine_is_not_refused(data, case):
    case.break_it(data)
    assert {p.code for p in check_dataset(data).problems} <= {"all-ignored"}


def test_names_that_are_not_close_are_not_guessed(data):
    renamed("x{0}.png", "y{0}.png", ("val",))(data)
    shutil.copy(data / "val/masks/y0.png", data / "val/masks/z.png")
    codes = [p.code for p in check_dataset(data).errors]
    assert sorted(codes) == ["empty-split", *["missing-image"] * 3, *["missing-mask"] * 2]
    assert core("image01") == core("Mask_1") != core("image10")
    assert core("caf\u00e9") == core("cafe\u0301")
    assert same_numbering(["a1b", "a10b"], ["1", "10"]) == {"1": "a1b", "10": "a10b"}
    assert same_numbering(["a1b", "a2b"], ["1", "3"]) == {}


def test_a_split_without_masks_hides_nothing(data):
    shutil.rmtree(data / "train/masks")
    (data / "train/images/train_01.png").write_bytes(b"")
    (data / "val/masks/val_00.png").unlink()
    found = {(p.code, p.file.removeprefix(f"{data}/")) for p in check_dataset(data).errors}
    assert found == {
        ("layout", "train"),
        ("unreadable-image", "train/images/train_01.png"),
        ("missing-mask", "val/images/val_00.png"),
    }


def test_splits_inside_without_masks_hide_nothing(data, tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            shutil.copytree(data / split / kind, tmp_path / "in" / kind / split)
    shutil.rmtree(tmp_path / "in/masks/train")
    (tmp_path / "in/images/val/val_00.png").write_bytes(b"")
    errors = check_dataset(tmp_path / "in").errors
    assert [p.code for p in errors] == ["layout", "unreadable-image"]
    assert "has a folder 'train', but" in errors[0].found


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "--classes names a class ''. A name must be a text; leave none empty"),
        ("a,,b", "--classes names a class ''"),
        ("a, ", "--classes names a class ''"),
        ("a,a", "--classes names the class 'a' more than once"),
        ("a", "--classes names 1 classes"),
    ],
)
def test_class_names_on_the_command_line(data, command, classes, message):
    code, out, err = command("check", data, "--classes", classes)
    assert code == 1
    assert message in out
    assert "1 error, 0 warnings" in out
    assert err == ""


def test_mixed_encodings_are_counted_in_pixels(data):
    """What is told of the one pixel is what is done: 255 is 'ignore'."""
    edit_all(lambda ids: ids * 255)(data)
    edit(MASK, lambda ids: with_pixels(ids, 1))(data)
    report = check_dataset(data)
    assert report.dataset.encoding == "ids"
    ids = report.dataset.splits["train"][0].mask.read()
    assert np.count_nonzero(ids == 1) == 1
