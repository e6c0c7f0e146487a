"""Choosing the engine, the cache of conversions, and the comparison with PyTorch."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import convlora
from convlora.checkpoint import from_pretrained, save_pretrained
from convlora.errors import ConfigError, DisagreementError, MissingExtraError, WriteError
from convlora.head import HeadOutput
from convlora.inference.engine import choose_computing
from convlora.inference.openvino import engine as engine_module
from convlora.inference.openvino import runtime, store
from convlora.inference.openvino.agreement import Difference, check_agreement, difference
from convlora.inference.openvino.engine import OpenVinoEngine
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter
from small import write_image

PIXELS = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PICTURE = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Cache that tests of a module share: a conversion takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(made, monkeypatch):
    monkeypatch.setenv("CONVLORA_CACHE", str(made))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, small_backbone):
    """Adapter whose update is not zero."""
    segmenter = Segmenter.from_backbone(str(small_backbone), ("background", "foreground"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in segmenter.named_parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name == "decoder.mask_tokens.weight":
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("adapter") / "binary"
    save_pretrained(segmenter, folder)
    return folder


@pytest.fixture
def conversions(monkeypatch):
    """Sizes that were converted."""
    seen = []
    convert = engine_module.convert

    def counted(module, size, file):
        seen.append(size)
        convert(module, size, file)

    monkeypatch.setattr(engine_module, "convert", counted)
    return seen


def made_engine(adapter, dtype=None, told=None):
    return OpenVinoEngine(from_pretrained(adapter), dtype, (told if told is not None else []).append)


@torch.no_grad()
def run(engine, pixels=PIXELS):
    return engine.run(pixels).mask_logits


def test_same_as_torch_converted_once_and_told_once(adapter, conversions, made):
    told = []
    out = run(made_engine(adapter, told=told))
    model = from_pretrained(adapter)
    torch.testing.assert_close(out, model(PIXELS).mask_logits.detach(), rtol=1e-4, atol=1e-5)
    assert conversions == [(64, 64)]
    [folder] = (made / "openvino").iterdir()
    assert {file.name for file in folder.iterdir()} == {"model.xml", "model.bin", "record.json"}
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    [line] = told
    assert line == f"The model was converted for OpenVINO, once: {folder} ({size:.0f} MB, may be deleted)."
    again = run(made_engine(adapter, told=told), PIXELS.repeat(2, 1, 1, 1))
    assert conversions == [(64, 64)]
    assert len(told) == 1
    assert torch.equal(again, out.repeat(2, 1, 1, 1))


def test_another_size_and_other_weights_are_other_conversions(adapter, monkeypatch):
    model = from_pretrained(adapter)
    key = store.fingerprint(model, (64, 64))
    assert key == store.fingerprint(from_pretrained(adapter), (64, 64))
    assert key != store.fingerprint(model, (64, 48))
    with torch.no_grad():
        model.encoder.neck[0].weight[0, 0] += 1e-6  # frozen, so not in the adapter file
    changed = store.fingerprint(model, (64, 64))
    assert changed != key
    monkeypatch.setattr(store, "version", lambda: "another")
    assert store.fingerprint(model, (64, 64)) != changed


@pytest.mark.parametrize("file", ["model.bin", "record.json"])
def test_damaged_files_are_noticed_and_made_again(file, adapter, conversions, made):
    out = run(made_engine(adapter))
    conversions.clear()
    [folder] = (made / "openvino").iterdir()
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / file).write_bytes(content)
    told = []
    assert torch.equal(run(made_engine(adapter, told=told)), out)
    assert conversions == [(64, 64)]
    assert told[0] == f"{folder} is damaged; the model is converted again."
    assert [path.name for path in (made / "openvino").iterdir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLORA_CACHE", str(tmp_path))

    def full(module, size, file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_module, "convert", full)
    with pytest.raises(
        WriteError, match=r"cannot be written to .*: No space left on device\. Make room, name "
    ):
        run(made_engine(adapter))
    assert not list((tmp_path / "openvino").iterdir())


def test_what_killed_conversions_left_is_removed_a_day_later(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLORA_CACHE", str(tmp_path))
    old, young = (tmp_path / "openvino" / f"{name}.1.part" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    run(made_engine(adapter))
    assert (old.exists(), young.exists()) == (False, True)


def test_a_model_that_openvino_cannot_convert(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLORA_CACHE", str(tmp_path))

    def fail(module, size, file):
        raise RuntimeError("Check 'false' failed at frontend.cpp:53:\nNo rule for aten::new\n")

    monkeypatch.setattr(engine_module, "convert", fail)
    message = r"OpenVINO \S+ cannot run this model: No rule for aten::new\. Use engine torch, or the version"
    with pytest.raises(ConfigError, match=message):
        run(made_engine(adapter))


def test_cache_folder_follows_the_variables(monkeypatch, tmp_path):
    assert store.cache_folder().parts[-1] == "openvino"
    monkeypatch.delenv("CONVLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / "convlora" / "openvino"


def test_compared_with_torch_once(adapter, monkeypatch):
    run(made_engine(adapter))

    def unexpected(*arguments):
        raise AssertionError("compared again")

    monkeypatch.setattr(engine_module, "torch_output", unexpected)
    run(made_engine(adapter))
    monkeypatch.setattr(engine_module, "processor", lambda: "another processor")
    with pytest.raises(AssertionError, match="compared again"):
        run(made_engine(adapter))


def test_another_function_is_refused_for_all_images(adapter, monkeypatch):
    monkeypatch.setattr(engine_module, "processor", lambda: "a third processor")
    engine = made_engine(adapter)
    load = engine._load

    def other_weights_afterwards(size):
        loaded = load(size)
        with torch.no_grad():
            engine.model.decoder.mask_tokens.weight.mul_(1.5)
        return loaded

    monkeypatch.setattr(engine, "_load", other_weights_afterwards)
    message = r"\(fp32\) does not compute what PyTorch does on this image: .* Use engine torch\."
    with pytest.raises(DisagreementError, match=message) as first:
        run(engine)
    with pytest.raises(DisagreementError) as second:
        run(engine)
    assert first.value is second.value


def test_differences_are_those_of_the_formula(adapter):
    head = from_pretrained(adapter).head
    reference = torch.tensor([[[[3.0, -4.0], [1.0, -1.0]]]])
    output = torch.tensor([[[[3.0, -4.0], [1.0, 2.0]]]])
    found = difference(head, HeadOutput(output, None), HeadOutput(reference, None))
    assert found.logits == pytest.approx(3 / 27**0.5)
    assert found.pixels == 0.25
    bad = difference(head, HeadOutput(output * float("nan"), None), HeadOutput(reference, None))
    assert bad.logits == float("inf")


def test_bounds():
    check_agreement(Difference(9e-4, 9e-4), None)
    check_agreement(Difference(0.019, 0.019), Difference(0, 0))
    check_agreement(Difference(0.11, 0.03), Difference(0.03, 0.01))
    for found, half in [
        (Difference(2e-3, 0), None),
        (Difference(0, 2e-3), None),
        (Difference(0.021, 0), Difference(0.005, 0)),
        (Difference(0, 0.05), Difference(0.02, 0.01)),
        (Difference(float("inf"), 0), Difference(0.02, 0.01)),
    ]:
        with pytest.raises(DisagreementError, match="PyTorch does on this image"):
            check_agreement(found, half)
    with pytest.raises(DisagreementError, match=r"\(bf16\).* Use engine torch, or precision fp32\."):
        check_agreement(Difference(1, 1), Difference(0, 0))


def test_predictor_predicts_the_same(adapter):
    torch_side, other = (Predictor(from_pretrained(adapter), "cpu", "fp32", e) for e in ("torch", "openvino"))
    expected, found = torch_side.predict(PICTURE), other.predict(PICTURE)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-5)
    assert 0.02 < found.ids.mean() < 0.98, "one class everywhere shows nothing"
    assert (torch_side.engine.name, other.engine.name) == ("torch", "openvino")
    loaded = convlora.load(adapter, precision="fp32", engine="openvino")
    assert np.array_equal(loaded.predict(PICTURE).ids, found.ids)


def test_weights_that_torch_has_rounded_are_refused(adapter):
    model = from_pretrained(adapter)
    Predictor(model, "cpu", "bf16")
    with pytest.raises(ConfigError, match=r"held in bfloat16.*Load the model again"):
        Predictor(model, "cpu", "fp32", "openvino")


def test_commands(adapter, binary_data, tmp_path, command):
    scores = {}
    for engine in ("torch", "openvino"):
        file = tmp_path / f"{engine}.json"
        options = ["--engine", engine, "--precision", "fp32", "--json", file]
        code, _, err = command("evaluate", adapter, binary_data, *options)
        assert code == 0, err
        written = json.loads(file.read_text())
        assert written["engine"] == engine
        scores[engine] = {key: value for key, value in written.items() if isinstance(value, float)}
    assert len(scores["torch"]) > 10
    assert scores["openvino"] == pytest.approx(scores["torch"], rel=1e-3)
    image = next((binary_data / "test" / "images").iterdir())
    code, _, err = command("predict", adapter, image, "--out", tmp_path / "out", "--engine", "openvino")
    assert code == 0, err
    assert (tmp_path / "out" / f"{image.stem}.png").is_file()


def test_mistakes(command, adapter, tmp_path):
    image = write_image(tmp_path / "image.png")
    code, _, err = command("predict", adapter, image, "--out", tmp_path / "out", "--engine", "openvin")
    assert code == 2
    assert "engine is 'openvin'; it must be one of torch, openvino. Did you mean 'openvino'?" in err
    for arguments, message in [
        (("openvin",), "engine is 'openvin'; it must be one of torch, openvino. Did you mean 'openvino'?"),
        (("onnx",), "engine is 'onnx'; it must be one of torch, openvino."),
        (
            ("openvino", "cuda"),
            "engine is 'openvino', which computes on the CPU here, but device is 'cuda'. ",
        ),
        (("openvino", None, "fp16"), "precision is fp16, but OpenVINO computes in fp16 on few processors"),
        (("openvino", None, "fp8"), "precision is 'fp8'; it must be one of auto, fp32, bf16, fp16."),
        (("openvino", 3.5), "device is 3.5; it must be cpu, cuda, cuda:0, cuda:1, ..., or mps"),
        (("torch", 3.5), "device is 3.5; it must be cpu, cuda, cuda:0, cuda:1, ..., or mps"),
        (("openvino", "gpu"), "device is 'gpu'; it must be cpu, cuda, cuda:0, cuda:1, ..., or mps"),
    ]:
        with pytest.raises(ConfigError) as error:
            choose_computing(*arguments)
        assert str(error.value).startswith(message)


def test_bf16_is_refused_where_openvino_would_take_fp32(monkeypatch):
    monkeypatch.setattr(runtime, "_capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(ConfigError, match="precision is bf16, but OpenVINO finds no bf16 arithmetic in this"):
        choose_computing("openvino", None, "bf16")
    assert choose_computing("openvino", None, "fp32").dtype is None


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_without_openvino(precision, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"(?s)'openvino', which is not .*'convlora\[openvino\]'"):
        choose_computing("openvino", None, precision)


def test_nothing_is_reported_to_its_makers():
    """OpenVINO's Python package would send usage data when it is imported."""
    runtime.openvino()
    assert sys.modules.get("openvino_telemetry") is None


_DROPPED = """
import faulthandler, signal, sys, threading
import numpy, convlora
faulthandler.enable()  # gives the main thread a signal stack, that OpenVINO replaces
models = [convlora.load(sys.argv[1], engine="openvino")]
models[0].predict(numpy.zeros((40, 64, 3), numpy.uint8))
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_model_dropped_in_another_thread_leaves_signals_working(adapter):
    """OpenVINO would take the main thread's signal stack with it."""
    done = subprocess.run(
        [sys.executable, "-c", _DROPPED, adapter], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
