"""Memory that runs out in the middle of a step costs nothing but the micro-batch."""

import json
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from step_cases import CASES, batches, segmenter
from torch import nn

from convlora.adapters import auxiliary_loss
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.inference.predictor import is_out_of_memory
from convlora.training import fit as fit_module
from convlora.training import loop as loop_module
from convlora.training.fit import fit
from convlora.training.loop import Loop, cut
from convlora.training.plan import Plan
from convlora.training.report import Reporter

STEPS = 4


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state()


class Short(torch.autograd.Function):
    """Runs out of memory with more than `most` images: forward, or backward, where half is accumulated."""

    seen: ClassVar[list[int]] = []  # images at once
    most, where, error = 99, "forward", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    @staticmethod
    def forward(ctx, x):
        ctx.images = len(x)
        Short.seen.append(len(x))
        if Short.where == "forward" and len(x) > Short.most:
            raise Short.error
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if Short.where == "backward" and ctx.images > Short.most:
            raise Short.error
        return grad


class ShortNeck(nn.Module):
    def __init__(self, neck):
        super().__init__()
        self.neck = neck

    def forward(self, x):
        return self.neck(Short.apply(x))


@pytest.fixture
def short(monkeypatch):
    """Make training runs out of memory; the trained parts behind the neck have gradients by then."""

    def make(most, where="forward", error=None):
        monkeypatch.setattr(Short, "most", most)
        monkeypatch.setattr(Short, "where", where)
        if error is not None:
            monkeypatch.setattr(Short, "error", error)

    real = fit_module._build

    def build(*arguments):
        segmenter = real(*arguments)
        segmenter.encoder.neck = ShortNeck(segmenter.encoder.neck)
        return segmenter

    monkeypatch.setattr(fit_module, "_build", build)
    monkeypatch.setattr("convlora.training.validation.save_pretrained", lambda *a: None)
    return make


def train(data, backbone, out, resume=False, **values):
    common = {"max_steps": STEPS, "eval_every": STEPS, "image_size": 64, "previews": 0, "batch_size": 8}
    common |= {"precision": "fp32", "micro_batch": 8}
    fit(make_config({"data": data, "out": out, "backbone": str(backbone), **common, **values}), resume)


def weights(out):
    return {k: v for k, v in load_file(out / "state.safetensors").items() if k.startswith("parameter/")}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_halves_until_it_fits_and_trains_as_if_it_had_started_so(
    where, short, binary_data, small_backbone, tmp_path, capsys
):
    train(binary_data, small_backbone, tmp_path / "small", micro_batch=2)
    short(2, where)
    train(binary_data, small_backbone, tmp_path / "halved")
    said = capsys.readouterr().out
    assert "step 1: out of memory with 8 images at once; going on with 4, still 8 a step" in said
    assert "step 1: out of memory with 4 images at once; going on with 2, still 8 a step" in said
    assert said.count("out of memory") == 2
    assert [row["micro_batch"] for row in rows(tmp_path / "halved") if "micro_batch" in row] == [4, 2]
    expected = weights(tmp_path / "small")
    for name, value in weights(tmp_path / "halved").items():
        assert torch.equal(value, expected[name]), name  # nothing of the failed attempts is left


def test_the_graph_of_the_failed_pass_is_let_go_before_the_next(small_backbone, tmp_path):
    """A balance loss that no backward pass has reached holds all that the encoder kept for it."""
    model, held = segmenter(small_backbone, CASES["binary"]), []
    model.register_forward_pre_hook(lambda *_: held.append(auxiliary_loss(model.encoder)))

    def objective(output, target, keys):
        if len(keys) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output.mask_logits.mean()

    batch = {
        name: torch.cat([b[name] for b in batches(CASES["binary"])]) for name in ("image", "mask", "key")
    }
    optimizer = torch.optim.SGD(model.parameters())
    with Reporter(tmp_path, 1, "x", enabled=False) as reporter:
        loop = Loop(
            Accelerator(cpu=True), model, optimizer, objective, Plan(1, 4, 4, 1, 1e-3, 1), 1.0, reporter
        )
        loop._gradients([batch])
    assert held[:2] == [None, None]
    assert len(held) == 3


