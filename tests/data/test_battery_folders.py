# ruff: noqa: E501 - tables
"""A battery of broken folders: each ends in a named problem with its file and remedy, or in none at all."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from breaks import (
    MASK,
    PICTURE,
    Case,
    as_file,
    assert_told,
    both,
    clear,
    colours,
    convert,
    copy,
    cut,
    deep16,
    edit,
    edit_all,
    float_mask,
    frames,
    link,
    move,
    one_size,
    palette_png,
    remove,
    rename_all,
    same_masks,
    same_picture,
    soften,
    three,
    turn,
    with_pixels,
    write,
)
from convlora.cli.app import app
from convlora.data.check import check_dataset
from small import write_shapes

FILES = [
    Case("image without mask", remove(MASK), "missing-mask", file=PICTURE, remedy="Add train_00.png"),
    Case("mask without image", remove(PICTURE), "missing-image", file=MASK, remedy="Add train_00.png"),
    Case("empty file", write(PICTURE, b""), "unreadable-image", file=PICTURE, remedy="Replace", found="0 bytes"),
    Case("empty mask file", write(MASK, b""), "unreadable-mask", file=MASK, remedy="Replace"),
    Case("cut PNG", cut(PICTURE, 0.5), "unreadable-image", file=PICTURE, remedy="Replace"),
    Case(
        "cut JPEG", cut(PICTURE, 0.5, "train/images/train_00.jpg"), "unreadable-image", file="train_00.jpg",
        remedy="Replace", found="truncated",
    ),
    Case("text as PNG", write(PICTURE, "hello"), "unreadable-image", file=PICTURE, remedy="Replace"),
    Case("text as mask", write(MASK, "hello"), "unreadable-mask", file=MASK, remedy="Replace"),
    Case(
        "folder called PNG", both(remove(PICTURE), write(f"{PICTURE}/a.txt", "")), "stray-file", "warning",
        PICTURE, "Move", "a folder",
    ),
    Case("broken link", link(PICTURE, "nowhere.png"), "unreadable-image", file=PICTURE, remedy="Replace", found="link"),
    Case("broken link of a mask", link(MASK, "no.png"), "unreadable-mask", file=MASK, remedy="Replace", found="link"),
    Case("other size", edit(MASK, lambda a: a[:-3]), "size-mismatch", file=MASK, remedy="Export", found="57 x 40"),
    Case("turned photograph", turn(PICTURE, 6), "size-mismatch", file=MASK, remedy="EXIF"),
    Case("half turn", turn(PICTURE, 3), "exif-orientation", "warning", PICTURE, "Look at"),
    Case(
        "two endings", copy(PICTURE, "train/images/train_00.JPG"), "duplicate-stem", file="train_00",
        remedy="Keep one",
    ),
    Case("case", both(copy(PICTURE, "train/images/Train_00.png"), copy(MASK, "train/masks/Train_00.png")),
         "case-clash", file="rain_00.png", remedy="Rename"),
    Case("stray file", write("train/images/notes.txt", "x"), "stray-file", "warning", "notes.txt", "Move"),
    Case("GIF", frames(PICTURE, 1, "train/images/train_00.gif"), "unread-format", file="train_00.gif", remedy="PNG"),
    Case(
        "animated GIF called PNG", both(frames(PICTURE, 3, "train/images/a.gif"), move("train/images/a.gif", PICTURE)),
        "unreadable-image", file=PICTURE, remedy="Save the frames one by one", found="3 frames",
    ),
    Case("pages", frames(PICTURE, 2, "train/images/train_00.tif"), "unreadable-image", file="train_00.tif",
         remedy="Save the pages one by one", found="2 pages"),
    Case("sub-folder", copy("val/images", "train/images/more"), "sub-folder", file="train/images/more",
         remedy="Move", found="4 images"),
    Case("same picture in two splits", same_picture(".png"), "same-image", file="val_00.png", remedy="Remove"),
    Case("as BMP", same_picture(".bmp"), "same-image", file="val_00.bmp", remedy="Remove", found="train_05.png"),
    Case("picture twice", both(copy(PICTURE, "train/images/b.png"), copy(MASK, "train/masks/b.png")),
         "repeated-image", "warning", "train_00.png", "Remove"),
    Case("one mask for all", same_masks,
         "same-masks", "warning", "train_00.png", "export"),
    Case("blank image", edit(PICTURE, np.zeros_like), "blank-image", "warning", PICTURE, "Look at"),
    Case("one pixel", one_size((1, 1)), "tiny-image", "warning", PICTURE, "Remove", "1 x 1"),
    Case("long", one_size((16, 400)), "elongated-image", "warning", PICTURE, "tiles", "16 x 400"),
]  # fmt: skip

NAMES = [
    *(
        Case(f"masks called {rule}", rename_all("train/masks", lambda p, r=rule: r.format(p.stem)),
             "name-pattern", file=rule.format("train_00"), remedy="Rename it to train_00.png")
        for rule in ("{}_mask.png", "{}_gt.png", "{}_label.png", "{}_seg.png", "mask_{}.png", "{}-mask.PNG",
                     "{}_segmentation.png", "{}.jpg.png")
    ),
    Case("both sides", both(rename_all("train/masks", lambda p: f"{p.stem}_mask.png"),
                            rename_all("train/images", lambda p: f"{p.stem}_image.png")),
         "name-pattern", file="train_00_mask.png", remedy="train_00_image.png"),
    Case("other case", rename_all("train/masks", lambda p: p.name.replace("train", "TRAIN")),
         "name-pattern", file="TRAIN_00.png", remedy="Rename it to train_00.png"),
]  # fmt: skip

VALUES = [
    Case("id 7", edit(MASK, lambda a: with_pixels(a, 7, 7, 9)), "unknown-ids", file=MASK,
         remedy="classes.txt", found="7 (2 pixels), 9 (1 pixel)"),
    Case("id 7 of 2 named", both(three("sea\nland\n"), edit(MASK, lambda a: with_pixels(a, 7))),
         "unknown-ids", file=MASK, remedy="Correct", found="7 (1 pixel)"),
    Case("id 7 of 3", both(three("a\nb\nc\n"), edit(MASK, lambda a: with_pixels(a, 7, 2))),
         "unknown-ids", file=MASK, remedy="Correct", found="7 (1 pixel)"),
    Case("RGB", edit(MASK, colours()), "colour-mask", file=MASK, remedy="id", found="rgb(200, 0, 0) x"),
    Case("RGBA", edit(MASK, colours(True)), "colour-mask", file=MASK, remedy="id", found="rgb(200, 0, 0) x"),
    Case("one in 0 and 255", edit(MASK, lambda a: a * 255), "mixed-encoding", file=MASK, remedy="same values"),
    Case("one in 0 and 1", both(edit_all(lambda a: a * 255), edit(MASK, lambda a: a // 255)), "mixed-encoding",
         file=MASK, remedy="same values"),
    Case("JPEG", edit(MASK, lambda a: a * 255, MASK.replace("png", "jpg"), quality=30), "jpeg-mask",
         file="train_00.jpg", remedy="PNG"),
    Case("smooth edges", edit(MASK, soften), "soft-mask", file=MASK, remedy="128", found="between"),
    Case("all with smooth edges", edit_all(soften), "soft-mask", file="val_03.png", remedy="128"),
    Case("fractions", edit(MASK, float_mask(0.5), MASK.replace("png", "tif")), "unknown-ids",
         file="train_00.tif", remedy="Threshold", found="0.5"),
    Case("NaN", edit(MASK, float_mask(np.nan), MASK.replace("png", "tif")), "unknown-ids",
         file="train_00.tif", remedy="8-bit", found="NaN"),
    Case("infinite", edit(MASK, float_mask(np.inf), MASK.replace("png", "tif")), "unknown-ids",
         file="train_00.tif", remedy="8-bit", found="inf"),
    Case("0 and 65535", edit(MASK, deep16), "unknown-ids", file=MASK, remedy="0 and 255", found="65535"),
    Case("instances", edit(MASK, lambda a: a.astype(np.uint16) * 1000), "unknown-ids", file=MASK,
         remedy="object", found="1000"),
    Case("8-bit instances", edit(MASK, lambda a: np.arange(a.size).reshape(a.shape).astype(np.uint8) % 40),
         "unknown-ids", file=MASK, remedy="object"),
    Case("all ignored", both(three("a\nb\nc\n"), edit(MASK, lambda a: a * 0 + 255)), "all-ignored", "warning", MASK,
         "Remove"),
    Case("no foreground", edit(MASK, np.zeros_like), "empty-masks", "warning", MASK, "Fine if", "1 of 12 masks (8 %)"),
    Case("no foreground, 0 and 255", both(edit_all(lambda a: a * 255), edit(MASK, np.zeros_like)), "empty-masks",
         "warning", MASK, "Fine if"),
    Case("foreground only", edit(MASK, lambda a: a * 0 + 1), "full-masks", "warning", MASK, "Fine if"),
    Case("foreground only, 255", both(edit_all(lambda a: a * 255), edit(MASK, lambda a: a * 0 + 255)),
         "full-masks", "warning", MASK, "Fine if"),
    Case("all without foreground", edit_all(np.zeros_like), "nothing-to-learn", file="train/masks", remedy="Compare"),
    Case("3 classes in 0 and 255", both(three("a\nb\nc\n"), edit_all(lambda a: a * 255)), "nothing-to-learn",
         file="train/masks", remedy="Compare"),
    Case("class without pixels", three("a\nb\nc\n"), "class-without-pixels", "warning", "train/masks", "Label", "'c'"),
    Case("class in val only", both(three("a\nb\nc\n"), edit("val/masks/val_02.png", lambda a: with_pixels(a, 2, 2))),
         "class-without-pixels", "warning", "val_02.png", "Label", "'c'"),
]  # fmt: skip

LAYOUT = [
    Case("no data", shutil.rmtree, "layout", remedy="A data folder holds", found="is not a folder"),
    Case("a file", as_file, "layout", remedy="A data folder holds"),
    Case("nothing", clear, "layout", remedy="A data folder holds", found="nothing"),
    Case("no masks", remove("train/masks"), "layout", file="train", remedy="A data folder holds", found="'masks'"),
    Case("no images", remove("train/images"), "layout", file="train", remedy="A data folder holds", found="'images'"),
    Case("no val", remove("val"), "missing-split", file="val", remedy="val/images"),
    Case("empty val", both(remove("val"), lambda r: [(r / "val" / k).mkdir(parents=True) for k in ("images", "masks")]),
         "empty-split", file="val", remedy="val/images"),
    Case("empty test", lambda r: [(r / "test" / k).mkdir(parents=True) for k in ("images", "masks")],
         "empty-split", "warning", "test", "Fill it"),
    Case("val and valid", both(copy("val", "valid"), rename_all("valid/*", lambda p: f"x{p.name}")),
         "split-twice", file="valid", remedy="one folder"),
    Case("Train", move("train", "Train"), "missing-split", file="train", remedy="Rename Train to train"),
    Case("Train and Val", both(move("train", "Train"), move("val", "Val")), "layout", remedy="Rename Train to train"),
    Case("dev", move("val", "dev"), "missing-split", file="val", remedy="Rename dev to val"),
    Case("a fourth folder", copy("val", "extra"), "unused-folder", "warning", "extra", "Move"),
    Case("too few", lambda r: [(r / k).mkdir() or shutil.copy(r / "train" / k / "train_00.png", r / k)
                               for k in ("images", "masks")] and [shutil.rmtree(r / s) for s in ("train", "val")],
         "too-few", remedy="Add pairs", found="at least 3"),
    Case("empty names", three(""), "class-names", file="classes.txt", remedy="Correct it", found="2 to 255"),
    Case("one name", three("a\n"), "class-names", file="classes.txt", remedy="Correct it", found="2 to 255"),
    Case("a name twice", three("a\nb\na\n"), "class-names", file="classes.txt", remedy="Correct it", found="must differ"),
    Case("blank line", three("a\n\nb\n"), "class-names", file="classes.txt", remedy="delete the line"),
    Case("not UTF-8", write("classes.txt", "bär\nsky\n".encode("latin-1")), "class-names", file="classes.txt",
         remedy="UTF-8"),
    Case("UTF-16", write("classes.txt", "bär\nsky\n".encode("utf-16")), "class-names", file="classes.txt",
         remedy="UTF-8"),
    Case("no names in YAML", write("data.yaml", "path: x\n"), "class-names", file="data.yaml", remedy="Correct it", found="must hold 'names'"),
    Case("broken YAML", write("data.yaml", "names: [\n"), "layout", file="data.yaml", remedy="Correct it", found="YAML"),
    Case("null name", write("data.yaml", "names: [a, null]\n"), "class-names", file="data.yaml", remedy="text"),
    Case("ids from 1", write("data.yaml", "names: {1: a, 2: b}\n"), "class-names", file="data.yaml", remedy="Correct it", found="0, 1, 2"),
    Case("two lists", both(three("a\nb\n"), write("data.yaml", "names: [b, a]\n")), "class-names",
         file="data.yaml", remedy="same"),
    Case("folder called classes.txt", write("classes.txt/a", ""), "class-names", file="classes.txt", remedy="text file"),
]  # fmt: skip

GOOD = [
    Case("as it is", lambda root: None),
    Case("0 and 255", edit_all(lambda a: a * 255)),
    Case("palette", palette_png),
    Case("1 bit", edit_all(lambda a: a.astype(bool))),
    Case("LA", edit_all(lambda a: np.dstack([a, a * 0 + 255]))),
    Case("grey RGBA", edit_all(lambda a: np.dstack([a, a, a, a * 0 + 255]))),
    Case("float 0 and 1", edit_all(lambda a: a.astype(np.float32), suffix=".tif")),
    Case("16-bit ids", edit_all(lambda a: a.astype(np.uint16))),
    Case("upper-case endings", rename_all("*/images", lambda p: f"{p.stem}.PNG")),
    Case("names", both(*(move(f"train/{k}/train_00.png", f"train/{k}/Zürich, 1.2 {c}.png")
                         for k in ("images", "masks") for c in "é"))),
    Case("systems' files", both(*(write(f"train/images/{n}", "x") for n in (
        ".DS_Store", "Thumbs.db", "desktop.ini", "._train_00.png", "__MACOSX/a.png")), write("__MACOSX/train", ""))),
    Case("CMYK", convert(PICTURE, "CMYK", "train/images/train_00.jpg")),
    Case("RGBA image", convert(PICTURE, "RGBA")),
    Case("16-bit image", edit(PICTURE, lambda a: a[..., 0].astype(np.uint16) * 200)),
    Case("byte order mark", write("classes.txt", b"\xef\xbb\xbfsea\r\nland\r\n")),
    Case("ignored pixels", edit(MASK, lambda a: with_pixels(a, 255, 255))),
    Case("both turned", both(turn(PICTURE, 3), turn(MASK, 3))),
]  # fmt: skip

BROKEN = [*FILES, *NAMES, *VALUES, *LAYOUT]


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("battery") / "data", 2, {"train": 8, "val": 4})


@pytest.fixture
def data(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data")


def by_name(case):
    return case.name


@pytest.mark.parametrize("case", BROKEN, ids=by_name)
def test_every_break_is_told(data, case):
    case.break_it(data)
    report = check_dataset(data)
    assert_told(case, json.loads(report.to_json())["problems"])
    assert report.ok is (case.severity == "warning" and not report.errors)
    assert f"[{case.code}]" in report.to_text()


@pytest.mark.parametrize("case", GOOD, ids=by_name)
def test_what_is_fine_is_not_complained_of(data, case):
    case.break_it(data)
    assert check_dataset(data).problems == []


def some(*names):
    return pytest.mark.parametrize("case", [c for c in BROKEN if c.name in names], ids=by_name)


@some(
    "image without mask",
    "cut JPEG",
    "no data",
    "blank line",
    "masks called {}_gt.png",
    "stray file",
    "smooth edges",
)
def test_on_the_command_line(data, case):
    case.break_it(data)
    code = 1 if case.severity == "error" else 0
    result = CliRunner().invoke(app, ["check", str(data), "--json"])
    assert result.exit_code == code, result.output
    content = json.loads(result.stdout)
    assert content["ok"] is (code == 0)
    assert_told(case, content["problems"])
    result = CliRunner().invoke(app, ["check", str(data)])
    assert result.exit_code == code
    assert f"[{case.code}]" in result.stdout
    assert "Traceback" not in result.output
