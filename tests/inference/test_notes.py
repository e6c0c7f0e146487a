"""What is told of images that the model does not see as in its training, in Python as on the command line."""

import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import convlora
from convlora.checkpoint import save_pretrained
from convlora.data.images import read_pixels, stretch_grey
from convlora.errors import DataError
from convlora.model import Segmenter
from small import write_image


@pytest.fixture(scope="module")
def model(small_backbone, tmp_path_factory):
    """Trained on images of 20 x 24 pixels, so it says."""
    folder = tmp_path_factory.mktemp("model") / "model"
    segmenter = Segmenter.from_backbone(str(small_backbone), ("background", "foreground"))
    save_pretrained(segmenter, folder, {"largest_image": [20, 24]})
    return folder


TILES = "tiles of 52 x 52 pixels are scaled to the model's input. The largest training image had 20 x 24, so"


def test_large_tiles_are_told_once(command, model, tmp_path):
    for name, size in (("a", (40, 60)), ("b", (40, 60)), ("c", (20, 24))):
        write_image(tmp_path / "in" / f"{name}.png", size)
    run = ["predict", model, tmp_path / "in", "--precision", "fp32", "--out"]
    _, _, error = command(*run, tmp_path / "out", "--tile", "52")
    assert error.startswith(f"warning: {TILES}")
    assert error.endswith("give smaller tiles: --tile 24 (in Python tile=).\n")
    assert error.count("warning") == 1
    assert command(*run, tmp_path / "usual", "--tile", "48")[2] == ""
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "b.png").unlink()
    assert command(*run, tmp_path / "small", "--tile", "52")[2] == ""  # nothing is cut


def test_evaluate_tells_of_large_tiles(command, model, binary_data, tmp_path):
    run = ["evaluate", model, binary_data, "--precision", "fp32", "--tile"]
    assert f"warning: {TILES}" in command(*run, "52")[2]
    assert "tiles of" not in command(*run, "48")[2]
    assert "tiles of" not in command(*run, "64")[2]  # nothing is cut
    other = shutil.copytree(binary_data, tmp_path / "data")
    for folder in ("images", "masks"):  # large ones, of a split that is not scored
        for file in (other / "train" / folder).iterdir():
            Image.open(file).resize((200, 200), Image.Resampling.NEAREST).save(file)
    run[2] = other
    assert "tiles of" not in command(*run, "64")[2]


def varying_alpha(path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.dstack([ramp] * 4)).save(path)


CASES = {
    "alpha": (varying_alpha, None, "a.png: an alpha channel that varies, and is not read. Of an image grey"),
    "large": (lambda path: write_image(path, (30, 49)), None, "a.png: 30 x 49 pixels were scaled to the"),
    "tiles": (lambda path: write_image(path, (30, 60)), 52, TILES),
}


@pytest.mark.parametrize(("write", "tile", "message"), CASES.values(), ids=CASES.keys())
def test_python_warns_of_a_file(model, tmp_path, write, tile, message):
    predictor = convlora.load(model, precision="fp32", tile=tile)
    write(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="alpha|scaled") as caught:
        ids = predictor.predict(tmp_path / "a.png").ids
    (warning,) = caught
    assert message in str(warning.message)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of arrays nothing is known but their pixels
        assert (predictor.predict(read_pixels(tmp_path / "a.png")).ids == ids).all()


def test_python_warns_of_rows(model, tmp_path):
    predictor = convlora.load(model, precision="fp32", tile=52)
    write_image(tmp_path / "a.png", (30, 60))
    with pytest.warns(UserWarning, match="tiles of 52 x 52") as caught:
        predictor.predict_rows(str(tmp_path / "a.png"), lambda top, rows: None)
    assert [warning.filename for warning in caught] == [__file__]


def test_files_that_are_read_as_in_training_pass(model, tmp_path):
    write_image(tmp_path / "a.png", (20, 48))
    assert convlora.load(model, precision="fp32").predict(tmp_path / "a.png").ids.shape == (20, 48)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_grey_arrays_are_stretched_as_files_are(tmp_path, kind):
    values = np.random.default_rng(0).normal(3000, 700, (20, 30)).clip(0).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.tif")
    before = values.copy()
    np.testing.assert_array_equal(stretch_grey(values), read_pixels(tmp_path / "a.tif"))
    np.testing.assert_array_equal(values, before)
    assert stretch_grey(values).std() > 0.1


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((0, 4)), np.zeros((4, 4), bool)])
def test_other_arrays_are_not_stretched(array):
    with pytest.raises(DataError, match=r"The array has the shape \(.*\) and holds .*Give one band\."):
        stretch_grey(array)
