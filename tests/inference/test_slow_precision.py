"""bf16 and fp16 on processors without arithmetic for them are many times slower than fp32: said aloud."""

import warnings

import pytest
import torch

import convlora
from convlora.config import make_config
from convlora.inference.device import advised_half, autocast_dtype, slowness, training_dtype
from convlora.training import dry_run as dry_run_module
from convlora.training.dry_run import dry_run

TOLD = "precision is bf16, which PyTorch has no fast arithmetic for in this processor"


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request, monkeypatch):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: request.param)
    return request.param


def test_only_half_precision_on_a_cpu(fast):
    cpu = torch.device("cpu")
    assert slowness(None, cpu) is None
    assert slowness(torch.bfloat16, torch.device("mps")) is None
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        text = slowness(dtype, cpu)
        assert (text is None) == fast
        assert fast or (f"precision is {name}," in text and "Use precision auto or fp32." in text)


@pytest.mark.parametrize(("capability", "half"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_bf16_on_gpus_that_imitate_it(capability, half, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    assert slowness(torch.float16, cuda) is slowness(None, cuda) is None
    text = slowness(torch.bfloat16, cuda)
    assert (text is None) == (half == "bf16")
    assert text is None or "before Ampere, as this one, only imitate" in text
    assert autocast_dtype("auto", cuda) is {"fp16": torch.float16, "bf16": torch.bfloat16}[half]
    assert advised_half(None, cuda) == half
    assert advised_half(torch.float16, cuda) is None


def test_advice_for_memory_on_a_cpu(fast):
    assert advised_half(None, torch.device("cpu")) == ("bf16" if fast else None)
    assert advised_half(torch.bfloat16, torch.device("cpu")) is None


def test_auto_is_not_slow():
    """On this processor, whichever it is."""
    cpu = torch.device("cpu")
    assert slowness(convlora.inference.device.autocast_dtype("auto", cpu), cpu) is None


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_load(fast, engine, binary_adapter, monkeypatch):
    if engine == "openvino":
        runtime = pytest.importorskip("convlora.inference.openvino.runtime")
        monkeypatch.setattr(runtime, "check_precision", lambda dtype: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convlora.load(binary_adapter, device="cpu", precision="bf16", engine=engine)
    assert [TOLD in str(one.message) for one in caught] == ([] if fast or engine == "openvino" else [True])
    assert all(one.filename == __file__ for one in caught)


def test_commands(fast, command, binary_adapter, binary_data, tmp_path):
    options = ["--precision", "bf16", "--device", "cpu"]
    images = binary_data / "test" / "images"
    code, _, error = command("predict", binary_adapter, images, "--out", tmp_path / "out", *options)
    assert (code, f"warning: {TOLD}" in error) == (0, not fast)
    code, _, error = command("evaluate", binary_adapter, binary_data, *options)
    assert (code, f"warning: {TOLD}" in error) == (0, not fast)


def test_training(fast, command, binary_data, small_backbone, tmp_path):
    options = ["--out", tmp_path / "run", "--backbone", small_backbone, "--precision", "bf16"]
    code, text, error = command("train", binary_data, *options, "--max-steps", 1)
    assert (code, f"warning: {TOLD}" in text + error) == (0, not fast)


def test_dry_run(fast, binary_data, small_backbone, tmp_path, monkeypatch):
    values = {"data": binary_data, "out": tmp_path / "r", "backbone": str(small_backbone)}
    text = "\n".join(dry_run(make_config({**values, "precision": "bf16"})).lines())
    assert (f"warning: {TOLD}" in text) == (not fast)
    monkeypatch.setattr(dry_run_module, "free_bytes", lambda device: 0)
    text = "\n".join(dry_run(make_config({**values, "precision": "fp32"})).lines())
    assert "does not fit" in text
    assert ("--precision bf16" in text) == fast


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_nothing_is_trained_in_fp16_on_a_cpu(more, command, binary_data, small_backbone, tmp_path):
    out = tmp_path / "run"
    where = ("--out", out, "--backbone", small_backbone, "--precision", "fp16")
    code, _, error = command("train", binary_data, *where, *more)
    assert code == 2
    assert "precision is fp16, in which nothing is trained on a CPU: small gradients would vanish." in error
    assert "Use precision auto, fp32 or bf16." in error
    assert not out.exists()
    assert autocast_dtype("fp16", torch.device("cpu")) is torch.float16  # prediction may
    assert training_dtype("fp16", torch.device("cuda")) is torch.float16
