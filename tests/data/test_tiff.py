"""TIFFs of every type of number: read as they are stored, or refused by what their tags say."""

import struct
import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from breaks import MASK, PICTURE, Case, assert_told
from convlora.data.check import check_dataset
from convlora.data.images import read_image, read_pixels
from convlora.data.labels import MaskFile, read_label
from convlora.data.palette import read_palette
from convlora.data.report import asdict
from convlora.errors import DataError
from small import write_shapes

KINDS = {"u": 1, "b": 1, "i": 2, "f": 3, "c": 6}
RAMP = np.arange(12 * 16).reshape(12, 16)


def write_tiff(path, values, meaning=1, extra=(), order="<", compression=1):
    """An uncompressed TIFF of (H, W) or (H, W, bands), as tifffile writes it; booleans with 1 bit each."""
    values = np.asarray(values)
    bands = 1 if values.ndim == 2 else values.shape[2]
    bits = 1 if values.dtype == bool else 8 * values.dtype.itemsize
    packed = np.packbits(values, axis=1) if bits == 1 else values.astype(values.dtype.newbyteorder(order))
    data = packed.tobytes()
    tags = {
        256: [values.shape[1]], 257: [values.shape[0]], 258: [bits] * bands, 259: [compression],
        262: [meaning], 273: [8], 277: [bands], 278: [values.shape[0]], 279: [len(data)],
        338: list(extra), 339: [KINDS[values.dtype.kind]] * bands,
    }  # fmt: skip
    tags = {tag: numbers for tag, numbers in tags.items() if numbers}
    data += b"\0" * (len(data) % 2)
    long = 8 + len(data) + 2 + 12 * len(tags) + 4  # where numbers begin that have no room in their entry
    entries, more = b"", b""
    for tag, numbers in tags.items():
        cell = struct.pack(f"{order}{len(numbers)}H", *numbers).ljust(4, b"\0")
        if len(cell) > 4:
            cell, more = struct.pack(f"{order}I", long + len(more)), more + cell
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + cell
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + more)
    return path


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2})


def replace_file(root, name, change, **options):
    """One picture or mask as a TIFF."""
    values = change(np.array(Image.open(root / name)))
    (root / name).unlink()
    return write_tiff((root / name).with_suffix(".tif"), values, **options)


def replace_masks(root, change, **options):
    for path in sorted(root.glob("*/masks/*.png")):
        replace_file(root, path.relative_to(root), change, **options)


def told(root):
    return [asdict(problem) for problem in check_dataset(root).problems]


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.float32])
def test_both_orders_of_bytes_pass_the_check(data, kind):
    """ImageJ writes the big end first."""
    for path in sorted(data.glob("*/images/*.png")):
        grey = np.array(Image.open(path).convert("L")).astype(kind) * kind(100)
        path.unlink()
        write_tiff(path.with_suffix(".tif"), grey, order=">")
    assert check_dataset(data).problems == []
    images = data / "train" / "images"
    write_tiff(images / "train_02.tif", np.array(Image.open(images / "train_00.tif")).astype(kind))
    (found,) = check_dataset(data).problems
    assert found.code == "repeated-image"


# --- 0 is white ---


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_masks_are_read_as_stored(tmp_path, kind):
    ids = (RAMP % 3).astype(kind)
    np.testing.assert_array_equal(MaskFile(write_tiff(tmp_path / "a.tif", ids, meaning=0)).read(), ids)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_images_are_read_as_a_viewer_shows_them(tmp_path, kind):
    grey = (RAMP * 255 / RAMP.max()).astype(kind)
    black, white = (read_image(write_tiff(tmp_path / "a.tif", grey, meaning=m)) for m in (1, 0))
    np.testing.assert_allclose(white, 1 - black, atol=0.01)


@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_mask_whose_0_is_white_is_told(data, top, kind):
    want = check_dataset(data).dataset
    replace_masks(data, lambda ids: ids.astype(kind) * kind(top), meaning=0)
    got = check_dataset(data)
    assert got.dataset.shares == want.shares
    case = Case(
        "", None, "white-is-zero", "warning", "train_00.tif", "Masks are numbers", "as stored, not as"
    )
    assert_told(case, told(data))
    assert len(got.warnings) == 6
    ids = np.array(MaskFile(got.dataset.splits["train"][0].mask.path).read())
    held = f"0 x {(ids == 0).sum()}, {top} x {(ids == top).sum()} pixels"
    assert held in got.warnings[0].found


