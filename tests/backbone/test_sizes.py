"""Any input size that is a multiple of the patch, against the bias written out in full."""

import pytest
import torch
from sam_pairs import SPEC, assert_close
from torch.nn import functional as F

from convlora.backbone.attention import Attention, relative_positions
from convlora.backbone.image_encoder import ImageEncoder, merge_windows, partition_windows
from convlora.errors import DataError


def slow_attention(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Loop over heads and queries; the relative position of every pair looked up one by one."""
    B, H, W, C = x.shape
    d = C // layer.num_heads
    q, k, v = layer.qkv(x).reshape(B, H * W, 3, layer.num_heads, d).unbind(2)

    def table(parameter: torch.Tensor, size: int) -> torch.Tensor:
        if parameter.shape[0] == 2 * size - 1:
            return parameter
        return F.interpolate(parameter.T[None], size=2 * size - 1, mode="linear")[0].T

    R_h, R_w = table(layer.rel_pos_h, H), table(layer.rel_pos_w, W)
    outputs = []
    for head in range(layer.num_heads):
        rows = []
        for i in range(H * W):
            query = q[:, i, head]
            logits = [
                (query * k[:, j, head]).sum(-1) / d**0.5
                + (query * R_h[i // W - j // W + H - 1]).sum(-1)
                + (query * R_w[i % W - j % W + W - 1]).sum(-1)
                for j in range(H * W)
            ]
            weights = torch.stack(logits, dim=-1).softmax(dim=-1)
            rows.append(torch.einsum("bj,bjd->bd", weights, v[:, :, head]))
        outputs.append(torch.stack(rows, dim=1))
    return layer.proj(torch.cat(outputs, dim=-1).reshape(B, H, W, C))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (6, 2), (1, 1)])
def test_attention_against_the_slow_formula(height, width):
    torch.manual_seed(0)
    layer = Attention(8, 2, grid=4).double()
    for table in (layer.rel_pos_h, layer.rel_pos_w):
        torch.nn.init.normal_(table)
    x = torch.randn(2, height, width, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    direction = torch.randn(2, height, width, 8, dtype=torch.float64)
    fast, slow = layer(x), slow_attention(layer, x)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)  # double precision rounding
    for got, want in zip(
        torch.autograd.grad((fast * direction).sum(), inputs),
        torch.autograd.grad((slow * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    if height * width > 1:
        with torch.no_grad():
            layer.rel_pos_w.zero_()
            layer.rel_pos_h.zero_()
        assert (layer(x) - fast).abs().max() > 1e-3


def test_relative_positions_are_offsets():
    table = torch.arange(9.0)[:, None]
    assert relative_positions(table, 5)[3, 1].item() == 3 - 1 + 4
    longer = relative_positions(table, 8)
    assert longer.shape == (8, 8, 1)
    assert (longer.diff(dim=0) >= 0).all()
    assert longer[7, 0] == table[-1]
    assert longer[0, 7] == table[0]


@pytest.mark.parametrize(("height", "width"), [(14, 14), (10, 13), (7, 3), (1, 20)])
def test_windows_come_back(height, width):
    x = torch.randn(2, height, width, 3)
    windows = partition_windows(x, 7)
    assert windows.shape[1:] == (7, 7, 3)
    assert torch.equal(windows[0, : min(7, height), : min(7, width)], x[0, :7, :7])
    assert torch.equal(merge_windows(windows, (height, width)), x)


@pytest.mark.parametrize(("height", "width"), [(160, 160), (96, 160), (224, 64), (16, 16)])
def test_any_multiple_of_the_patch(height, width):
    torch.manual_seed(0)
    encoder = ImageEncoder(SPEC.encoder)
    torch.nn.init.normal_(encoder.pos_embed)
    embedding = encoder(torch.randn(1, 3, height, width))
    assert embedding.shape == (1, 32, height // 16, width // 16)
    embedding.square().sum().backward()
    assert encoder.pos_embed.grad.abs().sum() > 0


def test_position_embedding_is_resampled_not_cut():
    encoder = ImageEncoder(SPEC.encoder)
    ramp = torch.linspace(0, 1, 10)[None, :, None, None].expand(1, 10, 10, 48)
    encoder.pos_embed.data = ramp.clone()
    positions = encoder._positions(20, 10)
    want = F.interpolate(ramp.permute(0, 3, 1, 2), size=(20, 10), mode="bicubic").permute(0, 2, 3, 1)
    assert_close(positions, want, 1e-6)
    assert (positions[0, 1:, 0, 0] >= positions[0, :-1, 0, 0] - 1e-6).all()


@pytest.mark.parametrize(
    ("size", "fit"), [((100, 160), "112 x 160"), ((16, 17), "16 x 32"), ((8, 8), "16 x 16")]
)
def test_other_sizes_are_refused_with_the_size_to_use(size, fit):
    with pytest.raises(
        DataError, match=rf"{size[0]} x {size[1]} px .* patch size 16. Resize or pad it to {fit}"
    ):
        ImageEncoder(SPEC.encoder)(torch.zeros(1, 3, *size))