def test_a_micro_batch_that_is_no_power_of_two_goes_down_to_one_image(
    short, binary_data, small_backbone, tmp_path, capsys
):
    short(1)
    train(binary_data, small_backbone, tmp_path, batch_size=6, micro_batch=6)
    assert [row["micro_batch"] for row in rows(tmp_path) if "micro_batch" in row] == [3, 2, 1]
    assert "out of memory with 3 images at once; going on with 2, still 6 a step" in capsys.readouterr().out


def test_resuming_starts_with_the_smaller_one(
    short, binary_data, small_backbone, tmp_path, monkeypatch, capsys, cut_off
):
    short(2)
    train(binary_data, small_backbone, tmp_path / "whole")
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    with cut_off(2):
        train(binary_data, small_backbone, tmp_path / "run")
    capsys.readouterr()
    train(binary_data, small_backbone, tmp_path / "run", resume=True)
    assert "out of memory" not in capsys.readouterr().out
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "run").items())


def test_resuming_with_a_micro_batch_that_fits_takes_it_whole(
    short, binary_data, small_backbone, tmp_path, monkeypatch, capsys, cut_off
):
    """The parts that the one before was cut into are no matter of the new one."""
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    short(2)
    with cut_off(2):
        train(binary_data, small_backbone, tmp_path / "run")
    monkeypatch.setattr(fit_module._Run, "_after_step", lambda self, done: done == 4)
    Short.seen.clear()
    train(binary_data, small_backbone, tmp_path / "run", resume=True, micro_batch=2)
    assert Short.seen == [2] * 8


@pytest.mark.parametrize("half", ["bf16", None])
def test_one_image_that_does_not_fit_ends_with_what_to_change(
    half, short, binary_data, small_backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop_module, "advised_half", lambda dtype, device: half)
    short(0)
    with pytest.raises(ConfigError) as caught:
        train(binary_data, small_backbone, tmp_path / "run")
    message = str(caught.value)
    assert "Out of memory with 1 image at once (CUDA out of memory. Tried to allocate 2 GiB.)" in message
    for remedy in ("--image-size", "--backbone", "decoder-only", "--dry-run", "is kept"):
        assert remedy in message
    assert ("--precision bf16" in message) == bool(half)
    assert "Go on with --resume --checkpointing if that is not in use yet, or start a new run" in message
    short(99)
    train(binary_data, small_backbone, tmp_path / "run", resume=True, checkpointing=True)


def test_several_processes_are_told_which_micro_batch_to_use(
    short, binary_data, small_backbone, tmp_path, monkeypatch
):
    short(4)
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.Accelerator.num_processes", property(lambda self: 2))
        patch.setattr(fit_module, "make_plan", lambda *a, **k: real(*a, **{**k, "processes": 1}))
        with pytest.raises(ConfigError, match=r"(?s)With 2 processes .*--resume --micro-batch 4"):
            train(binary_data, small_backbone, tmp_path / "run")
    train(binary_data, small_backbone, tmp_path / "run", resume=True, micro_batch=4)  # and it is taken
    assert "micro_batch: 4\n" in (tmp_path / "run" / "config.yaml").read_text()


real = fit_module.make_plan


def test_other_errors_are_not_caught(short, binary_data, small_backbone, tmp_path):
    short(2, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(binary_data, small_backbone, tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (MemoryError(), True),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_cut_keeps_the_order():
    batch = {"image": torch.arange(10).view(5, 2), "key": torch.arange(5)}
    parts = cut(batch, 2)
    assert [len(part["key"]) for part in parts] == [2, 2, 1]
    assert all(torch.equal(torch.cat([part[name] for part in parts]), batch[name]) for name in batch)
