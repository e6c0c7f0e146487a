"""What other systems do otherwise: Windows' open files and shell, Apple's GPUs, several signals at once."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convlora import output, recompute, settings
from convlora.adapters import ConvLora, gating, trainable_parameters
from convlora.backbone import attention
from convlora.backbone.position_grid import Grid
from convlora.backbone.positional_attention import attend_with_positions, channels
from convlora.comparison import launch
from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.errors import ConfigError
from convlora.inference.device import choose_device, training_dtype
from convlora.model import Segmenter, SegmenterConfig
from convlora.state_file import read_states
from convlora.training import fit as fit_module
from convlora.training import interrupts, loop, out_of_memory
from convlora.training.fit import fit
from convlora.training.interrupts import on_interrupt
from convlora.training.memory import DEVICE_OVERHEAD, estimate_peak, simulate_step
from convlora.training.optimizer import make_optimizer
from convlora.training.resume import load_state
from convlora.transfer import need_not_wait
from small import SMALL, write_shapes


def a_run(data, backbone, out, **values):
    method = {"name": "conv-lora", "routing": "balance", "scope": "window", "start": "random"}
    method |= {"gain": 1.0, "temperature": 1.0}
    given = {"data": data, "out": out, "backbone": str(backbone), "method": method, "image_size": 64}
    return make_config(given | {"max_steps": 3, "eval_every": 1, **values})


# --- Windows ---


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(output.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(output, "os", SimpleNamespace(name="nt"))  # the real one is pytest's too


def refused(times, real):
    """`Path.replace` while a virus scanner has the file open."""
    left = [times]

    def replace(part, final):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "Access is denied", str(part))
        return real(part, final)

    return replace


@pytest.mark.parametrize("times", [1, 4])
def test_a_file_that_a_scanner_has_open(tmp_path, monkeypatch, windows, times):
    part, final = tmp_path / "part", tmp_path / "final"
    part.write_bytes(b"new")
    final.write_bytes(b"old")
    monkeypatch.setattr(type(part), "replace", refused(times, type(part).replace))
    output.put_in_place(part, final)
    assert final.read_bytes() == b"new"


def test_a_file_that_stays_open_is_an_error(tmp_path, monkeypatch, windows):
    part = tmp_path / "part"
    part.write_bytes(b"new")
    monkeypatch.setattr(type(part), "replace", refused(99, type(part).replace))
    with pytest.raises(PermissionError, match="Access is denied"):
        output.put_in_place(part, tmp_path / "final")


def test_elsewhere_nobody_waits(tmp_path, monkeypatch):
    part = tmp_path / "part"
    part.write_bytes(b"new")
    monkeypatch.setattr(type(part), "replace", refused(1, type(part).replace))
    with pytest.raises(PermissionError, match="Access is denied"):
        output.put_in_place(part, tmp_path / "final")


def test_commands_are_quoted_for_the_shell(monkeypatch):
    words = ["convlora", "train", r"C:\my data"]
    assert settings.as_typed(words) == r"convlora train 'C:\my data'"
    monkeypatch.setattr(settings, "os", SimpleNamespace(name="nt"))
    assert settings.as_typed(words) == r'convlora train "C:\my data"'


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_resumed_run_has_not_its_state_mapped(binary_data, small_backbone, tmp_path):
    """Windows lets no file be replaced that a process has mapped: the second save would fail."""
    out = tmp_path / "run"
    fit(a_run(binary_data, small_backbone, out))
    model = Segmenter.from_backbone(str(small_backbone), ("background", "a"), ConvLora(), image_size=64)
    optimizer = make_optimizer(model, 1e-3, 0.0)
    assert load_state(out, model, optimizer) is not None
    assert len(optimizer.state) == len(trainable_parameters(model))
    assert "state.safetensors" not in Path("/proc/self/maps").read_text(encoding="utf-8")
    first = next(read_states(out))  # so it would be seen
    assert "state.safetensors" in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert first.damage == ""


def test_a_gpu_does_not_spill_into_main_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6, 8))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *values: asked.append(values))
    gpu = torch.device("cuda", 0)
    out_of_memory.keep_off_main_memory(gpu)
    monkeypatch.setattr(sys, "platform", "win32")
    out_of_memory.keep_off_main_memory(torch.device("cpu"))
    assert asked == []
    out_of_memory.keep_off_main_memory(gpu)
    assert asked == [(0.75, gpu)]


def test_runs_of_a_comparison_write_utf8_whatever_the_code_page(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    with (tmp_path / "log").open("wb") as log:
        assert launch._call([sys.executable, "-c", "print('\u7d30\u80de')"], log) == 0
    assert (tmp_path / "log").read_text(encoding="utf-8").strip() == "\u7d30\u80de"


def test_folders_whose_names_differ_in_case_only(tmp_path):
    """Where the file system ignores case, `Train` is read as `train`."""
    data = write_shapes(tmp_path / "data", 2, {"train": 2, "val": 2})
    assert check_dataset(data).problems == []
    (data / "train").rename(data / "Train")
    (data / "train").symlink_to(data / "Train")
    assert check_dataset(data).problems == []


# --- Apple's GPUs ---


def test_copies_are_waited_for_on_mps(binary_data, small_backbone, tmp_path, monkeypatch):
    assert not need_not_wait(torch.device("mps"))
    assert need_not_wait(torch.device("cuda"))
    asked = {"loop": [], "gating": []}
    monkeypatch.setattr(loop, "need_not_wait", lambda device: bool(asked["loop"].append(device)))
    monkeypatch.setattr(gating, "need_not_wait", lambda device: bool(asked["gating"].append(device)))
    fit(a_run(binary_data, small_backbone, tmp_path / "run", max_steps=1))
    assert asked["loop"] == 2 * [torch.device("cpu")]  # images and masks
    assert asked["gating"]


def test_the_device_by_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


def test_fp16_is_not_trained_there():
    with pytest.raises(
        ConfigError, match=r"fp16, in which nothing is trained on Apple's GPUs.* Use precision"
    ):
        training_dtype("fp16", torch.device("mps"))
    assert training_dtype("bf16", torch.device("mps")) is torch.bfloat16


def unfused_twice(q, k, v, by_row, by_column, grid):
    """The way of MPS: PyTorch's kernel that keeps N x N, computed again in the backward pass."""

    def run(*tensors):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return channels(*tensors, grid)

    return recompute.run_twice(run, q, k, v, by_row, by_column)


