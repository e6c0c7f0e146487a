"""Public names: what there is, that it is light, and the README's lines."""

import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import convlora
from convlora import errors
from convlora.adapters import build_method, methods
from convlora.adapters.base import OptionError
from convlora.data.images import FileError
from convlora.errors import ConfigError, DataError, WeightsError


def test_all_names_are_there():
    for name in convlora.__all__:
        assert getattr(convlora, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = convlora.nothing


def test_every_list_of_the_names_is_the_same():
    """What is there, what an editor offers before anything is loaded, and all methods that come along."""
    assert set(convlora.__all__) == {*convlora._HOMES, "__version__"}
    assert len(convlora.__all__) == len(set(convlora.__all__))
    code = "import convlora; assert {*convlora.__all__, '__path__'} <= set(dir(convlora))"
    subprocess.run([sys.executable, "-c", code], check=True)
    kinds = {type(build_method(name)) for name in methods()}
    own = {kind.__name__ for kind in kinds if kind.__module__.startswith("convlora.")}
    assert own == {name for name, home in convlora._HOMES.items() if home == "adapters"}
    assert convlora.ConvLoraError is errors.ConvLoraError


def test_no_submodule_hides_a_name():
    """Importing everything must not put a module in the place of a function."""
    code = "import convlora; convlora.load; assert callable(convlora.evaluate) and callable(convlora.train)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tree_of_errors_is_drawn_whole():
    """Each line's parent is the nearest line above that is further left."""
    assert OptionError.__base__ is ConfigError  # they are there only where their modules are loaded
    assert FileError.__base__ is DataError
    drawn, path = {}, []
    for line in errors.__doc__.split("```")[1].splitlines():
        if name := re.search(r"\w+Error", line):
            path = [*path[: name.start() // 4], name[0]]
            drawn[name[0]] = path[-2] if len(path) > 1 else "Exception"
    known, found = {}, [errors.ConvLoraError]
    for error in found:  # grows
        known[error.__name__] = error.__base__.__name__
        found += [child for child in error.__subclasses__() if child.__module__.startswith("convlora.")]
    assert drawn == known


HEAVY = "torch", "accelerate", "kornia", "rich", "matplotlib"


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import convlora", ("numpy", "convlora.api", "convlora.data", *HEAVY)),
        ("convlora.check({data!r})", (*HEAVY[:3], "convlora.model")),
        ("convlora.convert({data!r}, {out!r})", (*HEAVY[:3], "convlora.model")),
        ("convlora.predict('RUN', 'no.png', {out!r})", HEAVY[:3]),
        ("convlora.load({run!r})", tuple(f"convlora.{n}" for n in ("analysis", "comparison", "training"))),
        ("convlora.train", HEAVY),
    ],
)
def test_only_what_is_needed_is_loaded(binary_data, binary_adapter, tmp_path, code, unloaded):
    call = code.format(data=str(binary_data), out=str(tmp_path / "out"), run=str(binary_adapter))
    program = (
        f"import sys, convlora\ntry:\n    {call}\nexcept convlora.errors.ConvLoraError as error:\n"
        "    assert 'no.png does not exist' in str(error)\n"
        f"loaded = {set(unloaded)!r} & set(sys.modules)\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_train_evaluate_load(binary_data, small_backbone, tmp_path):
    out = tmp_path / "run"
    best = convlora.train(binary_data, out, backbone=str(small_backbone), max_steps=2, image_size=64)
    assert best["step"] == 2
    scores = convlora.evaluate(out, binary_data)
    assert {"s_measure", "e_measure", "weighted_f", "mae", "ber"} <= set(scores)
    model = convlora.load(out)
    file = binary_data / "test" / "images" / "test_01.png"
    prediction = model.predict(file)
    assert prediction.ids.shape == (48, 64)
    from PIL import Image

    array = np.array(Image.open(file))
    assert (model.predict(array).ids == prediction.ids).all()
    assert (model.predict(array / np.float32(255)).ids == prediction.ids).all()
    with pytest.raises(DataError, match=r"shape \(48, 64\); it must be \(height, width, 3\)"):
        model.predict(array[..., 0])
    with pytest.raises(ConfigError, match="holds a run already"):
        convlora.train(binary_data, out)


def test_the_backbone_is_somewhere_else_now(binary_data, small_backbone, tmp_path):
    """`load` and `evaluate` take what their message advises, and evaluate its device and precision."""
    backbone, moved, out = tmp_path / "backbone", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(small_backbone, backbone)
    convlora.train(binary_data, out, backbone=str(backbone), max_steps=1, image_size=64, previews=0)
    scores = convlora.evaluate(out, binary_data)
    backbone.rename(moved)
    for call in (partial(convlora.load, out), partial(convlora.evaluate, out, binary_data)):
        with pytest.raises(WeightsError, match=r"say where with --backbone \(in Python backbone=\)"):
            call()
        with pytest.raises(ConfigError, match="backbone is ''; it must be a path"):
            call(backbone="")
    assert convlora.load(out, backbone=moved).predict(np.zeros((48, 64, 3), np.uint8)).ids.shape == (48, 64)
    assert convlora.evaluate(out, binary_data, backbone=str(moved)) == scores
    half = convlora.evaluate(out, binary_data, backbone=moved, device="cpu", precision="bf16")
    assert half["mae"] != scores["mae"]
    assert half["mae"] == pytest.approx(scores["mae"], abs=0.05)
    with pytest.raises(ConfigError, match="device is 'gpu'; it must be cpu, cuda"):
        convlora.evaluate(out, binary_data, device="gpu")
