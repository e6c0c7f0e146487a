"""Masks on the map: the georeference of the image, tag by tag and as GDAL reads it; and what has none."""

import sys
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from convlora.data.images import read_pixels
from convlora.data.labels import MaskFile
from convlora.errors import ConfigError, MissingExtraError
from convlora.inference.files import predict_files
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter

#: ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams.
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
NORTH_UP = Affine(0.3, 0, 500_000, 0, -0.3, 5_200_000)
ROTATED = Affine.translation(5e5, 5.2e6) @ Affine.rotation(30) @ Affine.scale(0.5, -0.25)
POINTS = [GroundControlPoint(*at) for at in ((0, 0, 10.0, 50.0), (0, 64, 11.0, 50.0), (40, 0, 10.0, 49.0))]


@pytest.fixture(scope="module")
def predictor(small_backbone):
    model = Segmenter.from_backbone(str(small_backbone), ("background", "a", "b"))
    return Predictor(model, "cpu", "fp32")


def write(path, size=(40, 64), driver="GTiff", **place):
    """A picture with a place on the map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        height, width = size
        kind = {"driver": driver, "height": height, "width": width, "count": 3, "dtype": "uint8"}
        with rasterio.open(path, "w", **kind, **place) as file:
            file.write(pixels)
    return path


def tags(path):
    with Image.open(path) as image:
        return {tag: image.tag_v2[tag] for tag in GEO_TAGS if tag in image.tag_v2}


@pytest.mark.parametrize(
    "place",
    [
        {"crs": "EPSG:32632", "transform": NORTH_UP},
        {"crs": "EPSG:4326", "transform": ROTATED},
        {"transform": NORTH_UP},
    ],
)
@pytest.mark.parametrize("size", [(40, 64), (40, 700)])
def test_the_mask_lies_where_the_image_lies(predictor, tmp_path, place, size):
    image = write(tmp_path / "in" / "a.tif", size, **place)
    assert predict_files(predictor, [image], tmp_path / "out", geotiff=True).written == 1
    mask = tmp_path / "out" / "a.tif"
    assert tags(mask) == tags(image)
    assert len(tags(mask)) >= 1
    ids = MaskFile(tmp_path / "out" / "a.png").read()
    np.testing.assert_array_equal(MaskFile(mask).read(), ids)
    np.testing.assert_array_equal(ids, predictor.predict(image).ids)
    assert len(np.unique(ids)) > 1
    with rasterio.open(image) as before, rasterio.open(mask) as after:
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert after.nodata is None
        colours = after.colormap(1)
    with Image.open(tmp_path / "out" / "a.png") as png:
        palette = np.array(png.getpalette()).reshape(-1, 3)
    assert all(colours[i][:3] == tuple(colour) for i, colour in enumerate(palette))


@pytest.mark.parametrize("known", [CRS.from_epsg(4326), CRS()])
def test_control_points(predictor, tmp_path, known):
    image = write(tmp_path / "in" / "a.tif", gcps=POINTS, crs=known)
    predict_files(predictor, [image], tmp_path / "out", geotiff=True)
    assert tags(tmp_path / "out" / "a.tif") == tags(image) != {}
    with rasterio.open(tmp_path / "out" / "a.tif") as file:
        points, crs = file.gcps
    assert (crs or CRS()) == known
    assert [(p.row, p.col, p.x, p.y) for p in points] == [(p.row, p.col, p.x, p.y) for p in POINTS]


def test_a_world_file_beside_the_image(predictor, tmp_path):
    image = tmp_path / "in" / "a.png"
    write(image, driver="PNG")
    image.with_suffix(".pgw").write_text("0.3\n0\n0\n-0.3\n500000\n5200000\n")  # of the first pixel's middle
    predict_files(predictor, [image], tmp_path / "out", geotiff=True)
    with rasterio.open(tmp_path / "out" / "a.tif") as file:
        assert file.transform.almost_equals(Affine(0.3, 0, 499_999.85, 0, -0.3, 5_200_000.15))
        assert file.crs is None


def test_no_coordinate_system_is_told(predictor, tmp_path, capsys):
    """The .prj beside a world file is not read."""
    for name in ("a", "b"):
        image = write(tmp_path / "in" / f"{name}.jpg", driver="JPEG")
        image.with_suffix(".jgw").write_text("0.3\n0\n0\n-0.3\n500000\n5200000\n")
        image.with_suffix(".prj").write_text(CRS.from_epsg(32632).to_wkt())
    write(tmp_path / "in" / "c.tif", crs="EPSG:32632", transform=NORTH_UP)
    write(tmp_path / "in" / "d.tif", gcps=POINTS, crs="EPSG:4326")
    assert predict_files(predictor, [tmp_path / "in"], tmp_path / "out", geotiff=True).written == 4
    said = capsys.readouterr().err
    assert said.startswith(
        f"warning: {tmp_path / 'in' / 'a.jpg'} and 1 more: no coordinate system, so the Geo"
    )
    assert said.endswith("gdal_edit.py -a_srs EPSG:NUMBER NAME.tif.\n")
    assert said.count("warning") == 1
    predict_files(predictor, [tmp_path / "in"], tmp_path / "masks")
    assert capsys.readouterr().err == ""  # no GeoTIFF is written


def test_images_without_a_place_fail_and_stop_no_others(predictor, tmp_path):
    write(tmp_path / "in" / "a.tif", transform=NORTH_UP)
    write(tmp_path / "in" / "b.tif")
    turned = Image.fromarray(read_pixels(tmp_path / "in" / "b.tif"))
    turned.save(tmp_path / "in" / "c.jpg", exif=exif_of_turn(6))
    (tmp_path / "in" / "c.jgw").write_text("0.3\n0\n0\n-0.3\n500000\n5200000\n")
    (tmp_path / "in" / "d.tif").write_bytes(b"")
    outcome = predict_files(predictor, [tmp_path / "in"], tmp_path / "out", geotiff=True)
    assert outcome.written == 1
    told = {path.name: message for path, message in outcome.failures}
    assert "has no georeference: neither an affine transform nor ground control poi" in told["b.tif"]
    assert told["b.tif"].endswith("Leave out --geotiff for it.")
    assert "is turned by its orientation tag, so its georeference does not fit the mask." in told["c.jpg"]
    assert "the file is empty" in told["d.tif"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "a.tif"]


def exif_of_turn(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def test_only_what_is_missing_is_written(predictor, tmp_path):
    image = write(tmp_path / "in" / "a.tif", crs="EPSG:32632", transform=NORTH_UP)
    predict_files(predictor, [image], tmp_path / "out")
    kept = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert predict_files(predictor, [image], tmp_path / "out", geotiff=True, existing="skip").written == 1
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == kept
    assert tags(tmp_path / "out" / "a.tif") == tags(image)
    assert predict_files(predictor, [image], tmp_path / "out", geotiff=True, existing="skip").skipped == 1
    with pytest.raises(ConfigError, match=r"exists? already"):
        predict_files(predictor, [image], tmp_path / "out", geotiff=True)


def test_an_image_is_never_written_over(predictor, tmp_path):
    image = write(tmp_path / "a.tif", transform=NORTH_UP)
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite an input"):
        predict_files(predictor, [image], tmp_path, geotiff=True, existing="overwrite")
    assert image.read_bytes() == before


def test_without_rasterio(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"(?s)--geotiff needs .*'rasterio'.*'convlora\[geo\]'"):
        predict_files(predictor, [tmp_path], tmp_path / "out", geotiff=True)


def test_on_the_command_line(command, small_backbone, tmp_path):
    from convlora.checkpoint import save_pretrained

    model = Segmenter.from_backbone(str(small_backbone), ("background", "a"))
    save_pretrained(model, tmp_path / "model")
    image = write(tmp_path / "in" / "a.tif", crs="EPSG:32632", transform=NORTH_UP)
    code, text, _ = command("predict", tmp_path / "model", image, "--out", tmp_path / "out", "--geotiff")
    assert (code, "Wrote 1 of 1 masks" in text) == (0, True)
    assert tags(tmp_path / "out" / "a.tif") == tags(image) != {}
