"""Frozen weights held in half precision: the same bits under autocast."""

import copy

import pytest
import torch

from convlora.backbone.sam import Sam
from convlora.errors import ConfigError
from convlora.frozen import hold_frozen_in
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter, SegmenterConfig
from small import SMALL


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Segmenter(Sam(SMALL), SegmenterConfig("small", ("background", "a"), "conv-lora", image_size=64))
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)  # updates and positions act
    return made.train()


def run(model):
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(image, keys=[1, 2]).mask_logits
    logits.float().square().mean().backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_output_and_gradients_under_autocast_are_the_same_bits(model):
    held = copy.deepcopy(model)
    hold_frozen_in(held, torch.bfloat16)
    (a, gradients_a), (b, gradients_b) = run(model), run(held)
    assert torch.equal(a, b)
    assert gradients_a.keys() == gradients_b.keys()
    assert all(torch.equal(gradients_a[name], gradients_b[name]) for name in gradients_a)


def test_only_frozen_products_are_rounded(model):
    hold_frozen_in(model, torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes["encoder.blocks.0.mlp.lin1.weight"] == torch.bfloat16
    assert dtypes["encoder.neck.0.weight"] == torch.bfloat16
    assert dtypes["encoder.blocks.0.norm1.weight"] == torch.float32
    assert dtypes["encoder.blocks.0.attn.rel_pos_h"] == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_float32_changes_nothing(model):
    before = copy.deepcopy(model.state_dict())
    hold_frozen_in(model, None)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_rounded_once_is_not_used_in_another_precision(model):
    Predictor(model, "cpu", "bf16")
    Predictor(model, "cpu", "bf16")  # the same again
    for precision in ("fp32", "fp16"):
        with pytest.raises(ConfigError, match=r"held in bfloat16.*cannot be used in float.*Load the model"):
            Predictor(model, "cpu", precision)
