"""The programs of docs/python.md do what the page says, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import convlora
from convlora import losses
from convlora.adapters import ConvLora, adapter_state_dict, base, install, load_adapter_state_dict, plugins
from convlora.backbone.weights import load_sam
from convlora.errors import ConfigError, WeightsError
from convlora.losses import bce_dice_loss, focal_loss

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")


def program(title: str) -> str:
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0], re.M | re.S
    )
    return code


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, binary_data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    monkeypatch.setattr(plugins, "_loaded", set(plugins._loaded))
    (tmp_path / "DATA").symlink_to(binary_data)


def run(title: str, name: str = "page") -> dict[str, object]:
    names: dict[str, object] = {"__name__": name}
    exec(compile(program(title), title, "exec"), names)
    return names


def test_a_loop():
    names = run("A training loop of your own")
    truth, found = names["masks"][0].numpy(), names["mask"]
    intersection = (truth * found).sum()
    assert 2 * intersection / (truth.sum() + found.sum()) > 0.9
    again = convlora.load("disc").predict(names["photo"]).ids
    np.testing.assert_array_equal(again, found)
    assert convlora.from_pretrained("disc").config.classes == ("background", "disc")


def test_data(binary_data):
    names = run("Your data, read by convlora")
    assert len(names["images"]) == 8
    assert names["batch"]["image"].shape == (4, 3, 64, 64)
    assert names["batch"]["mask"].unique().tolist() == [0, 1]


def test_an_encoder():
    model = run("A method on an encoder of your own model")["model"]
    saved = torch.load("encoder.pt", weights_only=True)
    assert {key for key, p in model.encoder.named_parameters() if p.requires_grad} == set(saved)
    other = load_sam("sam-tiny").sam.image_encoder
    install(other, ConvLora(rank=3))
    load_adapter_state_dict(other, saved)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other.eval()(x), model.encoder.eval()(x), rtol=0, atol=0)
    assert saved.keys() == adapter_state_dict(other).keys()


def test_a_method(capsys):
    run("A method of your own", "cell")
    run("A method of your own", "cell")  # a cell of a notebook that is run again
    base._METHODS.pop("last-blocks")
    run("A method of your own", "__main__")
    assert 0 <= float(capsys.readouterr().out.strip().splitlines()[-1]) <= 1
    trained = convlora.from_pretrained("runs/last").encoder
    assert {key.split(".")[0] + key.split(".")[1] for key, p in trained.named_parameters() if p.requires_grad}
    with pytest.raises(ConfigError, match="last-blocks: count must be an integer of at least 1, got 0"):
        convlora.train("DATA", "runs/none", method={"name": "last-blocks", "count": 0})
    with pytest.raises(ConfigError, match="'last-blocks' is registered in this process alone, but every run"):
        convlora.compare("DATA", "comparison", "lora,last-blocks", max_steps=1)
    base._METHODS.pop("last-blocks")
    with pytest.raises(WeightsError, match=r"Unknown method: 'last-blocks'.* A method of your own must"):
        convlora.load("runs/last")


def test_a_loss():
    try:
        names = run("A loss of your own")
        logits, target = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 8, 8))
        expected = bce_dice_loss(logits, target) + focal_loss(logits, target)
        assert losses.get_loss("mine", "binary")(logits, None, target) == expected
        assert names["LOSSES"] is losses.LOSSES
        convlora.train("DATA", "runs/mine", loss="mine", image_size=64, max_steps=1)
    finally:
        losses.LOSSES.pop("mine", None)


def test_scores(capsys):
    run("Scores alone")
    assert "'pixel_accuracy': 1.0" in capsys.readouterr().out


def declare(folder: Path, value: str, name: str = "last-blocks") -> None:
    """What `pip install` leaves of a package with an entry point."""
    info = folder / "my_methods-0.1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-methods\nVersion: 0.1\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(f"[convlora.methods]\n{name} = {value}\n", encoding="utf-8")


def call(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "convlora", *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_package_s_method_is_compared(tmp_path, small_backbone):
    packages = tmp_path / "packages"
    declare(packages, "my_methods:LastBlocks")
    (packages / "my_methods.py").write_text(program("A method of your own"), encoding="utf-8")
    options = ["--seeds", "1", "--max-steps", "1", "--backbone", str(small_backbone)]
    methods = "decoder-only,last-blocks:count=1"
    done = call(packages, "compare", "DATA", "--out", "comparison", "--methods", methods, *options)
    assert done.returncode == 0, done.stderr
    assert "last-blocks:count=1" in Path("comparison/results.md").read_text(encoding="utf-8")


TAKEN = """
from dataclasses import dataclass
from convlora.adapters import Method, register

@register
@dataclass(frozen=True)
class Lora(Method):
    name = "lora"
"""


@pytest.mark.parametrize(
    ("value", "name", "code", "message"),
    [
        (
            "mine:LastBlocks",
            "last-blocks",
            "import no_such",
            "cannot be loaded: ModuleNotFoundError",
        ),
        ("mine:Other", "last-blocks", "", "cannot be loaded: AttributeError"),
        ("mine", "last-blocks", "", "does not register itself under that name. Put @register before"),
        ("mine:Lora", "lora", TAKEN, "The name 'lora' of Lora is taken by Lora."),
    ],
)
def test_a_package_s_method_is_wrong(tmp_path, value, name, code, message):
    declare(tmp_path / "packages", value, name)
    (tmp_path / "packages" / "mine.py").write_text(code, encoding="utf-8")
    done = call(tmp_path / "packages", "methods")
    assert done.returncode == 2
    assert f"The method '{name}', which my-methods declares as {value}," in " ".join(done.stderr.split())
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert call(tmp_path / "packages", "train", "nothing", "--out", "run", "--method", "lora").returncode == 2


def test_other_folders_are_not_replaced(binary_adapter, tmp_path):
    model = convlora.from_pretrained(binary_adapter)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("a year of work", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"mine holds other things than a model .* Save to a folder"):
        convlora.save_pretrained(model, "mine")
    with pytest.raises(WeightsError, match=r"notes\.txt is a file\. Save to a folder"):
        convlora.save_pretrained(model, "mine/notes.txt")
    assert (tmp_path / "mine" / "notes.txt").read_text(encoding="utf-8") == "a year of work"
    convlora.save_pretrained(model, "new")
    convlora.save_pretrained(model, "new")  # its own folder
