"""Every kind of picture and mask that users have, written here and read back."""

import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convlora.data import images
from convlora.data.images import FileError, displayed_size, open_image, read_image, read_pixels
from convlora.data.labels import MaskFile, read_label
from convlora.data.masks import MaskEncoding, save_mask
from convlora.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_rgb(tmp_path, ending):
    Image.fromarray(RGB).save(tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    image = read_image(tmp_path / f"a.{ending}")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(np.round(image * 255), RGB)


def test_jpeg(tmp_path):
    Image.fromarray(RGB).resize((64, 64)).save(tmp_path / "a.jpg", quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("L", np.repeat(GREY[..., None], 3, axis=2)),
        ("1", np.repeat((GREY > 127)[..., None] * 255, 3, axis=2)),
        ("LA", np.repeat(GREY[..., None], 3, axis=2)),
        ("RGBA", RGB),
        ("P", RGB),
    ],
)
def test_modes(tmp_path, mode, want):
    if mode == "RGBA":
        alpha = np.full((12, 17, 1), 40, np.uint8)  # dropped, not blended
        image = Image.fromarray(np.concatenate([RGB, alpha], axis=2))
    elif mode == "LA":
        image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(np.full_like(GREY, 9))])
    elif mode == "P":
        image = Image.fromarray(RGB).quantize(256)
        want = np.asarray(image.convert("RGB"))
    elif mode == "1":
        image = Image.fromarray(GREY > 127)
    else:
        image = Image.fromarray(GREY)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.round(read_image(tmp_path / "a.png") * 255), want)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_deep_grey_fills_the_range(tmp_path, kind):
    """A 12-bit picture in a 16-bit file must not be black."""
    values = np.linspace(100, 4000, 12 * 17).reshape(12, 17).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    assert image.min() == 0
    assert image.max() == 1
    assert (np.diff(image[..., 0].ravel()) >= 0).all()
    assert np.ptp(image, axis=2).max() == 0


def test_constant_deep_grey_is_finite(tmp_path):
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 0).all()


