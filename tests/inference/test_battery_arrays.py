"""Arrays that `Predictor.predict` takes and refuses, devices, and values that are not finite."""

import numpy as np
import pytest

from convlora.checkpoint import from_pretrained
from convlora.errors import ConfigError, DataError
from convlora.inference.device import choose_device
from convlora.inference.predictor import Predictor
from small import write_image


@pytest.fixture(scope="module")
def predictor(binary_adapter):
    return Predictor(from_pretrained(binary_adapter), "cpu", "fp32")


PIXELS = np.full((8, 8, 3), 0.5, np.float32)
ARRAYS = {
    "0 to 255 as float": (PIXELS * 255, "values from 127.5 to 127.5; floats must be from 0 to 1. Divide"),
    "negative": (PIXELS - 1, "values from -0.5 to -0.5"),
    "NaN": (np.where(np.arange(3) == 1, np.nan, PIXELS), "values from nan to nan"),
    "infinite": (np.full((8, 8, 3), np.inf), "values from inf to inf"),
    "int64": ((PIXELS * 255).astype(np.int64), "array of int64; it must be uint8, 0 to 255, or float"),
    "uint16": ((PIXELS * 255).astype(np.uint16), "array of uint16"),
    "uint16 as files": (
        (PIXELS * 255).astype(np.uint16),
        "(image >> 8).astype(np.uint8). Grey files of",
    ),
    "int64 as files": (
        (PIXELS * 255).astype(np.int64),
        "arrays are not; for the same pass stretch_grey(",
    ),
    "float as files": (PIXELS * 255, "stretched between their 0.1 and 99.9 percentile, arrays are not;"),
    "bool": (PIXELS > 0, "array of bool"),
    "grey": (PIXELS[..., 0], "shape (8, 8); it must be (height, width, 3)"),
    "grey as it is": (PIXELS[..., 0], "What is from 0 to 1 as it is: np.repeat(grey[..., None], 3, axis=2)."),
    "deep grey": (np.zeros((8, 8), np.uint16), "stretch_grey(image), from convlora.data.images."),
    "grey of 8 bits": (np.zeros((8, 8), np.uint8), "RGB. Repeat a grey image three times: np.repeat(grey["),
    "RGBA": (np.zeros((8, 8, 4), np.uint8), "shape (8, 8, 4)"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "shape (3, 8, 8)"),
    "batch": (PIXELS[None], "shape (1, 8, 8, 3)"),
    "empty": (np.zeros((0, 8, 3), np.uint8), "shape (0, 8, 3)"),
    "list": ([[1]], "The image is a list; give a path or a NumPy array"),
    "none": (None, "The image is a NoneType; give a path"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_bad_arrays(predictor, name):
    image, message = ARRAYS[name]
    with pytest.raises(DataError) as caught:
        predictor.predict(image)
    assert message in str(caught.value)


def test_good_arrays(predictor):
    want = predictor.predict(PIXELS).probabilities
    assert want.std() > 0
    assert predictor.predict(PIXELS.astype(np.float64)).probabilities.equal(want)
    assert predictor.predict(PIXELS[::-1]).probabilities.equal(want)  # a view with a negative stride


def test_a_path_in_the_home_folder(predictor, tmp_path, monkeypatch):
    write_image(tmp_path / "photo.png", (8, 9))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert predictor.predict("~/photo.png").ids.shape == (8, 9)


def test_values_that_are_not_finite(binary_adapter):
    model = from_pretrained(binary_adapter)
    model.decoder.mask_tokens.weight.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"not finite for this image\. Use precision fp32"):
        Predictor(model, "cpu", "fp32").predict(PIXELS)


def test_devices(monkeypatch):
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match=r"'cuda:2', but PyTorch finds 2 CUDA GPUs here\. Use cuda:0"):
        choose_device("cuda:2")
