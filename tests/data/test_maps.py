"""Images from maps: pixels without data, and files that Pillow would read as other pixels."""

import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from breaks import MASK, PICTURE, Case, assert_told, edit
from convlora.data.check import check_dataset
from convlora.data.images import FileError, open_image, read_image
from convlora.data.map_tags import no_data_value, place_of
from convlora.data.report import asdict
from small import write_shapes

SHAPE = (20, 30)
RAMP = np.linspace(0, 1, 600).reshape(SHAPE)


def write_map(path, values, **options):
    """A GeoTIFF of (H, W) or (bands, H, W)."""
    bands = values[None] if values.ndim == 2 else values
    count, height, width = bands.shape
    size = {"count": count, "height": height, "width": width, "dtype": str(bands.dtype)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **size, **options) as file:
            file.write(bands)
    return path


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2})


def told(root):
    return [asdict(problem) for problem in check_dataset(root).problems]


def to_map(name, change, **options):
    """An image or a mask of a data set as a GeoTIFF."""

    def act(root):
        values = change(np.array(Image.open(root / name)))
        (root / name).unlink()
        bands = values if values.ndim == 2 else values.transpose(2, 0, 1)
        write_map((root / name).with_suffix(".tif"), bands, **options)

    return act


# --- 'no data' ---

EMPTY = {
    "float32": (np.float32, -9999, 0.4, 0),
    "the lowest float32": (np.float32, float(np.finfo(np.float32).min), 0.4, 0),
    "NaN": (np.float32, np.nan, 0.4, 0),
    "0 in uint16": (np.uint16, 0, 3000, 3000),
    "65535 in uint16": (np.uint16, 65535, 3000, 0),
    "int16": (np.int16, -32768, 3000, -1000),
    "int32": (np.int32, -(2**31), 3000, 0),
    "int8": (np.int8, -128, 100, 0),
    "uint32": (np.uint32, 2**32 - 1, 3000, 0),
}


@pytest.mark.parametrize(("kind", "number", "width", "low"), EMPTY.values(), ids=EMPTY.keys())
def test_pixels_without_data_change_no_others(tmp_path, kind, number, width, low):
    """A border of -9999 must not take the whole range."""
    values = (RAMP * width + low).astype(kind)
    alone = read_image(write_map(tmp_path / "a.tif", values[5:]))
    values[:5] = number
    read = read_image(write_map(tmp_path / "b.tif", values, nodata=number))
    assert no_data_value(open_image(tmp_path / "b.tif")) == pytest.approx(number, nan_ok=True)
    np.testing.assert_array_equal(read[5:], alone)
    assert (read[:5] == 0).all()
    assert np.ptp(alone) == 1


def test_the_lowest_float32_as_arcgis_writes_it(tmp_path):
    """Its text has fewer digits than the number."""
    values = np.float32(RAMP)
    alone = read_image(write_map(tmp_path / "a.tif", values[5:]))
    values[:5] = np.float32(-3.40282306074e38)
    write_map(tmp_path / "b.tif", values, nodata=float(values[0, 0]))
    content = (tmp_path / "b.tif").read_bytes()
    text = b"-3.4028230607370965e+38\0"
    assert text in content
    (tmp_path / "b.tif").write_bytes(content.replace(text, b"-3.40282306074e+38\0".ljust(len(text), b"\0")))
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif")[5:], alone)


@pytest.mark.parametrize("text", ["none", "", "1,5", "65536", "1.5", "1e400", "-inf", "-1", b"\xff\xfe"])
def test_a_value_that_is_no_number_of_the_type_changes_nothing(tmp_path, text):
    values = (RAMP * 3000).astype(np.uint16)
    for name, tags in (("a.tif", {}), ("b.tif", {42113: text})):
        Image.fromarray(values).save(tmp_path / name, tiffinfo=tags)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), read_image(tmp_path / "a.tif"))
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tif", tiffinfo={42113: "1e39"})
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), read_image(tmp_path / "a.tif"))


