"""Two processes train as one: same global batch, same weights, no image scored twice."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.training import fit as fit_module
from convlora.training.fit import fit

# --multi_gpu also without a GPU: with --cpu, accelerate starts one process whatever number is given
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
LAUNCH += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
COMMON = {
    "max_steps": 4,
    "image_size": 64,
    "batch_size": 4,
    "precision": "fp32",
    "eval_every": 2,
    "previews": 0,
}


def launch(arguments, code=("-m", "convlora")):
    return subprocess.run(
        [*LAUNCH, *code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train_by_two(data, backbone, out, values, resume=False):
    arguments = ["train", data, "--out", out, "--backbone", backbone, *(["--resume"] if resume else [])]
    for key, value in ({} if resume else {**COMMON, **values}).items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    done = launch(arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters trained") == 1  # else each process trains alone
    assert "fp32 on cpu, 2 processes" in done.stdout
    assert done.stdout.count("Best: step") == 1


def train_by_one(data, backbone, out, values):
    fit(make_config({"data": data, "out": out, "backbone": str(backbone), **COMMON, **values}))


def same_end(one, two, n_images=4):
    a, b = (load_file(run / "last" / "adapter_model.safetensors") for run in (one, two))
    for name in a:
        if name.endswith("k_proj.bias"):
            continue  # adds one constant to all logits of a query: its gradient is rounding noise alone
        # Adam divides by the root of the second moment, which enlarges the rounding of tiny gradients
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    rows = [json.loads((run / "metrics.json").read_text())["val"] for run in (one, two)]
    assert rows[0]["n_images"] == rows[1]["n_images"] == n_images
    for name, value in rows[0].items():
        if value is not None:
            assert abs(value - rows[1][name]) < 1e-3, name


@pytest.mark.parametrize(
    ("one", "two"),
    [
        # one process in one go against two that accumulate: means over pixels and classes must not notice
        ({"method": {"name": "conv-lora"}}, {"method": {"name": "conv-lora"}, "micro_batch": 1}),
        (
            {
                "method": {"name": "conv-lora", "top_k": 2},
                "multiclass_head": "mask-classification",
                "micro_batch": 2,
            },
            {"method": {"name": "conv-lora", "top_k": 2}, "multiclass_head": "mask-classification"},
        ),
    ],
    ids=["accumulation", "mask classification"],
)
def test_two_processes_are_one(one, two, three_class_data, small_backbone, tmp_path):
    """In the global block an image is one sample, so most of the eight experts get none in a process."""
    train_by_one(three_class_data, small_backbone, tmp_path / "one", one)
    train_by_two(three_class_data, small_backbone, tmp_path / "two", two)
    same_end(tmp_path / "one", tmp_path / "two")
    moved = load_file(tmp_path / "two" / "last" / "adapter_model.safetensors")
    assert moved["encoder.blocks.0.attn.qkv.lora_B"].abs().max() > 1e-3  # starts at zero: it was trained


def test_two_processes_go_on_where_one_stopped(binary_data, small_backbone, tmp_path, monkeypatch):
    """Nothing random hangs on a process; and three images over two processes are each scored once."""
    data = tmp_path / "data"
    (data / "train").parent.mkdir()
    for split in ("train", "val"):
        (data / split / "images").mkdir(parents=True)
        (data / split / "masks").mkdir()
        for image in sorted((binary_data / split / "images").iterdir())[: 3 if split == "val" else 8]:
            for kind in ("images", "masks"):
                (data / split / kind / image.name).write_bytes(
                    (binary_data / split / kind / image.name).read_bytes()
                )
    train_by_one(data, small_backbone, tmp_path / "whole", {})

    class CutOffError(Exception):
        pass

    real = fit_module._Run._after_step

    def cut(self, done):
        real(self, done)
        if done == 2:
            raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Run, "_after_step", cut)
        with pytest.raises(CutOffError):
            train_by_one(data, small_backbone, tmp_path / "run", {})
    train_by_two(data, small_backbone, tmp_path / "run", {}, resume=True)
    same_end(tmp_path / "whole", tmp_path / "run", n_images=3)


FAILING = """
import os, sys
from convlora.data.dataset import SegmentationDataset
from convlora.errors import DataError
real, calls = SegmentationDataset.get, []
def get(self, index, epoch):
    calls.append(index)
    if os.environ["RANK"] == "1" and len(calls) > 2:
        raise DataError("x.png cannot be read. Replace it.")
    return real(self, index, epoch)
SegmentationDataset.get = get
from convlora.cli import main
main()
"""


def test_an_error_in_one_process_ends_all(binary_data, small_backbone, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    arguments = [
        "train",
        binary_data,
        "--out",
        tmp_path / "run",
        "--backbone",
        small_backbone,
        "--max-steps",
        50,
    ]
    done = launch([*arguments, "--image-size", 64], code=(str(tmp_path / "failing.py"),))
    assert done.returncode != 0
    assert "error: x.png cannot be read. Replace it." in done.stderr


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused(name, binary_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(
        ConfigError, match=rf"asks for {name}, which convlora does not support.*--multi_gpu \(DDP\)"
    ):
        train_by_one(binary_data, small_backbone, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_other_commands_are_refused_under_a_launcher(binary_data, monkeypatch, capsys):
    from convlora.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["evaluate", "run", str(binary_data)], ["predict", "run", "x.png", "--out", "masks"]):
        monkeypatch.setattr(sys, "argv", ["convlora", *command])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        message = f"'{command[0]}' runs in one process, and the launcher has started 2. Start it without"
        assert message in capsys.readouterr().err
