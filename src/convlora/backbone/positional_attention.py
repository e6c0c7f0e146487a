"""Attention whose logits carry decomposed relative positions, without the N x N bias: forward and backward.

    out = softmax(q k^T / sqrt(d) + by_row[., row of the key] + by_column[., column of the key]) v

Meta's and transformers' code build the two last terms as a bias of heads x N x N values (0.8 GB a layer for
ViT-B at 1024 px in float32) and keep it for the backward pass. Here one of two exact forms runs:

- `channels`: the terms ride along as H + W extra channels of q, beside the one-hot row and column of the key,
  in one call of PyTorch's fused attention. For half precision, where products cost little, and for
  accelerators (not run: there was none at hand).
- `blockwise`: the bias of some queries at a time, within fused attention. For float32 and float64 on CPUs,
  where the extra channels would triple the products.

Gradients: `positional_gradients`, but on accelerators those of the fused call itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.backbone.position_grid import Grid, position_bias, slices
from convlora.backbone.positional_gradients import BLOCK, gradients
from convlora.recompute import run_twice

_FUSED_WIDTH = 256
"""Most channels a head may have in CUDA's flash attention."""


def attend_with_positions(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, grid: Grid
) -> Tensor:
    """Softmax attention with position logits; see above.

    Args:
        q: (B, heads, N, d), unscaled.
        k: (B, heads, N, d).
        v: (B, heads, N, d).
        by_row: (B, heads, N, H) logit of each query for the keys of each row.
        by_column: (B, heads, N, W) likewise for columns.
        grid: the map of the first H W of the N; queries beyond it have zeros in by_row and by_column.

    Returns:
        (B, heads, N, d) in the dtype of q.
    """
    if q.device.type != "cpu" and q.shape[-1] + sum(grid) <= _FUSED_WIDTH:
        if q.device.type == "mps" and torch.is_grad_enabled():  # whose kernel is not fused and keeps N x N
            attended: Tensor = run_twice(channels, q, k, v, by_row, by_column, grid)
            return attended
        return channels(q, k, v, by_row, by_column, grid)  # one fused kernel, no loop of small ones
    if torch.is_grad_enabled():
        return Recomputed.apply(q, k, v, by_row, by_column, grid)
    return _forward(q, k, v, by_row, by_column, grid)


def channels(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, grid: Grid) -> Tensor:
    """`attend_with_positions` through H + W extra channels of one fused call."""
    d = q.shape[-1]
    padding = -(d + sum(grid)) % 32  # matrix units take 32 half-precision channels at a time
    q = torch.cat([q * d**-0.5, by_row, by_column, q.new_zeros(*q.shape[:3], padding)], dim=-1)
    k = torch.cat([k, _rows_and_columns(k, grid, padding)], dim=-1)
    v = F.pad(v, (0, sum(grid) + padding))  # fused kernels want one width for q, k and v
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :d]


def _rows_and_columns(k: Tensor, grid: Grid, padding: int) -> Tensor:
    """One-hot row and column of every key, zeros for those without: (B, heads, N, H + W + padding)."""
    H, W = grid
    rows = torch.eye(H, dtype=k.dtype, device=k.device).repeat_interleave(W, dim=0)
    columns = torch.eye(W, dtype=k.dtype, device=k.device).repeat(H, 1)
    places = torch.cat([rows, columns], dim=1)
    places = F.pad(places, (0, padding, 0, k.shape[2] - grid.positions))
    return places.expand(k.shape[0], k.shape[1], -1, -1)


class Recomputed(torch.autograd.Function):
    """`attend_with_positions`; the backward pass computes the weights again, a block of queries at a time."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # PyTorch has no type for it
        q: Tensor,
        k: Tensor,
        v: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        grid: Grid,
    ) -> Tensor:
        """Keep the operands and the output, nothing of size N x N."""
        out = _forward(q, k, v, by_row, by_column, grid)
        ctx.save_for_backward(q, k, v, by_row, by_column, out)
        ctx.grid = grid
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # as above
        """Gradients of the five tensors."""
        q, k, v, by_row, by_column, out = ctx.saved_tensors
        return *gradients((q, k, v, by_row, by_column), out, grads[0], ctx.grid), None


def _forward(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, grid: Grid) -> Tensor:
    half = q.dtype in (torch.float16, torch.bfloat16)
    return (channels if half else blockwise)(q, k, v, by_row, by_column, grid)


def blockwise(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, grid: Grid) -> Tensor:
    """`attend_with_positions` with the bias of one block of queries at a time; no gradients."""
    B, heads, N, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    many = BLOCK // (heads * N * N)  # whole maps that fit into a block; none where maps are large
    for some in slices(B, many or 1):
        for head in slices(heads, heads if many else 1):
            for rows in slices(N, N if many else max(1, BLOCK // N)):
                bias = position_bias(by_row[some, head, rows], by_column[some, head, rows], N, grid)
                part = F.scaled_dot_product_attention(
                    q[some, head, rows], k[some, head], v[some, head], attn_mask=bias
                )
                out[some, head, rows] = part
    return out
