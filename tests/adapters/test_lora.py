"""LoRA against peft with the same weights, and its merge."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from convlora.adapters import Lora, install
from convlora.adapters.lora import LoRALinear
from convlora.errors import ConfigError


class Wrapped(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x)


@pytest.fixture
def pair():
    base = nn.Linear(6, 10, dtype=torch.float64)
    ours = LoRALinear(base, 4, 7.0)
    nn.init.normal_(ours.lora_B)
    config = LoraConfig(r=4, lora_alpha=7.0, target_modules=["linear"], lora_dropout=0.0)
    theirs = get_peft_model(Wrapped(nn.Linear(6, 10, dtype=torch.float64)), config).double()
    layer = theirs.base_model.model.linear
    with torch.no_grad():
        layer.base_layer.weight.copy_(base.weight)
        layer.base_layer.bias.copy_(base.bias)
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        layer.lora_B["default"].weight.copy_(ours.lora_B)
    return ours, theirs, layer


def test_equals_peft(pair):
    ours, theirs, layer = pair
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(x1), theirs(x2)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(out, ours.base(x))
    out.sin().sum().backward()
    expected.sin().sum().backward()
    for got, want in (
        (x1.grad, x2.grad),
        (ours.lora_A.grad, layer.lora_A["default"].weight.grad),
        (ours.lora_B.grad, layer.lora_B["default"].weight.grad),
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
        assert want.abs().max() > 0


def test_merged_equals_peft(pair):
    ours, theirs, _ = pair
    merged = ours.merged()
    assert type(merged) is nn.Linear
    expected = theirs.merge_and_unload().linear.weight
    torch.testing.assert_close(merged.weight.detach(), expected.detach(), rtol=1e-14, atol=1e-14)
    assert torch.equal(merged.bias, ours.base.bias)
    assert not torch.allclose(merged.weight, ours.base.weight)


def test_starts_as_peft_does(pair):
    """A is uniform within 1 / sqrt(in), B zero."""
    layer = LoRALinear(nn.Linear(400, 5), 8, 1.0)
    assert layer.lora_B.abs().sum() == 0
    assert 0.99 / 20 < layer.lora_A.abs().max() <= 1 / 20


def test_any_number_of_dimensions_and_no_bias():
    layer = LoRALinear(nn.Linear(6, 10, bias=False), 2, 1.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 6)
    expected = layer(x)
    assert layer.merged().bias is None
    # float32 rounding of sums of six terms
    torch.testing.assert_close(layer.merged()(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-5, atol=1e-5)
    assert layer(x[:0]).shape == (0, 10)


def test_half_precision_base_keeps_a_float32_adapter():
    base = nn.Linear(6, 10, dtype=torch.bfloat16)
    layer = LoRALinear(base, 2, 1.0)
    nn.init.normal_(layer.lora_B)
    assert layer.lora_A.dtype == torch.float32
    assert layer(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    merged = layer.merged()
    exact = base.weight.double() + 0.5 * (layer.lora_B.double() @ layer.lora_A.double())
    assert merged.weight.dtype == torch.bfloat16
    assert torch.equal(merged.weight, exact.bfloat16())  # rounded once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora: rank must be an integer of at least 1, got 0."),
        ({"alpha": -1}, "lora: alpha must be a number above 0, got -1."),
        ({"targets": ("attn.qkv", "attn.qkv")}, "lora: targets must be a list of different layer names"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError) as caught:
        Lora(**options)
    assert message in str(caught.value)


def test_short_names_of_targets(make_encoder):
    encoders = []
    for targets in (("qkv", "proj", "mlp"), ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")):
        torch.manual_seed(0)
        encoder = make_encoder()
        install(encoder, Lora(rank=2, targets=targets))
        encoders.append(encoder)
    assert list(encoders[0].state_dict()) == list(encoders[1].state_dict())
    assert "blocks.1.mlp.lin2.lora_A" in encoders[0].state_dict()
