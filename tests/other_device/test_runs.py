"""Whole runs on a device that is not the CPU: scores and weights of the CPU, to rounding."""

import json
from functools import partial

import device
import numpy as np
import pytest
import torch
from runs import OPTIONS, RUNS
from safetensors.torch import load_file

import convlora
from convlora.analysis.analyze import analyze
from convlora.checkpoint import from_pretrained
from convlora.evaluation import evaluate_run
from convlora.inference.predictor import Predictor
from convlora.training import fit as fit_module


def train(name, out, backbone, request, **more):
    data, options = RUNS[name]
    convlora.train(
        request.getfixturevalue(data), out, backbone=str(backbone), **{**OPTIONS, **options, **more}
    )
    return out


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, which="last"):
    return load_file(run / which / "adapter_model.safetensors")


@pytest.mark.parametrize("name", RUNS)
def test_a_training_ends_as_on_the_cpu(name, runs_of_the_cpu, small_backbone, tmp_path, request):
    here, there = train(name, tmp_path / "run", small_backbone, request), runs_of_the_cpu / name
    places = [json.loads((run / "environment.json").read_text())["device"] for run in (here, there)]
    assert places == [device.NAME, "cpu"]
    losses = [[row["loss"] for row in rows(run) if "loss" in row] for run in (here, there)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 4
    one, other = weights(here), weights(there)
    assert one.keys() == other.keys()
    for key in one:
        # the softmax does not see the keys' bias, so its gradient is rounding, which AdamW makes steps of
        if "k_proj.bias" not in key:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=2e-4, msg=key)  # lr is 1e-3
    scores = [json.loads((run / "metrics.json").read_text())["val"] for run in (here, there)]
    assert scores[0]["mean_dice_foreground"] == pytest.approx(scores[1]["mean_dice_foreground"], abs=0.01)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_in_half_precision(precision, runs_of_the_cpu, small_backbone, tmp_path, request):
    """With CUDA's casts, and the scaled gradients of fp16."""
    run, there = tmp_path / "run", runs_of_the_cpu / "conv-lora"
    train("conv-lora", run, small_backbone, request, precision=precision)
    losses = [[row["loss"] for row in rows(one) if "loss" in row] for one in (run, there)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    change = [key for key, value in weights(run).items() if not torch.equal(value, weights(there)[key])]
    assert change


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_that_was_cut_off_ends_in_the_same_weights(
    precision, small_backbone, tmp_path, request, monkeypatch
):
    class CutOffError(Exception):
        pass

    real = fit_module._Run._after_step

    def cut(self, done):
        real(self, done)
        if done == 3:
            raise CutOffError

    call = partial(train, "conv-lora", backbone=small_backbone, request=request, precision=precision)
    whole = call(tmp_path / "whole")
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Run, "_after_step", cut)
        with pytest.raises(CutOffError):
            call(tmp_path / "cut")
    places = set()

    def watch(self, done):
        steps = [state["step"] for state in self.optimizer.state.values()]
        places.update(step.device.type for step in steps)  # else each step would wait for the device
        return real(self, done)

    monkeypatch.setattr(fit_module._Run, "_after_step", watch)
    cut_off = call(tmp_path / "cut", resume=True)
    assert places == {"cpu"}
    one, other = weights(whole), weights(cut_off)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_gradient_that_overflows_lowers_the_scale(small_backbone, tmp_path, request, monkeypatch):
    """Scaled gradients beyond fp16 are infinite: the step is left out, the next one is half as large."""
    scales = []
    real = fit_module._Run._after_step

    def watch(self, done):
        if done == 1:  # as if the scale had grown too far
            self.accelerator.scaler.update(2.0**40)
        scales.append(self.accelerator.scaler.get_scale())
        return real(self, done)

    monkeypatch.setattr(fit_module._Run, "_after_step", watch)
    run = train("conv-lora", tmp_path / "run", small_backbone, request, precision="fp16")
    assert scales == [2.0**40, 2.0**39, 2.0**38, 2.0**37]
    assert all(torch.isfinite(value.float()).all() for value in weights(run).values())


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("name", RUNS)
def test_predictions_are_those_of_the_cpu(name, tile, runs_of_the_cpu):
    image = np.random.default_rng(0).random((50, 70, 3)).astype(np.float32)
    made = {}
    for place in ("cpu", torch.device(device.NAME)):
        model = from_pretrained(runs_of_the_cpu / name)
        made[str(place)] = Predictor(model, place, "fp32", tile=tile).predict(image).probabilities
    torch.testing.assert_close(made["cpu"], made[device.NAME], rtol=0, atol=1e-4)
    assert made["cpu"].std() > 1e-3


def test_scores_are_those_of_the_cpu(runs_of_the_cpu, three_class_data):
    call = partial(evaluate_run, runs_of_the_cpu / "lora", three_class_data, precision="fp32")
    scores = [call(device=place) for place in ("cpu", torch.device(device.NAME))]
    assert scores[0].keys() == scores[1].keys()
    for key, value in scores[0].items():
        assert scores[1][key] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value)


def test_an_analysis_is_that_of_the_cpu(runs_of_the_cpu, binary_data, tmp_path):
    found = [
        analyze(runs_of_the_cpu / "conv-lora", binary_data, tmp_path / str(place), images=3, device=place)
        for place in ("cpu", torch.device(device.NAME))
    ]
    assert found[0].routing
    for layer, shares in found[0].routing.items():
        np.testing.assert_allclose(found[1].routing[layer], shares, atol=1e-4)
    for when in ("before", "after"):
        for block, distances in found[0].distances[when].items():
            np.testing.assert_allclose(found[1].distances[when][block], distances, rtol=1e-3)
