"""Attention probabilities against transformers', and the distance against loops over queries and keys."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention

from convlora.adapters import Adapter, ConvLora, Lora, Vpt, install, trainable_parameters
from convlora.analysis.attention import pairwise_distances, watch_distances
from convlora.backbone.attention import Attention
from convlora.backbone.image_encoder import ImageEncoder
from convlora.backbone.presets import EncoderSpec

SPEC = EncoderSpec(32, 2, 2, (1,), image_size=64, patch_size=8, window_size=3, out_channels=16)


def attention(dim=24, heads=3, grid=5):
    torch.manual_seed(0)
    module = Attention(dim, heads, grid)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("chunk", [4, 256])
def test_probabilities_are_transformers(chunk):
    ours = attention()
    config = SamVisionConfig(
        hidden_size=24, num_attention_heads=3, window_size=0, image_size=5 * 16, attn_implementation="eager"
    )
    theirs = SamVisionAttention(config, window_size=5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 5, 24)
    _, weights = theirs(x, output_attentions=True)
    got = torch.cat(list(ours.probabilities(x, chunk)), dim=2)
    # float32 sums in another order
    torch.testing.assert_close(got.flatten(0, 1), weights.reshape(6, 25, 25), rtol=1e-4, atol=1e-6)
    assert got.std() > 0.01


def test_probabilities_are_those_of_the_forward_pass():
    module = attention()
    x = torch.randn(2, 4, 7, 24)
    weights = torch.cat(list(module.probabilities(x, 5)), dim=2)
    v = module.qkv(x).flatten(1, 2).view(2, 28, 3, 3, 8)[:, :, 2].transpose(1, 2)
    expected = module.proj((weights @ v).transpose(1, 2).reshape(2, 4, 7, 24))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def encoder(method=None):
    torch.manual_seed(1)
    made = ImageEncoder(SPEC)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if method is not None:
        install(made, method)
        for parameter in trainable_parameters(made).values():
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def slow_distance(block, x, inside):
    """Loops over windows, queries and keys; `x` is the map (H, W, C) that attention gets."""
    H, W, _ = x.shape
    w = block.window_size or max(H, W)
    totals, queries = torch.zeros(2), 0
    for top in range(0, H, w):
        for left in range(0, W, w):
            window = x[top : top + w, left : left + w]
            if block.window_size:
                window = F.pad(window, (0, 0, 0, w - window.shape[1], 0, w - window.shape[0]))
            h, v = window.shape[:2]
            attn = getattr(block.attn, "base", block.attn)
            weights = torch.cat(list(attn.probabilities(window[None])), dim=2)[0]
            for q in range(h * v):
                row, column = divmod(q, v)
                if top + row >= H or left + column >= W or not inside[top + row, left + column]:
                    continue
                queries += 1
                for k in range(h * v):
                    r, c = divmod(k, v)
                    totals += weights[:, q, k] * 8 * math.hypot(row - r, column - c)
    return totals / queries


@torch.no_grad()
@pytest.mark.parametrize(
    "method",
    [
        None,
        Lora(rank=2),
        Adapter(placement="sequential"),
        ConvLora(rank=2, scales=(1, 3), scope="image"),
    ],
)
def test_distance_is_the_slow_sum(method):
    made = encoder(method)
    inside = torch.ones(5, 7, dtype=torch.bool)
    inside[:, 6:] = False
    maps = []
    for block in made.blocks:
        block.norm1.register_forward_hook(lambda m, a, out: maps.append(out[0]))
    with watch_distances(made, inside) as found:
        made(torch.randn(1, 3, 40, 56))
    assert [len(found[i]) for i in (0, 1)] == [1, 1]
    if not isinstance(method, ConvLora):
        for i, block in enumerate(made.blocks):
            expected = slow_distance(block, maps[i], inside)
            torch.testing.assert_close(found[i][0], expected, rtol=1e-4, atol=1e-4)
    assert found[0][0].max() < 8 * math.hypot(2, 2)  # within a window of three
    assert found[1][0].min() > found[0][0].max()
    assert found[1][0].std() > 0
    made(torch.randn(1, 3, 40, 56))
    assert len(found[0]) == 1  # the hooks are gone


@torch.no_grad()
def test_blocks_that_run_in_another_way_record_nothing():
    made = encoder(Vpt(tokens=2))
    with watch_distances(made, torch.ones(8, 8, dtype=torch.bool)) as found:
        made(torch.randn(1, 3, 64, 64))
    assert found == {}


def test_pairwise_distances():
    distances = pairwise_distances(3, 4)
    assert distances.shape == (12, 12)
    assert distances[0, 11].item() == pytest.approx(math.hypot(2, 3))
    assert torch.equal(distances, distances.T)
