"""Tokens beside the map, and blocks of another width."""

import dataclasses

import pytest
import torch
from sam_pairs import SPEC

from convlora.backbone.attention import Attention
from convlora.backbone.image_encoder import Block, ImageEncoder, partition_windows


@pytest.fixture
def block():
    def make(window):
        torch.manual_seed(0)
        block = Block(dataclasses.replace(SPEC.encoder, window_size=3), window).double()
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return block

    return make


def slow_attention(layer, x, tokens):
    """Heads one by one, logits of the map and the tokens written out, positions for pairs of the map only."""
    B, H, W, C = x.shape
    n, d = tokens.shape[1], C // layer.num_heads
    sequence = torch.cat([x.reshape(B, H * W, C), tokens], dim=1)
    q, k, v = layer.qkv(sequence).view(B, H * W + n, 3, layer.num_heads, d).unbind(2)
    row, column = torch.arange(H * W) // W, torch.arange(H * W) % W
    heads = []
    for head in range(layer.num_heads):
        logits = q[:, :, head] @ k[:, :, head].transpose(1, 2) / d**0.5
        position = torch.zeros_like(logits)
        r_h = layer.rel_pos_h[row[:, None] - row + H - 1]
        r_w = layer.rel_pos_w[column[:, None] - column + W - 1]
        position[:, : H * W, : H * W] = torch.einsum("bqd,qkd->bqk", q[:, : H * W, head], r_h + r_w)
        heads.append((logits + position).softmax(-1) @ v[:, :, head])
    out = layer.proj(torch.stack(heads, 2).reshape(B, H * W + n, C))
    return out[:, : H * W].view(B, H, W, C), out[:, H * W :]


def test_attention_with_tokens_against_the_slow_formula():
    torch.manual_seed(0)
    layer = Attention(8, 2, grid=4).double()
    for table in (layer.rel_pos_h, layer.rel_pos_w):
        torch.nn.init.normal_(table)
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, tokens, *layer.parameters()]
    fast, slow = layer.with_tokens(x, tokens), slow_attention(layer, x, tokens)
    for got, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)  # double precision rounding
    gradients = [torch.autograd.grad(a.square().sum() + b.square().sum(), inputs) for a, b in (fast, slow)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(fast[0], layer(x), atol=1e-2)  # the map does attend to the tokens


@pytest.mark.parametrize("window", [0, 3])
def test_no_tokens_change_nothing(block, window):
    layer = block(window)
    x = torch.randn(2, 4, 5, SPEC.encoder.embed_dim, dtype=torch.float64)
    out, tokens = layer.with_tokens(x, x.new_zeros(2, 0, x.shape[-1]))
    torch.testing.assert_close(out, layer(x), rtol=1e-10, atol=1e-12)
    assert tokens.shape == (2, 0, x.shape[-1])


def test_each_window_has_a_copy_and_the_copies_are_averaged(block):
    layer = block(3)
    C = SPEC.encoder.embed_dim
    x = torch.randn(2, 4, 5, C, dtype=torch.float64)  # 2 x 2 padded windows an image
    tokens = torch.randn(2, 3, C, dtype=torch.float64)
    out, after = layer.with_tokens(x, tokens)
    windows = partition_windows(layer.norm1(x), 3)
    expected = torch.zeros_like(tokens)
    for image in range(2):
        for window in range(4):
            one = windows[4 * image + window][None]
            attended, seen = slow_attention(layer.attn, one, layer.norm1(tokens[image])[None])
            expected[image] += seen[0] / 4
            top, left = 3 * (window // 2), 3 * (window % 2)
            part = x[image, top : top + 3, left : left + 3]
            part = part + attended[0, : part.shape[0], : part.shape[1]]
            part = part + layer.mlp(layer.norm2(part))
            torch.testing.assert_close(out[image, top : top + 3, left : left + 3], part)
    expected = tokens + expected
    torch.testing.assert_close(after, expected + layer.mlp(layer.norm2(expected)))


@pytest.mark.parametrize("window", [0, 3])
def test_narrowed_block_keeps_the_windows(block, window):
    layer = block(window)
    narrow = layer.narrowed(8, 2)
    assert (narrow.window_size, narrow.attn.num_heads, narrow.mlp.lin1.out_features) == (window, 2, 32)
    assert narrow.attn.rel_pos_h.shape == (layer.attn.rel_pos_h.shape[0], 4)
    assert narrow(torch.randn(1, 4, 5, 8)).shape == (1, 4, 5, 8)


def test_side_path_gets_tokens_patches_image_and_blocks():
    torch.manual_seed(0)
    encoder = ImageEncoder(SPEC.encoder)
    torch.nn.init.normal_(encoder.pos_embed)
    image = torch.randn(1, 3, SPEC.encoder.image_size, SPEC.encoder.image_size)
    plain = encoder(image)
    seen = []

    class Twice(torch.nn.Module):
        def forward(self, x, patches, image, blocks):
            seen.extend([x - patches, patches, image])
            for block in blocks:
                x = block(x)
            return 2 * x

    keys = encoder.state_dict().keys()
    encoder.side_path = Twice()
    assert not torch.allclose(encoder(image), plain)
    torch.testing.assert_close(seen[0], encoder.pos_embed)
    assert torch.equal(seen[1], encoder.patch_embed(image))
    assert seen[2] is image
    assert encoder.state_dict().keys() == keys
