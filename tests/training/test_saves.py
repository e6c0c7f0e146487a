"""A kill at every file operation of a run: what is left is whole, and the resumed run ends the same."""

import json
import os
import pathlib
import shutil

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as real_save

from convlora.checkpoint import find_adapter, from_pretrained
from convlora.config import make_config
from convlora.errors import ConvLoraError
from convlora.training import fit as fit_module
from convlora.training.fit import fit
from small import write_shapes


class KilledError(BaseException):
    """No handler may clean up after it: once raised, every file operation raises it again."""


class Kill:
    """Counts file operations; from the `at`-th on they do half of their work, or nothing, and raise."""

    def __init__(self, patch, at=None):
        self.at, self.count = at, 0
        for owner, name in (
            (pathlib.Path, "replace"),
            (pathlib.Path, "rename"),
            (pathlib.Path, "unlink"),
            (pathlib.Path, "write_text"),
            (pathlib.Path, "mkdir"),
            (os, "fsync"),
            (shutil, "rmtree"),
        ):
            real = (
                getattr(owner, name) if name != "fsync" else lambda descriptor: None
            )  # slow, and no matter here
            patch.setattr(owner, name, self.counted(real, name))
        for module in ("convlora.checkpoint", "convlora.state_file"):
            patch.setattr(f"{module}.save_file", self.counted(real_save, "save_file"))

    def counted(self, real, name):
        def operation(*arguments, **options):
            self.count += 1
            if self.at is None or self.count < self.at:
                return real(*arguments, **options)
            if self.count == self.at and name == "write_text":
                with pathlib.Path(arguments[0]).open("w") as file:
                    file.write(arguments[1][: len(arguments[1]) // 2])
            if self.count == self.at and name == "save_file":
                pathlib.Path(arguments[1]).write_bytes(b"half a file")
            raise KilledError

        return operation


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("tiny"), 2, {"train": 2, "val": 1})


@pytest.fixture
def run(tiny, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)

    def make(name):
        values = {
            "max_steps": 2,
            "eval_every": 1,
            "image_size": 64,
            "previews": 0,
            "batch_size": 2,
            "seed": 1,
            "metric": "pixel_accuracy",
        }
        return make_config(
            {
                "data": tiny,
                "out": tmp_path / name,
                "backbone": str(small_backbone),
                "method": {"name": "lora"},
                **values,
            }
        )

    return make


def ends(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("images_per_second", None)
        row.pop("seconds", None)
    tensors = {name: load_file(out / name / "adapter_model.safetensors") for name in ("best", "last")}
    configs = {
        name: json.loads((out / name / "adapter_config.json").read_text()) for name in ("best", "last")
    }
    return rows, json.loads((out / "metrics.json").read_text()), configs, tensors


def test_a_kill_at_every_file_operation(run, monkeypatch):
    whole = run("whole")
    with monkeypatch.context() as patch:
        kill = Kill(patch)
        fit(whole)
    operations, (rows, metrics, configs, tensors) = kill.count, ends(whole.out)
    assert operations > 40
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert all(row["best"] for row in rows if "best" in row)  # so both steps replace `best`
    leftovers = 0
    for at in range(1, operations + 1):
        cut = run(f"cut{at}")
        with monkeypatch.context() as patch:
            Kill(patch, at)
            with pytest.raises(KilledError):
                fit(cut)
        if any((cut.out / name).exists() for name in ("best", ".best.replaced-by-convlora")):
            from_pretrained(find_adapter(cut.out))  # a whole model at every moment
        leftovers += bool([*cut.out.glob("*.part"), *cut.out.glob(".*-by-convlora")])
        fit(cut, resume=(cut.out / "config.yaml").exists())
        again = ends(cut.out)
        assert again[:3] == (rows, metrics, configs), at
        for name in tensors:
            assert all(torch.equal(again[3][name][key], tensors[name][key]) for key in tensors[name]), at
        assert not list(cut.out.glob("*.part")), at
        assert [file.name for file in cut.out.glob(".*")] == [".lock"], at
    assert leftovers > 3  # some of the kills did come in the middle of a save


def test_full_disk_at_every_write(run, monkeypatch):
    """ENOSPC in the middle of a save: an error that names the file, the checkpoint before it loads."""
    for name in ("convlora.checkpoint.save_file", "convlora.state_file.save_file", "os.fsync"):
        out = run(name)
        with monkeypatch.context() as patch:

            def stop(self, done, real=fit_module._Run._after_step):
                real(self, done)
                if done == 1:
                    raise KilledError

            patch.setattr(fit_module._Run, "_after_step", stop)
            with pytest.raises(KilledError):
                fit(out)
        before = load_file(out.out / "last" / "adapter_model.safetensors")
        with monkeypatch.context() as patch:

            def full(*arguments, **options):
                raise OSError(28, "No space left on device")

            patch.setattr(name, full)
            with pytest.raises(
                ConvLoraError, match=r"(?s)cannot be written: .*No space left.*kept; make room"
            ):
                fit(out, resume=True)
        if name != "convlora.state_file.save_file":
            assert all(
                torch.equal(value, before[key])
                for key, value in load_file(out.out / "last" / "adapter_model.safetensors").items()
            )
        from_pretrained(out.out)
        fit(out, resume=True)