def test_attention_computed_twice_has_the_same_gradients():
    grid, generator = Grid(4, 6), torch.Generator().manual_seed(0)
    shapes = [(1, 2, 24, 8)] * 3 + [(1, 2, 24, 4), (1, 2, 24, 6)]
    found = []
    for form in (attend_with_positions, unfused_twice):
        generator.manual_seed(0)
        inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        out = form(*[x.requires_grad_() for x in inputs], grid)
        found.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    torch.testing.assert_close(*found)


def test_the_estimate_counts_what_no_kernel_fuses(monkeypatch):
    config = SegmenterConfig("x", ("background", "a"), "conv-lora", image_size=256)
    counted = simulate_step(SMALL, config, 1, None)
    monkeypatch.setattr(attention, "attend_with_positions", unfused_twice)
    real = simulate_step(SMALL, config, 1, None).activations
    assert counted.activations < real <= counted.activations + counted.unfused
    at = {device: estimate_peak(counted, device, 0) for device in ("cuda", "mps")}
    assert at["mps"] - at["cuda"] == counted.unfused
    assert at["cuda"] > DEVICE_OVERHEAD


# --- signals ---


def test_a_signal_that_comes_twice_is_one(monkeypatch):
    calls = []
    with on_interrupt(lambda: calls.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert calls == [1]
    monkeypatch.setattr(interrupts, "_TOGETHER", 0.0)

    def twice():
        with on_interrupt(lambda: calls.append(2)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert calls == [1, 2]


def test_a_signal_while_the_processes_wait_for_each_other(binary_data, small_backbone, tmp_path, monkeypatch):
    """The others had none when they were asked, and this one's flag was written over with that."""
    real = fit_module._Run._any_process

    def asked(self, flag):
        answer = real(self, flag)
        if self.loop.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    monkeypatch.setattr(fit_module._Run, "_any_process", asked)
    with pytest.raises(KeyboardInterrupt):
        fit(a_run(binary_data, small_backbone, tmp_path / "run"))
    assert '"step": 2' in next(read_states(tmp_path / "run")).header["progress"]


# --- a thread that draws while blocks are computed again ---


def generator_states(model, keys):
    """State of the global generator in both passes of the first block, drawn from in between."""
    states = []
    block = model.encoder.blocks[0]
    hook = block.norm1.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    loss = model(torch.randn(2, 3, 64, 64), keys).mask_logits.square().mean()
    other = threading.Thread(target=torch.randn, args=(1000,))
    other.start()
    other.join()
    before = torch.get_rng_state()
    loss.backward()
    hook.remove()
    assert torch.equal(torch.get_rng_state(), before)
    return *states, before


@pytest.mark.parametrize("keys", [None, range(2)])
def test_the_global_generator_is_left_to_others(small_backbone, keys):
    model = Segmenter.from_backbone(str(small_backbone), ("background", "a"), ConvLora(), image_size=64)
    model.encoder.set_recompute(True)
    first, second, now = generator_states(model.train(), keys)
    assert torch.equal(second, first if keys is None else now)
    assert not torch.equal(first, now)
