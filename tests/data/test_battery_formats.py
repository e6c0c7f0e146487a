# ruff: noqa: E501 - tables
"""Files whose format, depth, alpha channel, metadata or name is a trap: each is told by file, none in Python's words."""

import json
import os
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from breaks import MASK, PICTURE, Case, assert_told, both, edit, edit_all, put, remove, values_of, write
from convlora.cli.app import app
from convlora.data.check import check_dataset
from convlora.data.images import read_image
from convlora.data.report import Problem, shown
from small import write_shapes

DARK = np.random.default_rng(0).integers(0, 4000, (60, 40, 3))


def deep_png(values):
    """A PNG with 16 bits a channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2}[values.shape[2]]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    sums = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sums)


def with_alpha(ids, visible):
    """RGBA with the ids as grey, and alpha where they are not 0."""
    grey = np.dstack([ids * visible] * 3)
    return np.dstack([grey, (ids > 0).astype(np.uint8) * 200 + 40])


def not_finite(share):
    def change(rgb):
        grey = rgb[..., 0].astype(np.float32)
        grey[: round(share * len(grey))] = np.nan
        grey[0, 0] = np.inf
        return grey

    return change


def damaged_exif(root):
    cut = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\0\0\0\x06\0\0\0"
    Image.open(root / PICTURE).save((root / PICTURE).with_suffix(".jpg"), exif=cut)
    (root / PICTURE).unlink()


def as_format(name, kind, times=1, **options):
    """The content of another format under the same name."""

    def act(root):
        Image.fromarray(values_of(root / name) * np.uint8(times)).save(root / name, format=kind, **options)

    return act


def not_utf8(*kinds):
    def act(root):
        for kind in kinds:
            folder = os.fsencode(root / "train" / kind)
            (root / "train" / kind / "train_00.png").rename(os.fsdecode(folder + b"/caf\xe9.png"))

    return act


BROKEN = [
    Case("name is no UTF-8", not_utf8("images", "masks"), "bad-name", file=r"caf\xe9.png", remedy="Rename"),
    Case("name of an image is no UTF-8", not_utf8("images"), "missing-mask", file=r"caf\xe9.png", remedy="Add"),
    Case("varying alpha", edit(MASK, lambda a: with_alpha(a, 1)), "mask-alpha", "warning", MASK, "one channel", "40 to 240"),
    Case("LA", edit(MASK, lambda a: with_alpha(a, 1)[..., 2:]), "mask-alpha", "warning", MASK, "one channel"),
    Case("mask in alpha", edit(MASK, lambda a: with_alpha(a, 0)), "mask-alpha", file=MASK, remedy="Save the alpha", found="hold 0 everywhere"),
    Case("NaN in an image", edit(PICTURE, not_finite(0.5), PICTURE.replace("png", "tif")), "bad-pixels", "warning", "train_00.tif", "Fill", "1200 of 2400 pixels"),
    Case("nothing but NaN", edit(PICTURE, not_finite(1), PICTURE.replace("png", "tif")), "bad-pixels", file="train_00.tif", remedy="Export"),
    Case("16-bit colour", write(PICTURE, deep_png(DARK)), "deep-colour", "warning", PICTURE, "Scale it", "upper 8"),
    Case("16-bit colour as mask", write(MASK, deep_png(DARK // 2000)), "deep-mask", file=MASK, remedy="8-bit"),
    Case("large", put(PICTURE, np.zeros((100, 100), bool)), "large-image", "warning", PICTURE, "tiles"),
    Case("too large", put(PICTURE, np.zeros((200, 200), bool)), "unreadable-image", file=PICTURE, remedy="tiles", found="more pixels"),
    Case("damaged metadata", damaged_exif, "damaged-metadata", "warning", "train_00.jpg", "save the file again", "EXIF"),
    Case("noise as TIFF", both(remove(PICTURE), write(PICTURE.replace("png", "tif"), b"II*\0" + bytes(range(200)))), "unreadable-image", file="train_00.tif", remedy="Replace", found="no picture of a format"),
    Case("web page", write(PICTURE, "<!DOCTYPE html><html>404"), "unreadable-image", file=PICTURE, remedy="Replace", found="a web page"),
    Case("LFS", write(PICTURE, "version https://git-lfs.github.com/spec/v1\n"), "unreadable-image", file=PICTURE, remedy="Replace", found="git lfs pull"),
    Case("JPEG mask called PNG", as_format(MASK, "JPEG", 255, quality=30), "jpeg-mask", file=MASK, remedy="PNG", found="under the ending .png"),
    Case("JPEG mask with two values", both(edit_all(lambda a: a * 255), edit(MASK, np.zeros_like), as_format(MASK, "JPEG")), "jpeg-mask", "warning", MASK, "PNG", "1 different"),
    Case("coloured JPEG mask", both(edit(MASK, lambda a: np.dstack([a * 200, a, a])), as_format(MASK, "JPEG")), "jpeg-mask", file=MASK, remedy="PNG", found="colours"),
    Case("WebP mask", both(edit_all(lambda a: a * 255), as_format(MASK, "WEBP", quality=30)), "jpeg-mask", file=MASK, remedy="PNG", found="lossy WebP"),
    Case("TIFF mask with JPEG in it", both(edit_all(lambda a: a * 255), as_format(MASK, "TIFF", compression="jpeg")), "jpeg-mask", file=MASK, remedy="PNG", found="TIFF with JPEG"),
]  # fmt: skip

GOOD = [
    Case("image of another format", as_format(PICTURE, "JPEG")),
    Case("lossless WebP mask", as_format(MASK, "WEBP", lossless=True)),
    Case("transparent palette", lambda root: Image.fromarray(values_of(root / MASK)).convert("P").save(root / MASK, transparency=bytes([0, 9]))),
    Case("transparent palette of an image", lambda root: Image.open(root / PICTURE).quantize(9).save(root / PICTURE, transparency=bytes([0, 9]))),
    Case("16-bit grey", write(PICTURE, deep_png(DARK[..., :1]))),
    Case("the same alpha everywhere", edit(MASK, lambda a: np.dstack([a, a, a, a * 0]))),
]  # fmt: skip


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("formats") / "data", 2, {"train": 4, "val": 2})


@pytest.fixture
def data(original, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    return shutil.copytree(original, tmp_path / "data")


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_every_trap_is_told(data, case):
    case.break_it(data)
    result = CliRunner().invoke(app, ["check", str(data), "--json"])
    content = json.loads(result.stdout)
    assert result.exit_code == (0 if content["ok"] else 1)
    assert result.stderr == ""
    assert_told(case, content["problems"])
    assert "<_io" not in result.stdout
    result.stdout.encode()


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_what_is_fine_is_not_complained_of(data, case):
    case.break_it(data)
    assert check_dataset(data).problems == []


def test_jpeg_mask_is_told_once(data):
    """Its values and colours come from the format: no other finding is of use."""
    as_format(MASK, "JPEG", 255, quality=30)(data)
    assert [p.code for p in check_dataset(data).errors] == ["jpeg-mask"]


def test_other_warnings_pass(data, tmp_path):
    """Only Pillow's are held back, and only while files are checked."""
    damaged_exif(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_dataset(data)
        assert told == []
        Image.open((data / PICTURE).with_suffix(".jpg")).getexif()
    assert told


def test_pixels_that_are_no_numbers_change_no_others(tmp_path):
    grey = np.linspace(1000, 2000, 400, dtype=np.float32).reshape(20, 20)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    whole = read_image(tmp_path / "a.tif")
    grey[3, :7] = np.nan, np.inf, -np.inf, np.nan, np.nan, np.nan, np.nan
    Image.fromarray(grey).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif")
    assert (read[3, :7] == 0).all()
    np.testing.assert_allclose(read[5:], whole[5:], atol=2e-3)
    assert np.ptp(whole) == 1
    Image.fromarray(grey * np.nan).save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif") == 0).all()


def test_names_are_shown_so_that_nothing_breaks():
    assert shown("Zürich") == "Zürich"
    assert shown(os.fsdecode(b"caf\xe9 \xc3\xa9")) == "caf\\xe9 é"
    assert shown("\ud800") == "\\ud800"
    problem = Problem("error", "x", "a\nb\x1b[31m.png", "one\ntwo", "", "")
    assert problem.file == r"a\nb\x1b[31m.png"
    assert problem.found == "one\ntwo"