def test_one_bit_is_refused_where_0_is_white(data):
    ids = np.array(Image.open(data / MASK))
    replace_masks(data, lambda ids: ids > 0, meaning=0)
    case = Case("", None, "white-is-zero", "error", "train_00.tif", "tifffile.imwrite(", "programs differ")
    assert_told(case, told(data))
    assert f"{np.count_nonzero(ids)} pixels are stored as 1" in check_dataset(data).errors[0].found


def test_one_bit_is_read_where_0_is_black(data):
    want = check_dataset(data).dataset.shares
    replace_masks(data, lambda ids: ids > 0)
    report = check_dataset(data)
    assert (report.problems, report.dataset.shares) == ([], want)


@pytest.mark.parametrize("bits", [1, 8])
def test_colours_are_those_that_a_viewer_shows(tmp_path, bits):
    (tmp_path / "palette.txt").write_text("0 0 0 a\n255 255 255 b\n")
    stored = RAMP % 2 > 0 if bits == 1 else (RAMP % 2 * 255).astype(np.uint8)
    label = MaskFile(
        write_tiff(tmp_path / "a.tif", stored, meaning=0), read_palette(tmp_path / "palette.txt")
    )
    np.testing.assert_array_equal(label.read(), 1 - RAMP % 2)


def test_a_palette_needs_no_word_of_it(data):
    replace_masks(data, lambda ids: ids * np.uint8(255), meaning=0)
    (data / "palette.txt").write_text("255 255 255 background\n0 0 0 shape\n")
    assert told(data) == []


# --- numbers that wrap ---