def test_eight_bits_are_read_as_they_are(tmp_path):
    values = (RAMP * 255).astype(np.uint8)
    read = read_image(write_map(tmp_path / "a.tif", values, nodata=200))
    np.testing.assert_array_equal(np.round(read[..., 0] * 255), values)


def border(kind, number=0, times=1):
    """All bands of the first 15 of 60 rows."""

    def change(rgb):
        values = rgb[..., 0].astype(kind) * kind(times) if kind is not np.uint8 else np.maximum(rgb, 1)
        values[:15] = number
        return values

    return change


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (border(np.float32, -9999), -9999),
        (border(np.float32, np.nan), np.nan),
        (border(np.uint16, 65535, 100), 65535),
        (border(np.uint8), 0),
        (lambda rgb: border(np.uint8, 7)(rgb)[..., 0], 7),
    ],
    ids=["float32", "NaN", "uint16", "RGB", "grey"],
)
def test_pixels_without_data_are_told(data, change, number):
    to_map(PICTURE, change, nodata=number)(data)
    case = Case("", None, "no-data", "warning", "train_00.tif", "give them 'ignore' (255)", "of its pixels")
    case = case._replace(remedy="Give them 'ignore' (255) in the mask: docs/rearrange.md")
    assert_told(case, told(data))
    (problem,) = check_dataset(data).problems
    share = float(problem.found.split(" %")[0])
    assert 25 <= share < 27  # a few more pixels may hold 7
    edit(MASK, lambda ids: np.where(np.arange(60)[:, None] < 17, 255, ids).astype(np.uint8))(data)
    assert told(data) == []


def test_255_is_foreground_where_no_mask_holds_1(data):
    for path in data.glob("*/masks/*.png"):
        Image.fromarray(np.array(Image.open(path)) * np.uint8(255)).save(path)
    to_map(PICTURE, border(np.uint8), nodata=0)(data)
    edit(MASK, lambda ids: np.where(np.arange(60)[:, None] < 17, 255, ids).astype(np.uint8))(data)
    assert [problem["code"] for problem in told(data)] == ["no-data"]


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (border(np.float32, -9999), {}),
        (lambda rgb: np.maximum(rgb, 1), {"nodata": 0}),
        (lambda rgb: np.dstack([rgb[..., 0] * 0, rgb[..., 1:] | 1]), {"nodata": 0}),  # in one band only
    ],
    ids=["not declared", "nowhere", "one band"],
)
def test_nothing_is_told_without_such_pixels(data, change, options):
    to_map(PICTURE, change, **options)(data)
    assert told(data) == []


def test_nan_beside_what_is_declared_is_still_told(data):
    def change(rgb):
        grey = border(np.float32, -9999)(rgb)
        grey[20, :7] = np.nan
        return grey

    to_map(PICTURE, change, nodata=-9999)(data)
    problems = {problem["code"]: problem["found"] for problem in told(data)}
    assert set(problems) == {"bad-pixels", "no-data"}
    assert problems["bad-pixels"].startswith("7 of 2400 pixels are NaN")


def test_nothing_but_nan_is_an_error_though_declared(data):
    to_map(PICTURE, lambda rgb: rgb[..., 0] * np.float32(np.nan), nodata=np.nan)(data)
    assert [problem.code for problem in check_dataset(data).errors] == ["bad-pixels"]


# --- what Pillow would read as garbage ---


