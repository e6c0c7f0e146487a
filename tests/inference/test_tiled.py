"""Prediction in tiles: the model on each tile, blended; the same from Python, `predict` and `evaluate`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import convlora
from convlora.checkpoint import from_pretrained
from convlora.data.transforms import apply_image, fit_geometry, invert, normalize
from convlora.errors import ConfigError, DataError
from convlora.inference import predictor as predictor_module
from convlora.inference import tiled
from convlora.inference.files import predict_files
from convlora.inference.predictor import Predictor
from convlora.inference.tiles import Tiles, plan_tiles
from convlora.model import Segmenter

TILE, OVERLAP = 40, 12


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module", params=["per-class", "mask-classification", "binary"])
def model(request, small_backbone):
    names = ("background", "a", "b")[: 2 if request.param == "binary" else 3]
    model = Segmenter.from_backbone(str(small_backbone), names, head=request.param)
    model.decoder.mask_tokens.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    for parameter in model.decoder.output_hypernetworks_mlps.parameters():
        parameter.data *= 5  # an untrained model has about the same scores everywhere
    return model


@pytest.fixture
def in_tiles(model):
    return Predictor(model, "cpu", "fp32", tile=TILE, tile_overlap=OVERLAP)


def slow(model, image):
    """Probabilities from float64 weighted means of the scores of the tiles."""
    total = 0
    for t in plan_tiles(image.shape[:2], Tiles(TILE, OVERLAP)):
        part = torch.from_numpy(image[t.top : t.bottom, t.left : t.right].astype(np.float32) / 255).permute(
            2, 0, 1
        )
        geometry = fit_geometry(part.shape[1:], 64, model.config.resize)
        with torch.no_grad():
            output = model(normalize(apply_image(part, geometry))[None])
        scores = invert(model.head.scores(output)[0], geometry).double()
        whole = torch.zeros(len(scores), *image.shape[:2], dtype=torch.float64)
        weights = torch.from_numpy(np.outer(t.row_weights, t.column_weights))
        whole[:, t.top : t.bottom, t.left : t.right] = scores * weights
        total = total + whole
    return model.head.probabilities(total[None])[0]


@pytest.mark.parametrize("size", [(100, 70), (30, 90), (41, 40)])
def test_steps_written_out(model, in_tiles, size):
    image = pixels(*size)
    got, want = in_tiles.predict(image), slow(model, image)
    assert got.ids.shape == size
    assert (got.ids == got.probabilities.argmax(dim=0).numpy()).all()
    torch.testing.assert_close(got.probabilities, want.float(), rtol=0, atol=1e-5)  # parts of 2^-20, float32
    whole = Predictor(model, "cpu", "fp32").predict(image).probabilities
    assert (whole - got.probabilities).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(40, 40), (7, 33)])
def test_an_image_no_larger_than_a_tile_is_the_ordinary_prediction(model, in_tiles, size):
    want = Predictor(model, "cpu", "fp32").predict(pixels(*size))
    got = in_tiles.predict(pixels(*size))
    assert got.probabilities.equal(want.probabilities)
    assert (got.ids == want.ids).all()


def test_floats_and_bytes(in_tiles):
    image = pixels(60, 70)
    want = in_tiles.predict(image).probabilities
    assert in_tiles.predict(image / np.float32(255)).probabilities.equal(want)
    assert want.std() > 0


def test_probabilities_that_nobody_asks_for(in_tiles, monkeypatch):
    image = pixels(60, 70)
    want = in_tiles.predict(image)
    made = []

    class Counted(tiled.Collected):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(predictor_module, "Collected", Counted)
    monkeypatch.setattr(predictor_module, "_KEPT", 60 * 70 * 8 - 1)  # too small for two classes or more
    got = in_tiles.predict(image)
    assert (got.ids == want.ids).all()
    assert made == []
    assert got.probabilities.equal(want.probabilities)
    assert got.probabilities is got.probabilities
    assert len(made) == 1


def test_rows_need_tiles(model):
    with pytest.raises(ConfigError, match=r"no tiles to predict in rows\. Give the predictor a tile"):
        Predictor(model, "cpu", "fp32").predict_rows(pixels(60, 70), tiled.forget)


def test_files(in_tiles, tmp_path):
    """Streamed into the files: the same as in Python; one file small, two large."""
    (tmp_path / "in").mkdir()
    for name, size in (("a", (60, 70)), ("b", (30, 20)), ("c", (90, 41))):
        Image.fromarray(pixels(*size)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"x")
    outcome = predict_files(in_tiles, [tmp_path / "in"], tmp_path / "out", overlay=True, probabilities=True)
    assert (outcome.written, [image.name for image, _ in outcome.failures]) == (3, ["bad.png"])
    assert len(list((tmp_path / "out").iterdir())) == 9
    for name in "abc":
        want = in_tiles.predict(tmp_path / "in" / f"{name}.png")
        assert (np.array(Image.open(tmp_path / "out" / f"{name}.png")) == want.ids).all()
        saved = np.load(tmp_path / "out" / f"{name}_probabilities.npy")
        assert saved.dtype == np.float16
        assert (saved == want.probabilities.numpy().astype(np.float16)).all()
        assert saved.std() > 0
        assert np.array(Image.open(tmp_path / "out" / f"{name}_overlay.png")).shape == (*want.ids.shape, 3)


def test_a_full_disk_while_probabilities_are_written(in_tiles, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.fromarray(pixels(60, 70)).save(tmp_path / "in" / f"{name}.png")
    write, written = tiled_write(), []

    def full(self, top, rows):
        written.append(top)
        if len(written) > 4:  # of three bands an image
            raise OSError(28, "No space left on device")
        write(self, top, rows)

    monkeypatch.setattr("convlora.inference.arrays.NpyRows.write", full)
    outcome = predict_files(in_tiles, [tmp_path / "in"], tmp_path / "out", probabilities=True)
    assert "b_probabilities.npy cannot be written: No space left" in outcome.stopped
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "a_probabilities.npy"}


def tiled_write():
    from convlora.inference.arrays import NpyRows

    return NpyRows.write


# --- errors ---


def test_values_that_are_not_finite(binary_adapter):
    model = from_pretrained(binary_adapter)
    model.decoder.mask_tokens.weight.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"not finite for this image\. Use precision fp32"):
        Predictor(model, "cpu", "fp32", tile=32).predict(pixels(40, 40))


def test_too_large_for_the_memory(in_tiles, model, monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Predictor, "_run", full)
    with pytest.raises(
        DataError, match=r"60 x 70 pixels does not fit .* of cpu\. Use smaller tiles, or make it"
    ):
        in_tiles.predict(pixels(60, 70))
    with pytest.raises(DataError, match=r"Cut it into tiles with --tile \(Python: tile=\), or make it"):
        Predictor(model, "cpu", "fp32").predict(pixels(60, 70))


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_bad_tiles_show_before_the_model_is_loaded(command, binary_data, tmp_path, name):
    end = [binary_data / "test" / "images", "--out", tmp_path / "out"] if name == "predict" else [binary_data]
    for options, message in (
        (["--tile", "16"], "tile is 16; it must be 32 pixels or more"),
        (["--tile", "64", "--tile-overlap", "32"], "tile_overlap is 32; it must be from 0 to 31"),
        (["--tile", "64", "--tile-overlap", "-1"], "tile_overlap is -1"),
        (["--tile-overlap", "8"], "tile_overlap is 8, but there is no tile"),
    ):
        code, _, error = command(name, tmp_path / "no-run", *end, *options)
        assert (code, message in error) == (2, True), error
    with pytest.raises(ConfigError, match="tile is 16"):
        convlora.load(tmp_path / "no-run", tile=16)
    with pytest.raises(ConfigError, match="tile is 16"):
        convlora.evaluate(tmp_path / "no-run", binary_data, tile=16)


# --- from the command line ---


def test_predict_and_evaluate(command, binary_adapter, binary_data, tmp_path):
    """`evaluate` scores just what `predict` writes with the same options."""
    options = ["--tile", 32, "--tile-overlap", 10, "--precision", "fp32", "--device", "cpu"]
    images = binary_data / "test" / "images"
    code, text, _ = command("predict", binary_adapter, images, "--out", tmp_path / "out", *options)
    assert (code, "Wrote 4 of 4 masks" in text) == (0, True)
    model = convlora.load(binary_adapter, device="cpu", precision="fp32", tile=32, tile_overlap=10)
    right = total = 0
    for file in sorted((tmp_path / "out").iterdir()):
        ids = np.array(Image.open(file))
        assert (ids == model.predict(images / file.name).ids).all()
        truth = np.array(Image.open(binary_data / "test" / "masks" / file.name))
        right, total = right + (ids == truth).sum(), total + truth.size
    code, _, error = command("evaluate", binary_adapter, binary_data, "--json", tmp_path / "s.json", *options)
    assert code == 0, error
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["pixel_accuracy"] == pytest.approx(right / total, abs=1e-12)
    assert (scores["tile"], scores["tile_overlap"]) == (32, 10)
    plain = convlora.evaluate(binary_adapter, binary_data)
    assert "tile" not in plain
    assert plain["mae"] != pytest.approx(scores["mae"], abs=1e-6)
    again = convlora.evaluate(binary_adapter, binary_data, tile=32, tile_overlap=10)
    assert again["tile_overlap"] == 10
