"""The decoder's short cuts against the layers that they stand for, forward and backward."""

import copy

import pytest
import torch
from torch.nn import functional as F

from convlora.backbone.mask_decoder import MaskDecoder, attend
from small import SMALL


def gradients(output, *inputs):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=output.dtype)
    return torch.autograd.grad((output * weight).sum(), inputs)


@pytest.mark.parametrize("tokens", [1, 4], ids=["one mask", "four masks"])
def test_masks_are_those_of_the_transposed_convolutions(tokens):
    """Rows and columns in their places: the map is not square, and each cell's value is its own."""
    torch.manual_seed(0)
    decoder = MaskDecoder(SMALL.decoder).double()
    for layer in decoder.output_upscaling:
        if hasattr(layer, "bias"):
            torch.nn.init.normal_(layer.bias)
            torch.nn.init.normal_(layer.weight, std=0.3)
    if tokens == 1:
        decoder.output_hypernetworks_mlps = decoder.output_hypernetworks_mlps[:1]
    slow = copy.deepcopy(decoder)
    image = torch.randn(2, 32, 5, 3, dtype=torch.double, requires_grad=True)
    positions = torch.randn(1, 32, 5, 3, dtype=torch.double)

    decoded = decoder.decode(image, positions)
    got = decoder.masks(decoded)

    token = torch.cat([slow.iou_token.weight, slow.mask_tokens.weight]).expand(2, -1, -1)
    flat = (x.flatten(2).transpose(1, 2) for x in (image, positions))
    _, pixels = slow.transformer(*flat, token)
    pixels = slow.output_upscaling(pixels.transpose(1, 2).unflatten(2, (5, 3)))
    networks = slow.output_hypernetworks_mlps
    weights = torch.stack(
        [networks[min(i, len(networks) - 1)](decoded.mask_tokens[:, i]) for i in range(4)], dim=1
    )
    expected = torch.einsum("ntc,nchw->nthw", weights, pixels)

    assert got.shape == (2, 4, 20, 12)
    torch.testing.assert_close(got, expected)
    assert got.std() > 1e-3
    names = [name for name, _ in decoder.output_upscaling.named_parameters()]
    pairs = zip(
        names,
        gradients(got, *decoder.output_upscaling.parameters()),
        gradients(expected, *slow.output_upscaling.parameters()),
        strict=True,
    )
    for name, one, other in pairs:
        torch.testing.assert_close(one, other, msg=lambda m, n=name: f"{n}: {m}")
        assert one.any()


@pytest.mark.parametrize(("queries", "keys"), [(3, 200), (200, 3), (5, 5), (200, 150)])
def test_attention_is_the_fused_one(queries, keys, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.double, requires_grad=True) for n in (queries, keys, keys))
    expected = F.scaled_dot_product_attention(q, k, v)
    fused = []
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *x: fused.append(1) or (x[0] @ x[1].mT / 8**0.5).softmax(-1) @ x[2],
    )
    got = attend(q, k, v)
    assert bool(fused) == (min(queries, keys) > 8)  # the formula only with few tokens on one side
    torch.testing.assert_close(got, expected)
    for one, other in zip(gradients(got, q, k, v), gradients(expected, q, k, v), strict=True):
        torch.testing.assert_close(one, other)


def test_attention_sums_in_full_precision_under_autocast():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16).bfloat16() for n in (300, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(q, k, v)
    assert got.dtype == torch.bfloat16
    exact = (q.float() @ k.float().mT / 4).softmax(-1) @ v.float()
    torch.testing.assert_close(got, exact.bfloat16(), rtol=0, atol=0)