def levels(kind):
    """Three bands, each of one value."""
    return np.stack([np.full((64, 96), value, kind) for value in (0x4011, 0x8022, 0xC033)])


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_bands_apart(tmp_path, interleave, compression, tiled):
    """Of 16 bits without compression Pillow makes pixels of the wrong bytes."""
    options = {"photometric": "RGB", "interleave": interleave, "tiled": tiled}
    options |= {"compress": compression} if compression else {}
    options |= {"blockxsize": 32, "blockysize": 32} if tiled else {}
    path = write_map(tmp_path / "a.tif", levels(np.uint16), **options)
    if interleave == "band" and compression is None:
        message = r"a\.tif is an uncompressed TIFF of more than 8 bits with each band by itself.*COMPRES"
        with pytest.raises(FileError, match=message) as caught:
            read_image(path)
        assert "(height, width, 3)" in caught.value.fix
    else:
        expected = np.broadcast_to([0x40, 0x80, 0xC0], (64, 96, 3))
        np.testing.assert_array_equal(np.round(read_image(path) * 255), expected)


def test_bands_apart_of_8_bits_are_read(tmp_path):
    bands = (levels(np.uint16) >> 8).astype(np.uint8)
    path = write_map(tmp_path / "a.tif", bands, photometric="RGB", interleave="band")
    np.testing.assert_array_equal(np.round(read_image(path) * 255), bands.transpose(1, 2, 0))


def test_three_bands_of_8_bits_that_are_marked_as_grey(tmp_path):
    bands = (levels(np.uint16) >> 8).astype(np.uint8)
    path = write_map(tmp_path / "a.tif", bands, photometric="MINISBLACK")
    with pytest.raises(FileError, match="3 bands of uint8, marked as grey") as caught:
        read_image(path)
    assert "gdal_translate -co PHOTOMETRIC=RGB" in caught.value.fix
    write_map(path, bands, photometric="RGB")  # as that command writes it
    np.testing.assert_array_equal(np.round(read_image(path) * 255), bands.transpose(1, 2, 0))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("compression", [{}, {"compress": "deflate"}])
def test_sparse_files_are_refused(tmp_path, tiled, compression):
    """Without compression the head of the file would be read as pixels."""
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64} if tiled else {"blockysize": 64}
    values = np.full((1, 200, 200), 77, np.uint8)
    path = write_map(tmp_path / "whole.tif", values, **options, **compression)
    np.testing.assert_array_equal(np.round(read_image(path)[..., 0] * 255), values[0])
    size = {"count": 1, "height": 200, "width": 200, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", SPARSE_OK=True, **size, **options, **compression
        ) as file:
            file.write(values[:, :64], window=rasterio.windows.Window(0, 0, 200, 64))
    with pytest.raises(FileError, match=r"a\.tif is a sparse TIFF: it leaves out.* gdal_translate -co COMPR"):
        read_image(tmp_path / "a.tif")


def test_a_compression_that_the_decoder_lacks(tmp_path, capfd):
    """Pillow names WebP in TIFFs, but its libtiff may be built without it."""
    path = write_map(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint8), compress="deflate")
    content = path.read_bytes()
    entry = (259).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    at = content.index(entry) + len(entry)
    path.write_bytes(content[:at] + (50001).to_bytes(2, "little") + content[at + 2 :])
    message = r"a\.tif is a TIFF with WebP compression, which cannot be read here, or is damaged\. Save"
    with pytest.raises(FileError, match=message):
        read_image(path)
    capfd.readouterr()  # libtiff's own words


