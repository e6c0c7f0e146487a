"""Prediction of arrays and files, against the steps written out."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from convlora.errors import ConfigError, DataError
from convlora.inference.device import autocast_dtype
from convlora.inference.files import predict_files
from convlora.inference.jobs import find_images
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter


@pytest.fixture(scope="module")
def predictor(small_backbone):
    model = Segmenter.from_backbone(str(small_backbone), ("background", "a", "b"))
    return Predictor(model, "cpu", "fp32")


def picture(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def write(path, height=40, width=64, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture(height, width, seed) * 255).astype(np.uint8)).save(path)
    return path


def test_native_size_and_probabilities(predictor):
    for size in ((40, 64), (64, 64), (300, 11)):
        result = predictor.predict(picture(*size))
        assert result.ids.shape == size
        assert result.ids.dtype == np.uint8
        assert result.probabilities.shape == (3, *size)
        torch.testing.assert_close(result.probabilities.sum(dim=0), torch.ones(size))
        assert (result.ids == result.probabilities.argmax(dim=0).numpy()).all()


def test_steps_written_out(predictor):
    """For an image of the encoder's own size, prediction is: normalise, run, upsample, softmax."""
    image = picture(64, 64)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        logits = predictor.segmenter(pixels[None]).mask_logits
    want = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False).softmax(dim=1)[0]
    got = predictor.predict(image).probabilities
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # two implementations of bilinear sampling
    assert want.std() > 0


def test_padding_does_not_matter(predictor):
    """What lies in the padding is cut away: the map of a wide image is that of its own rows."""
    wide = picture(32, 64)
    assert predictor.predict(wide).probabilities.shape == (3, 32, 64)


def test_half_precision_is_close(small_backbone, predictor):
    model = Segmenter.from_backbone(str(small_backbone), ("background", "a", "b"))
    half = Predictor(model, "cpu", "bf16").predict(picture(48, 64)).probabilities
    full = predictor.predict(picture(48, 64)).probabilities
    assert not torch.equal(half, full)
    assert (half - full).abs().max() < 0.1  # 8 bits of mantissa through two blocks and the decoder


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_names(name, dtype):
    assert autocast_dtype(name, torch.device("cpu")) is dtype
    assert autocast_dtype("auto", torch.device("cpu")) in {None, torch.bfloat16}
    assert autocast_dtype("auto", torch.device("mps")) is None


def test_a_bad_file_does_not_stop_the_others(predictor, tmp_path):
    for name in ("a", "c"):
        write(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    outcome = predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert [image.name for image, _ in outcome.failures] == ["b.png"]
    assert "b.png cannot be read as an image" in outcome.failures[0][1]
    assert (outcome.written, outcome.skipped, outcome.stopped) == (2, 0, "")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "c.png"}


def test_same_names_are_refused_before_work(predictor, tmp_path):
    files = [write(tmp_path / "x" / "a.png"), write(tmp_path / "y" / "A.bmp")]
    with pytest.raises(DataError, match=r"x/a\.png and .*y/A\.bmp would both be written"):
        predict_files(predictor, files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_are_never_overwritten(predictor, tmp_path):
    file = write(tmp_path / "a.png")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite an input"):
        predict_files(predictor, [file], tmp_path, existing="overwrite")
    with pytest.raises(ConfigError, match="is a folder of inputs"):
        predict_files(predictor, [tmp_path], tmp_path, existing="overwrite")
    assert file.read_bytes() == before


def test_folders_and_files(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in find_images([tmp_path])] == ["a.JPG", "b.png"]
    with pytest.raises(DataError, match=r"no\.png does not exist"):
        find_images([tmp_path / "no.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no image\. Readable are: bmp, jpeg"):
        find_images([tmp_path / "empty"])


def test_bands_that_are_not_read_are_told(predictor, tmp_path, capsys):
    """Predicted images need not have been checked: alpha, which may be near infrared, and bands beside it."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "in").mkdir()
    for name, alpha in (("a.png", ramp), ("b.png", np.full_like(ramp, 255)), ("c.png", ramp)):
        Image.fromarray(np.dstack([ramp, ramp, ramp, alpha])).save(tmp_path / "in" / name)
    Image.fromarray(np.dstack([ramp] * 4), "RGBX").save(tmp_path / "in" / "d.tif")
    assert predict_files(predictor, [tmp_path / "in"], tmp_path / "out").written == 4
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'in' / 'a.png'} and 1 more: an alpha channel that varies" in said
    assert f"warning: {tmp_path / 'in' / 'd.tif'}: more bands than are read, and not alpha." in said
    assert said.count("near infrared") == said.count("warning") == 2


def test_deep_colour_is_told_once(predictor, tmp_path, capsys):
    """Of 12 bits in 16 next to nothing is left, and predicted images need not have been checked."""
    bands = np.full((20, 30, 3), 4000, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in bands)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    write(tmp_path / "in" / "plain.png")
    predict_files(predictor, [tmp_path / "in"], tmp_path / "first")
    assert capsys.readouterr().err == ""
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(content)
    assert predict_files(predictor, [tmp_path / "in"], tmp_path / "out").written == 3
    said = capsys.readouterr().err
    assert said.startswith(
        f"warning: {tmp_path / 'in' / 'a.png'} and 1 more: 16 bits a channel, of which only"
    )
    assert "Scale it to 8 bits a channel and save it as PNG, or as GeoTIFF if it is a map (docs/rear" in said
    assert said.endswith("program, which keeps the place).\n")
    assert said.count("warning") == 1
