"""Images from maps: pixels that the file declares as 'no data'."""

import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from breaks import MASK, PICTURE, Case, assert_told, edit
from convlora.data.check import check_dataset
from convlora.data.images import open_image, read_image
from convlora.data.map_tags import no_data_value
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