def before(values):
    """The stretch as it was when the first results were made."""
    grey = values.astype(np.float32)
    low, high = np.percentile(grey, (0.1, 99.9))
    return np.clip((grey - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32", "spots", "spots in float"])
def test_ordinary_images_are_read_as_ever(tmp_path, kind):
    values = np.random.default_rng(0).normal(3000, 700, (60, 70)).clip(0)
    if kind.startswith("spots"):  # nearly all pixels are the same
        values = np.full((60, 70), 100.0)
        values[5, 5:8] = 100.5, 300, 4000
    values = values.astype({"spots": "uint16", "spots in float": "float32"}.get(kind, kind))
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif")[..., 0]
    np.testing.assert_array_equal(read, before(values))
    assert read.max() == 1


@pytest.mark.parametrize("width", [1e-5, 1e-7, 1e-12, 1e-30, 1e-44])
def test_a_small_range_is_stretched_like_a_large_one(tmp_path, width):
    """Reflectances, concentrations, currents in ampere: float images need not reach 1e-6."""
    values = (np.linspace(0, 1, 12 * 17).reshape(12, 17) * width).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif")[..., 0]
    assert (read.min(), read.max()) == (0, 1)
    assert (np.diff(read.ravel()) >= 0).all()
    assert read.std() > 0.2


def test_a_few_pixels_that_differ_are_seen(tmp_path):
    for width in (1e-7, -1e-7, -50):
        values = np.zeros((60, 70), np.float32)
        values[5, 5:7] = width, width / 2
        Image.fromarray(values).save(tmp_path / "a.tif")
        read = read_image(tmp_path / "a.tif")[..., 0]
        assert sorted(np.unique(read)) == [0, 0.5, 1]
        assert read[0, 0] == (0 if width > 0 else 1)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (17, 12, 3)
    assert displayed_size(open_image(tmp_path / "a.png")) == (17, 12)
    np.testing.assert_array_equal(np.round(read_image(tmp_path / "a.png") * 255), np.rot90(RGB, -1))


def test_broken_files(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(RGB).save(
        tmp_path / "frames.tif", save_all=True, append_images=[Image.fromarray(RGB)] * 2
    )
    for name, message in (
        ("cut", r"cut\.png cannot be read as an image"),
        ("empty", r"empty\.png .*the file is empty \(0 bytes\).* Replace or remove"),
        ("text", r"text\.png cannot be read as an image"),
        ("gone", r"gone\.png does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="holds 3 pages; one file must be one picture"):
        read_image(tmp_path / "frames.tif")


def test_what_is_said_of_a_stack_splits_it(tmp_path):
    """The command of the message, as a shell runs it; microscopes write 16 bits."""
    pages = np.random.default_rng(1).integers(0, 60000, (3, 12, 17), dtype=np.uint16)
    stack, *others = map(Image.fromarray, pages)
    stack.save(tmp_path / "the volume.tif", save_all=True, append_images=others)
    with pytest.raises(FileError, match="holds 3 pages") as raised:
        read_image(tmp_path / "the volume.tif")
    command = raised.value.fix.partition(": python ")[2]
    subprocess.run(f"{shlex.quote(sys.executable)} {command}", shell=True, check=True)
    (tmp_path / "the volume.tif").unlink()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"the volume_00{page}.tif" for page in range(3)]
    for file, page in zip(files, pages, strict=True):
        np.testing.assert_array_equal(np.asarray(open_image(file)), page)


# --- masks ---

IDS = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)


def test_palette_masks_are_read_by_index(tmp_path):
    save_mask(tmp_path / "m.png", IDS)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) == 6  # a viewer shows different colours
    np.testing.assert_array_equal(MaskFile(tmp_path / "m.png").read(), IDS)


@pytest.mark.parametrize("kind", ["L", "equal RGB", "RGBA", "16 bit", "float"])
def test_other_masks(tmp_path, kind):
    arrays = {
        "L": IDS,
        "equal RGB": np.repeat(IDS[..., None], 3, axis=2),
        "RGBA": np.concatenate(
            [np.repeat(IDS[..., None], 3, axis=2), np.full((2, 3, 1), 9, np.uint8)], axis=2
        ),
        "16 bit": IDS.astype(np.uint16),
        "float": IDS.astype(np.float32),
    }
    Image.fromarray(arrays[kind]).save(tmp_path / "m.tif")
    values = MaskFile(tmp_path / "m.tif").read()
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, IDS)


def test_one_bit_mask(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "m.png")
    np.testing.assert_array_equal(MaskFile(tmp_path / "m.png").read(), [[1, 0]])


def test_binary_encodings(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_label(MaskFile(tmp_path / "m.png"), MaskEncoding.BINARY_255), [[0, 1]])
    np.testing.assert_array_equal(read_label(MaskFile(tmp_path / "m.png"), MaskEncoding.IDS), [[0, 255]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, 0.5]], np.float32), "mask with fractions, such as 0.5.*Threshold it"),
        (np.array([[0, 300]], np.uint16), "values from 0 to 300; class ids are 0 to 254"),
        (
            np.array([[[255, 0, 0], [0, 255, 0], [255, 0, 0]]], np.uint8),
            r"colour mask with 2 colours: rgb\(255, 0, 0\) x 2, rgb\(0, 255, 0\) x 1",
        ),
    ],
    ids=["fractions", "range", "colours"],
)
def test_masks_that_are_none(tmp_path, array, message):
    Image.fromarray(array).save(tmp_path / "m.tif")
    with pytest.raises(DataError, match=message):
        MaskFile(tmp_path / "m.tif").read()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "turned", "transparent"])
def test_pixels_are_read_in_bands(tmp_path, monkeypatch, mode):
    """Some rows at a time, as bytes: what Pillow converts at once."""
    picture, options = Image.fromarray(RGB), {}
    if mode == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif mode == "transparent":
        picture, options["transparency"] = picture.quantize(9), 2
    else:
        picture = picture.convert(mode)
    file = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(file, **options)
    opened = open_image(file)
    want = np.asarray((opened.convert("RGBA") if mode == "transparent" else opened).convert("RGB"))
    want = np.rot90(want, -1) if mode == "turned" else want
    for rows in (1, 5, 256):
        monkeypatch.setattr(images, "_BAND", rows)
        got = read_pixels(file)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(read_image(file), want.astype(np.float32) / 255)
    assert want.std() > 0


def test_deep_grey_is_read_as_floats(tmp_path):
    deep = np.linspace(0, 65535, 300).reshape(15, 20).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png")
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, read_image(tmp_path / "a.png"))
    assert pixels.std() > 0.1


def test_too_many_pixels(tmp_path, monkeypatch):
    """Above Pillow's limit it warns (the command line hides that) and is read; above twice, it is not."""
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with pytest.warns(Image.DecompressionBombWarning):
        assert (read_pixels(tmp_path / "a.png") == RGB).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        DataError,
        match=r"more pixels than can be read safely .*204 pixels.*Cut it into tiles in files.*rearr",
    ):
        read_pixels(tmp_path / "a.png")
