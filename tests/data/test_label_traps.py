"""Data that looks right and is not: each case trains or scores silently wrong if it is let through."""

import numpy as np
import pytest
import torch
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.classes import read_class_names
from convlora.data.images import FileError, read_image
from convlora.data.labels import MaskFile, read_label
from convlora.data.masks import MaskEncoding
from convlora.data.transforms import apply_image, fit_geometry
from convlora.errors import DataError
from small import write_shapes


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2})


def change_masks(root, change):
    for path in root.rglob("masks/*.png"):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def codes(report):
    return {(p.severity, p.code) for p in report.problems}


def with_orientation(path, array, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(array).save(path, exif=exif)


# --- class names ---


def test_an_empty_line_would_shift_the_ids(tmp_path):
    (tmp_path / "classes.txt").write_text("background\n\ncar\n")
    with pytest.raises(DataError, match="line 2 is empty, and the line's place is the class's id"):
        read_class_names(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfb\xc3\xa4r\r\nsky\r\n")
    assert read_class_names(tmp_path) == ("bär", "sky")


def test_names_in_another_encoding(tmp_path):
    (tmp_path / "classes.txt").write_bytes("bär\nsky\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_class_names(tmp_path)


# --- labels ---


def test_the_fingerprint_follows_the_labels(data):
    """Uncompressed files keep their size whatever they hold."""
    for path in list(data.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    before = check_dataset(data).dataset.fingerprint
    path = data / "train" / "masks" / "train_00.bmp"
    size = path.stat().st_size
    Image.fromarray(1 - np.array(Image.open(path))).save(path)
    assert path.stat().st_size == size
    assert check_dataset(data).dataset.fingerprint != before


def test_the_fingerprint_does_not_depend_on_the_place(data):
    before = check_dataset(data).dataset.fingerprint
    moved = data.rename(data.with_name("elsewhere"))
    assert check_dataset(moved).dataset.fingerprint == before


def test_three_classes_in_0_and_255(data):
    """255 is 'ignore' with three classes: only the background would be left."""
    (data / "classes.txt").write_text("a\nb\nc\n")
    change_masks(data, lambda ids: ids * 255)
    with pytest.raises(DataError, match=r"nothing-to-learn.*hold only 'a'.*255 is read as 'ignore'"):
        check_dataset(data).raise_if_errors()


def test_all_ignored(data):
    change_masks(data, lambda ids: np.full_like(ids, 255))
    (data / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="the training masks are all 'ignore'"):
        check_dataset(data).raise_if_errors()


def test_a_test_split_alone_may_hold_one_class(data):
    change_masks(data, np.zeros_like)
    assert check_dataset(data, splits=("val",)).ok
    assert ("error", "nothing-to-learn") in codes(check_dataset(data))


def test_binary_masks_hold_nothing_else(tmp_path):
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(FileError, match="holds the value 7 in a set of masks with 0 and 255"):
        read_label(MaskFile(tmp_path / "m.png"), MaskEncoding.BINARY_255)


def test_colour_masks_have_their_own_code(data):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:5, :, 0] = 200
    Image.fromarray(rgb).save(data / "train" / "masks" / "train_00.png")
    report = check_dataset(data)
    (problem,) = report.errors
    assert problem.code == "colour-mask"
    assert problem.found.count("train_00") == 0  # the file is named once, in `file`
    assert "rgb(0, 0, 0) x 2752, rgb(200, 0, 0) x 320" in problem.found
    assert "palette.txt with your names, id 0 first" in problem.fix
    assert report.statistics["images"] == {"train": 4, "val": 2}  # a report with errors has them too


# --- turned photographs ---


def test_masks_are_turned_like_images(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with_orientation(tmp_path / "m.png", values, 3)
    np.testing.assert_array_equal(MaskFile(tmp_path / "m.png").read(), values[::-1, ::-1])
    with_orientation(tmp_path / "n.png", values, 6)
    np.testing.assert_array_equal(MaskFile(tmp_path / "n.png").read(), np.rot90(values, -1))


@pytest.mark.parametrize("turned", [("images",), ("images", "masks")])
def test_a_half_turn_of_one_of_a_pair_is_told(data, turned):
    for kind in turned:
        path = data / "train" / kind / "train_00.png"
        with_orientation(path, np.array(Image.open(path)), 3)
    told = ("warning", "exif-orientation") in codes(check_dataset(data))
    assert told is (turned == ("images",))


@pytest.mark.parametrize("turned", ["images", "masks"])
@pytest.mark.parametrize("other", [1, 3])
def test_a_quarter_turn_that_fits(data, turned, other):
    """Height and width prove it, unless the other is turned too: photographs of phones need no warning."""
    for path in data.rglob(f"{turned}/*.png"):
        with_orientation(path, np.rot90(np.array(Image.open(path))), 6)
    if other != 1:
        for path in data.rglob(f"{'masks' if turned == 'images' else 'images'}/*.png"):
            with_orientation(path, np.array(Image.open(path)), other)
    told = [p for p in check_dataset(data).problems if p.code == "exif-orientation"]
    assert len(told) == (0 if other == 1 else 6)


def test_a_quarter_turn_of_squares(tmp_path):
    """Any turn fits these."""
    root = tmp_path / "squares"
    for i in range(3):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 2, (16, 16), dtype=np.uint8)
            with_orientation(root / kind / f"{i}.png", noise, 6 if kind == "images" else 1)
    assert [p.code for p in check_dataset(root).problems] == ["exif-orientation"] * 3


# --- files ---


def test_the_photograph_of_a_phone_jpeg(tmp_path):
    photograph, preview = Image.new("RGB", (16, 8), (200, 0, 0)), Image.new("RGB", (16, 8))
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (8, 16, 3)
    assert image[..., 0].min() > 0.7  # red, not the black preview


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("L", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FileError, match=r"more pixels than can be read safely.*Cut it into tiles"):
        read_image(tmp_path / "a.png")


def test_a_file_error_survives_another_process(tmp_path):
    """A DataLoader worker's error is rebuilt from its message alone."""
    error = FileError.about(tmp_path, "is broken", "Replace it.")
    assert str(type(error)(str(error))) == str(error) == f"{tmp_path} is broken. Replace it."


def test_copies_in_splits_that_are_made_here(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(8):
        picture = rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    assert check_dataset(tmp_path).ok
    splits = check_dataset(tmp_path).dataset.splits
    source, copy = splits["train"][0].image, splits["test"][0].image
    copy.write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=rf"same-image\] .*{copy.name}.* in test, the same picture as"):
        check_dataset(tmp_path).raise_if_errors()


@pytest.mark.parametrize(("wanted", "severity"), [(("train", "val"), "warning"), (("test",), "error")])
def test_empty_split(data, wanted, severity):
    for kind in ("images", "masks"):
        (data / "test" / kind).mkdir(parents=True)
    assert (severity, "empty-split") in codes(check_dataset(data, splits=wanted))


def test_stretching_stays_in_range():
    """Bicubic weights overshoot at edges; training clamps, so prediction must see the same."""
    edges = (torch.rand(3, 30, 60, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    square = apply_image(edges, fit_geometry((30, 60), 64, "stretch"))
    assert (square.min(), square.max()) == (0, 1)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((0, 1, 2, 253, 254, 255), "soft-mask"),  # a JPEG saved as PNG
        ((1, 2, 253, 254), "soft-mask"),  # without pure black and white, as some of DeepGlobe's
        ((0, 1, 2, 3, 255), "unknown-ids"),  # ids with 'ignore', not named
        (range(0, 250), "unknown-ids"),  # objects
    ],
)
def test_traces_of_jpeg_are_told_from_ids(data, values, code):
    """Naming classes would not help the former, nor a threshold the latter."""
    for path in (data / "train" / "masks").iterdir():
        ids = np.array(Image.open(path))
        odd = np.resize(np.array(values, np.uint8), ids.shape)
        Image.fromarray(odd).save(path)
    told = [p for p in check_dataset(data).errors if p.file.startswith(str(data / "train"))]
    assert {p.code for p in told} == {code}


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ((0, 128), ["0 0 0 background", "128 128 128 foreground"]),
        ((0, 2), ["0 0 0 background", "2 2 2 foreground"]),
        ((1, 2), ["1 1 1 background", "2 2 2 foreground"]),
        ((0, 128, 255), ["0 0 0 background", "255 255 255 foreground", "128 128 128 ignore"]),
        ((0, 1, 7, 255), ["0 0 0 background", "1 1 1 foreground", "7 7 7 ignore", "255 255 255 ignore"]),
        ((0, 2, 3), []),
        ((2, 255, 1), []),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_one_odd_value(data, values, lines, named):
    """The palette that is told makes good data of it; class names alone would not."""
    change_masks(data, lambda ids: np.resize(np.array(values, np.uint8), ids.shape))
    if named:
        (data / "classes.txt").write_text("background\nforeground\n", encoding="utf-8")
    told = [p for p in check_dataset(data).errors if p.code == "unknown-ids"]
    assert len(told) == 6
    assert told[0].fix.splitlines()[1:] == lines
    if lines:
        (data / "palette.txt").write_text("\n".join(lines), encoding="utf-8")
        (mended,) = [p.mask for p in check_dataset(data).dataset.splits["val"]][:1]
        assert set(np.unique(mended.read())) == ({0, 1} if len(lines) == 2 else {0, 1, 255})


def test_no_palette_is_told_for_masks_of_16_bits(data):
    """It could not be applied to them."""
    for path in data.rglob("masks/*.png"):
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16) * 2).save(path)
    told = [p for p in check_dataset(data).errors if p.code == "unknown-ids"]
    assert told
    assert not any("palette.txt" in p.fix for p in told)


def test_one_odd_value_of_indexed_masks(data):
    """A palette reads what a viewer shows."""
    for path in data.rglob("masks/*.png"):
        image = Image.fromarray(np.array(Image.open(path)) * 2)
        image.putpalette([9, 9, 9, 0, 0, 0, 200, 30, 30])
        image.save(path)
    (told, *_) = [p for p in check_dataset(data).errors if p.code == "unknown-ids"]
    assert told.fix.splitlines()[1:] == ["9 9 9 background", "200 30 30 foreground"]


@pytest.mark.parametrize("names", ["", "background\ncell\nwall\n"])
@pytest.mark.parametrize("count", [3, 40])
def test_objects_that_are_counted(data, names, count):
    """Three in an image look like three classes."""
    change_masks(data, lambda ids: np.resize(np.arange(count + 1, dtype=np.uint8), ids.shape))
    if names:
        (data / "classes.txt").write_text(names, encoding="utf-8")
    told = [p for p in check_dataset(data).errors if p.code == "unknown-ids"]
    assert all("count objects (instances)" in p.fix and "`mask > 0` as 0 and 1" in p.fix for p in told)
    assert told


@pytest.mark.parametrize("names", [("wheat", "maize", "beet"), ("wheat", "maize")])
def test_names_that_begin_with_the_class_of_id_1(data, names):
    """Adding a class at the end, which was told alone, would train the wrong names."""
    change_masks(data, lambda ids: np.resize(np.arange(1, len(names) + 1, dtype=np.uint8), ids.shape))
    (data / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    told = [p for p in check_dataset(data).errors if p.code == "unknown-ids"]
    assert told
    assert all(
        "'wheat', is that of id 0: if it is meant for id 1, name id 0 in a line above" in p.fix for p in told
    )
    (data / "classes.txt").write_text("\n".join(("other", *names)) + "\n", encoding="utf-8")
    assert check_dataset(data).ok


@pytest.mark.parametrize(("value", "kind"), [(65535, np.uint16), (-1, np.int16), (-9999, np.int32)])
def test_a_value_for_no_data(tmp_path, value, kind):
    """As GeoTIFFs hold it; these are no instances."""
    values = np.array([[0, 1, 2], [2, value, value]], kind)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(FileError) as raised:
        MaskFile(tmp_path / "a.tif").read()
    assert f"as an 8-bit PNG, with 255 in place of {value} if that is 'no data'." in raised.value.fix
    assert "instances" not in raised.value.fix
