"""The programs of docs/rearrange.md do what the page says, as they stand there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.warp import transform_geom

from convlora.data.images import read_pixels
from convlora.data.labels import MaskFile
from convlora.data.masks import save_mask
from convlora.data.palette import read_palette

PAGE = (Path(__file__).parent.parent / "docs" / "rearrange.md").read_text(encoding="utf-8")
PLACE = {"crs": "EPSG:32632", "transform": Affine(10, 0, 500000, 0, -10, 5400000)}


def blocks(title: str, kind: str = "python") -> list[str]:
    return re.findall(
        rf"^```{kind}\n(.*?)^```$", PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0], re.M | re.S
    )


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks", "bands", "scenes/images", "scenes/masks"):
        (tmp_path / name).mkdir(parents=True)


def run(title: str) -> None:
    (code,) = blocks(title)
    exec(compile(code, title, "exec"), {})


def write_map(file: Path, values: np.ndarray) -> None:
    count, height, width = values.shape
    size = {"count": count, "height": height, "width": width, "dtype": str(values.dtype)}
    with rasterio.open(
        file, "w", driver="GTiff", nodata=65535 if values.dtype == np.uint16 else None, **size, **PLACE
    ) as opened:
        opened.write(values)


@pytest.mark.parametrize("colour", [(250, 250, 250), (255, 0, 0), (0, 0, 255)])
def test_a_threshold(colour):
    truth = np.kron(np.arange(64).reshape(8, 8) % 3 == 0, np.ones((16, 16), bool))
    pixels = np.where(truth[..., None], colour, 6).astype(np.uint8)
    Image.fromarray(pixels).save("masks/a.jpg", quality=95)
    run("Masks with shades")
    np.testing.assert_array_equal(MaskFile(Path("masks/a.png")).read(), 255 * truth)


def test_palettes():
    found = []
    for text in blocks("Other meanings of the values of a mask", ""):
        Path("palette.txt").write_text(text, encoding="utf-8")
        palette = read_palette(Path("palette.txt"))
        values = np.array([[colour[0] for colour in palette.colours]], np.uint8)
        Image.fromarray(values).save("masks/a.png")
        ids = MaskFile(Path("masks/a.png"), palette).read()[0]
        found.append((palette.classes, dict(zip(values[0].tolist(), ids.tolist(), strict=True))))
    assert found == [
        (("wheat", "maize"), {0: 255, 1: 0, 2: 1}),
        (("cell", "membrane"), {255: 0, 0: 1}),
        (("background", "road"), {0: 0, 255: 1, 128: 255}),
    ]


def test_areas_without_data():
    deep = np.arange(1, 81, dtype=np.uint16).reshape(1, 8, 10)
    deep[:, 2:, :3] = 65535
    write_map(Path("images/deep.tif"), deep)
    rgba = np.full((4, 8, 10), 200, np.uint8)
    rgba[3, :5] = 0
    write_map(Path("images/rgba.tif"), rgba)
    ids = np.arange(80, dtype=np.uint8).reshape(8, 10) % 3
    for name in ("deep", "rgba"):
        save_mask(Path(f"masks/{name}.png"), ids)
    run("Areas without data")
    for name, empty in (("deep", deep[0] == 65535), ("rgba", rgba[3] == 0)):
        np.testing.assert_array_equal(MaskFile(Path(f"masks/{name}.png")).read(), np.where(empty, 255, ids))
        assert empty.any() != empty.all()


def test_ids_without_colours():
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(ids)
    image.putpalette([9, 9, 9, 200, 0, 0] + 30 * [7])
    image.save("masks/a.png")
    run("Indexed masks whose palettes differ")
    with Image.open("masks/a.png") as written:
        assert written.mode == "L"
        np.testing.assert_array_equal(np.asarray(written), ids)


@pytest.mark.parametrize("end", ["", "_0000"])
def test_slices_of_volumes(end):
    import nibabel

    rng = np.random.default_rng(0)
    volume, ids = rng.integers(-500, 500, (6, 8, 3)), rng.integers(0, 4, (6, 8, 3))
    for folder in ("imagesTr", "labelsTr"):
        Path(folder).mkdir()
    for name, values, kind in ((f"imagesTr/a{end}", volume, np.int16), ("labelsTr/a", ids, np.uint8)):
        nibabel.save(nibabel.Nifti1Image(values.astype(kind), np.eye(4)), f"{name}.nii.gz")
    for folder in ("images", "masks"):
        Path(folder).rmdir()
    run("NIfTI volumes")
    expected = (np.clip((volume + 160) / 400, 0, 1) * 255).astype(np.uint8)
    for i in range(3):
        mask = MaskFile(Path(f"masks/a_{i:03}.png")).read()
        np.testing.assert_array_equal(mask, ids[:, :, i].T)
        pixels = read_pixels(Path(f"images/a_{i:03}.png"))
        np.testing.assert_array_equal(pixels[..., 0], expected[:, :, i].T)


def test_three_of_four_bands():
    bands = np.random.default_rng(0).integers(0, 5000, (4, 8, 10), dtype=np.uint16)
    write_map(Path("bands/a.tif"), bands)
    Path("images").rmdir()
    run("More than three bands")
    expected = (np.clip(bands[[3, 2, 1]] / 3000, 0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_pixels(Path("images/a.tif")), expected.transpose(1, 2, 0))
    with rasterio.open("images/a.tif") as image:
        assert (image.crs, image.transform) == (
            rasterio.crs.CRS.from_string(PLACE["crs"]),
            PLACE["transform"],
        )


@pytest.mark.parametrize("system", [None, "urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::32632"])
def test_polygons(system):
    write_map(Path("images/a.tif"), np.zeros((1, 8, 10), np.uint8))
    left, top = 500020, 5399990  # columns 2 to 5, rows 1 to 4
    square = [(left, top), (left + 40, top), (left + 40, top - 40), (left, top - 40), (left, top)]
    shape = {"type": "Polygon", "coordinates": [square]}
    if system is None or system.endswith("CRS84"):
        shape = transform_geom(PLACE["crs"], "EPSG:4326", shape)
    empty = {"type": "Feature", "properties": {"crop": 1}, "geometry": None}
    features = [empty, {"type": "Feature", "properties": {"crop": 2}, "geometry": shape}]
    content = {"type": "FeatureCollection", "features": features}
    content |= {"crs": {"type": "name", "properties": {"name": system}}} if system else {}
    Path("fields.geojson").write_text(json.dumps(content), encoding="utf-8")
    Path("masks").rmdir()
    run("Polygons on a map")
    expected = np.full((8, 10), 255, np.uint8)
    expected[1:5, 2:6] = 2
    np.testing.assert_array_equal(MaskFile(Path("masks/a.png")).read(), expected)


@pytest.mark.filterwarnings("ignore:Use `@`:PendingDeprecationWarning")  # rasterio's own arithmetic
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_pieces_of_a_large_file(bands):
    Path("large").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (bands, 30, 50), dtype=np.uint8)
    write_map(Path("large/a.tif"), values)
    (code,) = blocks("Files that are too large")
    assert "side = 8192\n" in code
    exec(compile(code.replace("8192", "20"), "pieces", "exec"), {})
    assert len(list(Path("pieces").iterdir())) == 6
    colours = values[:3] if bands > 1 else values.repeat(3, axis=0)
    joined = np.zeros((30, 50, 3), np.uint8)
    for file in Path("pieces").iterdir():
        top, left = map(int, file.stem.split("_")[1:])
        piece = read_pixels(file)
        joined[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
        with rasterio.open(file) as image:
            assert image.crs == rasterio.crs.CRS.from_string(PLACE["crs"])
            assert image.transform == PLACE["transform"] @ Affine.translation(left, top)
    np.testing.assert_array_equal(joined, colours.transpose(1, 2, 0))
