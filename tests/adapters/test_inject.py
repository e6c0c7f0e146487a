"""The generic verbs: install, load, merge, count, and what they refuse."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from convlora.adapters import (
    DecoderOnly,
    Full,
    Lora,
    Method,
    adapter_state_dict,
    auxiliary_loss,
    count_parameters,
    install,
    load_adapter_state_dict,
    merge,
    trainable_parameters,
)
from convlora.adapters.inject import blocks, replace_module
from convlora.errors import TargetError, WeightsError


@dataclass(frozen=True)
class Returns(Method):
    name: ClassVar[str] = "returns"
    parameters: tuple[nn.Parameter, ...] = ()

    def install(self, encoder):
        return list(self.parameters)


def test_install_refuses_a_method_that_trains_nothing(make_encoder):
    with pytest.raises(TargetError, match="returns found nothing to train in FakeEncoder"):
        install(make_encoder(), Returns())
    assert install(make_encoder(), DecoderOnly()) == []


def test_install_refuses_parameters_of_something_else(make_encoder):
    with pytest.raises(TargetError, match="returned 1 parameters that are not part of the encoder"):
        install(make_encoder(), Returns((nn.Parameter(torch.zeros(2)),)))


def test_install_freezes_the_rest(make_encoder):
    encoder = make_encoder()
    install(encoder, Returns((encoder.neck.bias,)))
    assert list(trainable_parameters(encoder)) == ["neck.bias"]
    assert count_parameters(encoder).trainable == 4
    install(encoder, Full())
    counted = count_parameters(encoder)
    assert counted.trainable == counted.total == sum(p.numel() for p in encoder.parameters())
    assert counted.share == 1.0
    assert count_parameters(nn.ReLU()).share == 0.0


def test_encoder_without_blocks():
    for encoder in (nn.Linear(2, 2), nn.ModuleDict({"blocks": nn.ModuleList()})):
        with pytest.raises(TargetError, match="has no transformer blocks"):
            install(encoder, Lora())


def test_blocks(make_encoder):
    assert [block.window_size for block in blocks(make_encoder())] == [3, 0]


def test_target_that_is_no_linear_layer(make_encoder):
    with pytest.raises(TargetError, match="'norm1' is a LayerNorm, not a plain linear layer in block 0"):
        install(make_encoder(), Lora(targets=("norm1",)))


def test_target_must_be_in_every_block(make_encoder):
    encoder = make_encoder()
    encoder.blocks[1].attn = nn.Identity()
    with pytest.raises(
        TargetError, match=r"not there in block 1\. Linear layers there: mlp\.lin1, mlp\.lin2"
    ):
        install(encoder, Lora())
    assert type(encoder.blocks[0].attn.qkv) is nn.Linear  # refused before anything was changed


def test_load_reports_every_problem_and_copies_nothing(make_encoder):
    encoder = make_encoder()
    install(encoder, Lora())
    state = {name: torch.ones_like(t) for name, t in adapter_state_dict(encoder).items()}
    del state["blocks.0.attn.qkv.lora_A"]
    state["blocks.0.attn.qkv.lora_B"] = torch.ones(24, 5)
    state["blocks.9.attn.qkv.lora_A"] = torch.ones(3, 8)
    before = encoder.blocks[1].attn.qkv.lora_A.clone()
    with pytest.raises(WeightsError) as caught:
        load_adapter_state_dict(encoder, state)
    message = str(caught.value)
    assert "missing (1): blocks.0.attn.qkv.lora_A" in message
    assert "unexpected (1): blocks.9.attn.qkv.lora_A" in message
    assert "misshapen (1): blocks.0.attn.qkv.lora_B (24, 5), expected (24, 3)" in message
    assert "the options, and on the backbone" in message
    assert torch.equal(encoder.blocks[1].attn.qkv.lora_A, before)


def test_replace_module(make_encoder):
    encoder, new = make_encoder(), nn.Linear(8, 24)
    replace_module(encoder, "blocks.1.attn.qkv", new)
    replace_module(encoder, "blocks.0", new)
    assert encoder.blocks[1].attn.qkv is new
    assert encoder.blocks[0] is new
    with pytest.raises(TargetError, match=r"FakeEncoder has no submodule 'blocks\.1\.attn\.query'"):
        replace_module(encoder, "blocks.1.attn.query", new)
    with pytest.raises(TargetError, match=r"no submodule 'block\.1'"):
        replace_module(encoder, "block.1", new)


def test_merged_encoder_is_frozen(make_encoder):
    encoder = make_encoder()
    install(encoder, Lora())
    merge(encoder)
    assert count_parameters(encoder).trainable == 0


def test_no_side_loss(make_encoder):
    assert auxiliary_loss(make_encoder()) is None