def test_large_unsigned_numbers(tmp_path):
    grey = RAMP.astype(np.uint32) * np.uint32(2**32 // RAMP.size)
    got = read_image(write_tiff(tmp_path / "a.tif", grey))[..., 0]
    assert (np.diff(got.ravel()) >= 0).all()
    assert (got[0, 0], got[-1, -1]) == (0, 1)
    with pytest.raises(DataError, match=r"values from 0 to 4\.27"):
        MaskFile(tmp_path / "a.tif").read()
    write_tiff(tmp_path / "a.tif", grey, order=">")  # Pillow does not know these
    with pytest.raises(DataError, match="one band of uint32"):
        MaskFile(tmp_path / "a.tif").read()


def test_signed_bytes(tmp_path):
    got = read_image(write_tiff(tmp_path / "a.tif", (RAMP * 255 // RAMP.max() - 128).astype(np.int8)))
    assert (np.diff(got[..., 0].ravel()) >= 0).all()
    np.testing.assert_array_equal(
        MaskFile(write_tiff(tmp_path / "b.tif", (RAMP % 3).astype(np.int8))).read(), RAMP % 3
    )
    path = write_tiff(tmp_path / "c.tif", -(RAMP % 2).astype(np.int8))
    with pytest.raises(DataError, match="is a mask with values from -1 to 0"):
        MaskFile(path).read()
    (tmp_path / "palette.txt").write_text("0 0 0 a\n255 255 255 b\n")
    with pytest.raises(DataError, match="has one channel of numbers"):
        MaskFile(path, read_palette(tmp_path / "palette.txt")).read()


def test_negative_masks_are_told(data):
    replace_file(data, MASK, lambda ids: -ids.astype(np.int8))
    case = Case("", None, "unknown-ids", "error", "train_00.tif", "8-bit PNG", "values from -1 to 0")
    assert_told(case, told(data))


# --- types that are not read ---

GREY = np.zeros((12, 16))
UNREAD = {
    "float64": (GREY, 1, "one band of float64, marked as grey", "as uint16 or float32"),
    "float16": (GREY.astype(np.float16), 1, "one band of float16, marked as grey", "as uint16 or float32"),
    "int64": (GREY.astype(np.int64), 1, "one band of int64", "a mask as an 8-bit PNG"),
    "complex": (GREY.astype(np.complex64), 1, "one band of complex64", "as uint16 or float32"),
    "RGB float32": (np.zeros((12, 16, 3), np.float32), 2, "3 bands of float32, marked as RGB", "scale them"),
    "4 bands": (np.zeros((12, 16, 4), np.uint8), 1, "4 bands of uint8, marked as grey", "Choose three bands"),
    "5 bands": (np.zeros((12, 16, 5), np.uint8), 1, "5 bands of uint8, marked as grey", "Choose three bands"),
    "2 bands": (np.zeros((12, 16, 2), np.uint16), 1, "2 bands of uint16", "Save one band"),
    "other": (np.zeros((12, 16), np.uint8), 9, "marked as PhotometricInterpretation 9", "8-bit PNG"),
}


@pytest.mark.parametrize(("values", "meaning", "found", "fix"), UNREAD.values(), ids=UNREAD.keys())
def test_unread_types_are_named(tmp_path, values, meaning, found, fix):
    write_tiff(tmp_path / "a.tif", values, meaning)
    with pytest.raises(DataError) as caught:
        read_pixels(tmp_path / "a.tif")
    for part in ("a.tif is a TIFF with ", found, "; read are one band of uint8, uint16", fix):
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int8", "int16", "int32", "float32"])
def test_what_is_said_to_be_read_is_read(tmp_path, kind):
    read_pixels(write_tiff(tmp_path / "a.tif", (RAMP % 100).astype(kind)))
    np.testing.assert_array_equal(MaskFile(tmp_path / "a.tif").read(), RAMP % 100)
    if kind in ("uint8", "uint16"):
        read_pixels(write_tiff(tmp_path / "a.tif", np.dstack([RAMP.astype(kind)] * 3), meaning=2))


def test_unread_compression_is_named(tmp_path):
    write_tiff(tmp_path / "a.tif", RAMP.astype(np.uint8), compression=50002)
    with pytest.raises(DataError, match=r"compression \(number 50002\) is not read\. Save it with Defl"):
        read_pixels(tmp_path / "a.tif")


def test_damaged_tags_are_no_type(tmp_path):
    content = write_tiff(tmp_path / "a.tif", GREY).read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-60])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize(("name", "code"), [(PICTURE, "unreadable-image"), (MASK, "unreadable-mask")])
def test_unread_types_are_told(data, name, code):
    replace_file(data, name, lambda values: values.reshape(*values.shape[:2], -1)[..., 0].astype(float))
    assert_told(Case("", None, code, "error", "train_00.tif", "Save an image as", "float64"), told(data))


# --- bands that are not read ---


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_dropped_bands_of_images_are_told(data, kind):
    replace_file(data, PICTURE, lambda rgb: np.dstack([rgb, rgb[..., :1]]).astype(kind), meaning=2, extra=[0])
    case = Case("", None, "dropped-bands", "warning", "train_00.tif", "near infrared", "1 more band")
    assert_told(case, told(data))


def test_dropped_bands_of_masks_are_told(data):
    replace_file(data, MASK, lambda ids: np.dstack([ids, ids]), extra=[0])
    case = Case("", None, "dropped-bands", "warning", "train_00.tif", "8-bit PNG", "1 more band")
    assert_told(case, told(data))


def opaque(rgb):
    return np.dstack([rgb, np.full_like(rgb[..., 0], 255)])


@pytest.mark.parametrize("extra", [1, 2])
def test_opaque_alpha_is_no_dropped_band(data, extra):
    replace_file(data, PICTURE, opaque, meaning=2, extra=[extra])
    assert told(data) == []


@pytest.mark.parametrize("extra", [1, 2])
def test_a_band_that_is_marked_as_alpha_is_told(data, extra):
    """As tifffile marks the fourth band of red, green, blue and near infrared."""
    replace_file(data, PICTURE, lambda rgb: np.dstack([rgb, rgb[..., :1]]), meaning=2, extra=[extra])
    case = Case("", None, "image-alpha", "warning", "train_00.tif", "near infrared", "varies from")
    assert_told(case, told(data))


def test_labels_are_read_as_they_were_checked(data):
    replace_masks(data, lambda ids: ids * np.uint8(255), meaning=0)
    dataset = check_dataset(data).dataset
    pair = dataset.splits["train"][0]
    want = np.array(Image.open(pair.mask.path)) == 0  # Pillow has turned it round
    np.testing.assert_array_equal(read_label(pair.mask, dataset.encoding), want)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_overviews_and_an_internal_mask_are_no_pages(tmp_path, kind):
    """As Cloud Optimized GeoTIFFs hold them; a second picture is still refused."""
    values = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3, np.ones((16, 16), np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        options = {"height": 128, "width": 128, "count": 1, "dtype": "uint8"}
        options |= {"compress": "deflate"} if kind == "image" else {}
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **options) as file:
            file.write(values, 1)
            file.write_mask(values > 0)
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            file.build_overviews([2, 4])
            assert file.overviews(1) == [2, 4]

    def read(path):
        return MaskFile(path).read() if kind == "mask" else read_pixels(path)[..., 0]

    np.testing.assert_array_equal(read(tmp_path / "a.tif"), values)
    picture = Image.fromarray(values)
    picture.save(tmp_path / "b.tif", save_all=True, append_images=[picture])
    with pytest.raises(DataError, match="pages"):
        read(tmp_path / "b.tif")
