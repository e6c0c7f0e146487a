"""Every method through the commands: trained, cut off, resumed to the same weights, saved, loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file

from convlora.adapters import methods, trainable_parameters
from convlora.checkpoint import from_pretrained
from convlora.config import make_config
from convlora.model import Segmenter
from convlora.training import fit as fit_module
from convlora.training.fit import fit

CASES = {name: {"name": name} for name in methods()} | {
    "switch image": {"name": "conv-lora", "routing": "switch", "scope": "image", "scales": [1, 2]},
    "soft-pixel": {"name": "conv-lora", "routing": "soft-pixel", "targets": ["attn.proj", "mlp.lin1"]},
    "vpt shallow": {"name": "vpt", "deep": False},
    "adapter sequential": {"name": "adapter", "placement": "sequential"},
}


class _CutOffError(Exception):
    pass


@pytest.mark.parametrize("case", CASES)
def test_trains_resumes_and_comes_back(case, binary_data, small_backbone, tmp_path, monkeypatch, command):
    method = CASES[case]
    options = [
        part for k, v in method.items() if k != "name" for part in ("--set", f"method.{k}={json.dumps(v)}")
    ]
    run = [
        binary_data,
        "--backbone",
        small_backbone,
        "--method",
        method["name"],
        *options,
        "--image-size",
        64,
    ]
    run += ["--max-steps", 2, "--batch-size", 2, "--precision", "fp32", "--set", "previews=0"]
    code, _, error = command("train", *run, "--out", tmp_path / "whole")
    assert code == 0, error

    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    real = fit_module._Run._after_step

    def cut(self, done):
        real(self, done)
        if done == 1:
            raise _CutOffError

    config = make_config(
        {
            **{
                "data": binary_data,
                "out": tmp_path / "cut",
                "backbone": str(small_backbone),
                "method": method,
            },
            **{"image_size": 64, "max_steps": 2, "batch_size": 2, "precision": "fp32", "previews": 0},
        }
    )
    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Run, "_after_step", cut)
        with pytest.raises(_CutOffError):
            fit(config)
    torch.manual_seed(77)
    fit(config, resume=True)
    whole, resumed = (
        load_file(tmp_path / run / "last" / "adapter_model.safetensors") for run in ("whole", "cut")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())

    back = from_pretrained(tmp_path / "whole" / "last")
    fresh = Segmenter.from_backbone(str(small_backbone), back.config.classes, back.method, image_size=64)
    start = dict(fresh.named_parameters())
    assert whole.keys() == trainable_parameters(back).keys()
    for name, parameter in back.named_parameters():  # what is saved is what was trained; the rest is frozen
        assert name in whole or torch.equal(parameter, start[name]), name
    moved = {name for name, tensor in whole.items() if not torch.equal(tensor, start[name])}
    assert any(name.startswith("encoder.") for name in moved) == (case != "decoder-only")
    assert any(name.startswith("decoder.") for name in moved)