@pytest.mark.parametrize("start", [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"])
def test_jpeg_2000_that_is_not_read(tmp_path, start):
    (tmp_path / "a.jp2").write_bytes(start + bytes(60))
    with pytest.raises(FileError, match=r"a\.jp2 cannot .*save it as a TIFF: gdal_translate -of GTiff"):
        read_image(tmp_path / "a.jp2")


def test_jpeg_2000_in_a_data_folder(data):
    (data / "train/images/more.jp2").write_bytes(b"x")
    case = Case("", None, "unread-format", "error", "more.jp2", "gdal_translate -of GTiff", "files .jp2")
    assert_told(case, told(data))


def test_what_lies_beside_maps_is_no_stray_file(data):
    for name in ("a.tfw", "a.JGW", "a.pgw", "a.wld", "a.prj", "a.tif.aux.xml", "a.tif.ovr"):
        (data / "train" / "images" / name).write_bytes(b"x")
    assert told(data) == []
    (data / "train" / "images" / "a.xml").write_bytes(b"x")
    (data / "train" / "images" / "b.prj").mkdir()
    assert {problem["code"] for problem in told(data)} == {"stray-file"}
    assert len(told(data)) == 2


# --- places on the map ---

NORTH_UP = Affine(10, 0, 500000, 0, -10, 5400000)
TURNED = NORTH_UP @ Affine.rotation(30)


def pair_at(root, image, mask):
    """The first pair as GeoTIFFs with these places."""
    to_map(PICTURE, np.array, **image)(root)
    to_map(MASK, np.array, **mask)(root)


def at(transform, crs="EPSG:32632"):
    return {"transform": transform, "crs": crs}


ELSEWHERE = {
    "to the side": (at(NORTH_UP), at(NORTH_UP @ Affine.translation(40, 30)), "corners are 50 pixels apart"),
    "a pixel": (at(NORTH_UP), at(NORTH_UP @ Affine.translation(0, 1)), "corners are 1 pixels apart"),
    "of half the size": (at(NORTH_UP), at(NORTH_UP @ Affine.scale(0.5)), "pixels apart"),
    "turned": (at(NORTH_UP), at(TURNED), "pixels apart"),
    "both turned": (at(TURNED), at(TURNED @ Affine.translation(3, 4)), "corners are 5 pixels apart"),
    "other system": (
        at(NORTH_UP),
        at(NORTH_UP, "EPSG:32633"),
        "in EPSG:32633, but its image in EPSG:32632",
    ),
    "degrees": (at(NORTH_UP), at(Affine(1e-4, 0, 9, 0, -1e-4, 48), "EPSG:4326"), "is in EPSG:4326, but its"),
    "no system": (
        at(NORTH_UP),
        at(NORTH_UP @ Affine.translation(40, 30), None),
        "corners are 50 pixels apart",
    ),
}


@pytest.mark.parametrize(("image", "mask", "found"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_masks_of_another_place_are_told(data, image, mask, found):
    pair_at(data, image, mask)
    case = Case(
        "", None, "map-position", "warning", "masks/train_00.tif", "with the extent of the image", found
    )
    assert_told(case, told(data))
    assert len(told(data)) == 1


POINT = GroundControlPoint(0, 0, 10.0, 50.0)
SAME = {
    "the same": (at(NORTH_UP), at(NORTH_UP)),
    "turned": (at(TURNED), at(TURNED)),
    "half a pixel": (at(NORTH_UP), at(NORTH_UP @ Affine.translation(0.5, 0.5))),
    "rounded": (at(NORTH_UP), at(NORTH_UP @ Affine.scale(1.001))),
    "mask without a place": (at(NORTH_UP), {}),
    "image without a place": ({}, at(NORTH_UP)),
    "mask without a system": (at(NORTH_UP), at(NORTH_UP, None)),
    "points": (at(NORTH_UP), {"gcps": [POINT, POINT], "crs": "EPSG:4326"}),
    "a system without a number": (
        at(NORTH_UP, "+proj=tmerc +lat_0=0 +lon_0=9.5 +k=1 +x_0=0 +y_0=0 +datum=WGS84 +units=m"),
        at(NORTH_UP),
    ),
}


@pytest.mark.parametrize(("image", "mask"), SAME.values(), ids=SAME.keys())
def test_masks_of_the_same_place_pass(data, image, mask):
    pair_at(data, image, mask)
    assert told(data) == []


def test_a_matrix_that_has_no_inverse_is_no_place(tmp_path):
    for transform in (Affine(0, 0, 1, 0, 0, 1), Affine(1, 0, np.nan, 0, 1, 0)):
        path = write_map(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), **at(transform))
        assert place_of(open_image(path)) is None
    assert place_of(open_image(write_map(path, np.zeros((8, 8), np.uint8), **at(TURNED)))) is not None
