"""Attention with positions against the plain formula, every gradient included."""

import pytest
import torch
from torch.nn import functional as F

from convlora.backbone import positional_attention, positional_gradients
from convlora.backbone.position_grid import Grid
from convlora.backbone.positional_attention import Recomputed, attend_with_positions, channels
from convlora.backbone.positional_gradients import gradients

NAMES = ("q", "k", "v", "by_row", "by_column")


def operands(H, W, tokens=0, B=2, heads=3, d=8, dtype=torch.float64, seed=0):
    """Views as a fused q, k, v projection gives them; queries without a position have zeros there."""
    generator = torch.Generator().manual_seed(seed)
    N = H * W + tokens
    qkv = torch.randn(B, N, 3, heads, d, generator=generator, dtype=torch.float64)
    by_row, by_column = (
        F.pad(torch.randn(B, heads, H * W, n, generator=generator, dtype=torch.float64), (0, 0, 0, tokens))
        for n in (H, W)
    )
    views = [*qkv.to(dtype).permute(2, 0, 3, 1, 4).unbind(0), by_row.to(dtype), by_column.to(dtype)]
    return [view.requires_grad_() for view in views]


def plain(q, k, v, by_row, by_column, grid):
    """The formula with the whole bias."""
    bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
    bias = F.pad(bias, (0, q.shape[2] - grid.positions))
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def with_gradients(form, inputs, grid):
    out = form(*inputs, grid)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).cos()
    return [out, *torch.autograd.grad((out.double() * weights).sum(), inputs)]


@pytest.fixture(params=["whole maps", "blocks of one head"])
def block(request, monkeypatch):
    """Both ways of cutting the work, with blocks that do not divide it."""
    if request.param == "blocks of one head":
        monkeypatch.setattr(positional_attention, "BLOCK", 100)
        monkeypatch.setattr(positional_gradients, "BLOCK", 100)
        monkeypatch.setattr(positional_gradients, "_ROWS", 7)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("H", "W", "tokens"), [(4, 4, 0), (3, 7, 0), (6, 2, 5)])
@pytest.mark.parametrize("form", [Recomputed.apply, channels])
def test_both_forms_equal_the_formula_with_all_gradients(form, H, W, tokens):
    inputs, grid = operands(H, W, tokens), Grid(H, W)
    got, want = with_gradients(form, inputs, grid), with_gradients(plain, inputs, grid)
    for name, a, b in zip(("out", *NAMES), got, want, strict=True):
        # double precision rounding of sums over at most 21 keys
        torch.testing.assert_close(
            a, b, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.usefixtures("block")
def test_float32_rounds_as_the_formula_in_double_precision():
    inputs, grid = operands(5, 6, dtype=torch.float32), Grid(5, 6)
    got = with_gradients(attend_with_positions, inputs, grid)
    want = with_gradients(plain, operands(5, 6), grid)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)  # 24 bits, some tens of terms


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("tokens", [0, 3])
def test_bf16_is_as_near_to_double_precision_as_the_formula_in_bf16(tokens):
    inputs, grid = operands(5, 6, tokens, dtype=torch.bfloat16), Grid(5, 6)
    exact = with_gradients(plain, [t.detach().double().requires_grad_() for t in inputs], grid)
    got = with_gradients(attend_with_positions, inputs, grid)
    for name, a, b in zip(("out", *NAMES), got, exact, strict=True):
        assert a.dtype == torch.bfloat16
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error < 2**-6, name  # bf16 holds 8 bits; the output's rounding and the gradient's add up


@pytest.mark.usefixtures("block")
def test_in_bf16_the_small_difference_of_large_terms_keeps_its_digits():
    """With values that hardly differ, G v^T - sum(G out) is a hundredth of its terms.

    The oracle is the same formula in double precision, from the same rounded operands and output.
    """
    inputs, grid = operands(5, 6), Grid(5, 6)
    with torch.no_grad():
        inputs[2].mul_(2**-6).add_(1)
    low = [t.detach().bfloat16() for t in inputs]
    out = channels(*low, grid)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = gradients(tuple(low), out, grad, grid)
    want = gradients(tuple(t.double() for t in low), out.double(), grad.double(), grid)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert (a.double() - b).norm() < 2**-7 * b.norm(), name


@pytest.mark.usefixtures("block")
def test_positions_act_and_queries_without_a_position_have_none():
    inputs, grid = operands(4, 3, tokens=2), Grid(4, 3)
    out = attend_with_positions(*inputs, grid)
    without = attend_with_positions(*inputs[:3], *(torch.zeros_like(t) for t in inputs[3:]), grid)
    changed = (out - without).abs().amax((0, 1, 3)) > 1e-3
    assert changed[:12].all()
    assert not changed[12:].any()


def test_nothing_of_size_n_by_n_is_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(positional_attention, "BLOCK", 2**12)
    inputs, grid = operands(16, 16, B=1, heads=2, dtype=torch.float32), Grid(16, 16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        attend_with_positions(*inputs, grid)
    assert kept
    assert max(kept) < 256 * 256


def test_without_gradients_the_same_values_come():
    inputs, grid = operands(5, 4, dtype=torch.float32), Grid(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            attend_with_positions(*inputs, grid), Recomputed.apply(*inputs, grid), rtol=0, atol=0
        )
