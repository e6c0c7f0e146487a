"""Attention whose logits carry decomposed relative positions, without the N x N bias: forward and backward.

    out = softmax(q k^T / sqrt(d) + by_row[., row of the key] + by_column[., column of the key]) v

Meta's and transformers' code build the two last terms as a bias of heads x N x N values (0.8 GB a layer for
ViT-B at 1024 px in float32) and keep it for the backward pass. Here one of two exact forms runs:

- `channels`: the terms ride along as H + W extra channels of q, beside the one-hot row and column of the key.
  One call of PyTorch's fused attention does all, forward and backward. For half precision, where products
  cost little, and for accelerators (not run: there was none at hand).
- `Blockwise`: the bias of some queries at a time, within fused attention; the backward pass recomputes their
  weights. For float32 and float64 on CPUs, where the extra channels would triple the products.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 2**21
"""Logits held at a time: 8 MiB in float32, which stay in the cache of a processor core or near it."""

_ROWS = 256
"""Queries at a time in the backward pass of a large map."""

_FUSED_WIDTH = 256
"""Most channels a head may have in CUDA's flash attention."""


class Grid(NamedTuple):
    """The map whose positions are the first H W of the N queries and keys; the others have no position."""

    height: int
    width: int

    @property
    def positions(self) -> int:
        """H W."""
        return self.height * self.width


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
    if _channels_are_faster(q, grid):
        return channels(q, k, v, by_row, by_column, grid)
    if torch.is_grad_enabled():
        return Blockwise.apply(q, k, v, by_row, by_column, grid)
    return _blockwise(q, k, v, by_row, by_column, grid)


def _channels_are_faster(q: Tensor, grid: Grid) -> bool:
    if q.device.type == "cpu":
        return q.dtype in (torch.float16, torch.bfloat16)
    return q.shape[-1] + sum(grid) <= _FUSED_WIDTH  # no loop of small kernels where one fused kernel will do


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


class _Operands(NamedTuple):
    """What the backward pass works on, each (..., N, .): five inputs, the output's gradient G, sum(G out)."""

    q: Tensor
    k: Tensor
    v: Tensor
    by_row: Tensor
    by_column: Tensor
    grad: Tensor
    delta: Tensor

    def flat(self) -> "_Operands":
        """Images and heads in one axis, contiguous."""
        return _Operands(*(t.flatten(0, 1).contiguous() for t in self))

    def at(self, place: slice | tuple[int, int]) -> "_Operands":
        """Part of all of them."""
        return _Operands(*(t[place] for t in self))


class _Gradients(NamedTuple):
    """Of the five inputs, shaped like them."""

    q: Tensor
    k: Tensor
    v: Tensor
    by_row: Tensor
    by_column: Tensor


class Blockwise(torch.autograd.Function):
    """`attend_with_positions` with the bias of one block of queries at a time.

    Backward, per block, with P the weights, G the gradient of the output and L of the logits:
    L = P (G v^T - sum(G out)), and by_row and by_column get the sums of L over each row's and column's keys.
    """

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
        out = _blockwise(q, k, v, by_row, by_column, grid)
        ctx.save_for_backward(q, k, v, by_row, by_column, out)
        ctx.grid = grid
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # as above
        """Gradients of the five tensors."""
        q, k, v, by_row, by_column, out = ctx.saved_tensors
        (grad,) = grads
        operands = _Operands(q, k, v, by_row, by_column, grad, (grad * out).sum(-1, keepdim=True))
        (B, heads), N = out.shape[:2], out.shape[2]
        if heads * N * N <= _BLOCK:
            flat = _backward_of_maps(operands.flat(), ctx.grid)
            return *(t.unflatten(0, (B, heads)) for t in flat), None
        zeros = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in operands[:5])
        results = _Gradients(*zeros)
        scratch = out.new_empty(2, min(_ROWS, N), N)
        for place in itertools.product(range(B), range(heads)):
            part = _Gradients(*(t[place] for t in results))
            _backward_of_head(operands.at(place), ctx.grid, scratch, part)
        return *results, None


def _blockwise(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, grid: Grid) -> Tensor:
    B, heads, N, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    many = _BLOCK // (heads * N * N)  # whole maps that fit into a block; none where maps are large
    for some in _slices(B, many or 1):
        for head in _slices(heads, heads if many else 1):
            for rows in _slices(N, N if many else max(1, _BLOCK // N)):
                bias = _bias(by_row[some, head, rows], by_column[some, head, rows], N, grid)
                part = F.scaled_dot_product_attention(
                    q[some, head, rows], k[some, head], v[some, head], attn_mask=bias
                )
                out[some, head, rows] = part
    return out


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _bias(by_row: Tensor, by_column: Tensor, N: int, grid: Grid) -> Tensor:
    """Logits of positions, (..., n, N), for n queries."""
    map_part = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
    return map_part if grid.positions == N else F.pad(map_part, (0, N - grid.positions))


def _backward_of_maps(o: _Operands, grid: Grid) -> _Gradients:
    """Gradients where a block holds whole maps; the operands are (B heads, N, .), and contiguous."""
    N, scale = o.q.shape[1], o.q.shape[2] ** -0.5
    results = _Gradients(*map(torch.empty_like, o[:5]))
    for some in _slices(o.q.shape[0], max(1, _BLOCK // (N * N))):
        q, k, v, by_row, by_column, grad, delta = o.at(some)
        to = _Gradients(*(t[some] for t in results))
        weights = _bias(by_row, by_column, N, grid)
        weights = weights.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)
        torch.bmm(weights.transpose(1, 2), grad, out=to.v)
        d_logits = torch.bmm(grad, v.transpose(1, 2)).sub_(delta).mul_(weights)
        torch.bmm(d_logits, k, out=to.q).mul_(scale)
        torch.bmm(d_logits.transpose(1, 2), q, out=to.k).mul_(scale)
        _sum_over_rows_and_columns(d_logits, grid, to.by_row, to.by_column)
    return results


def _backward_of_head(o: _Operands, grid: Grid, scratch: Tensor, to: _Gradients) -> None:
    """Write the gradients of one head, whose operands are (N, .), into zeros; `scratch` is (2, rows, N).

    Plain matrix products into memory that is used again, not batched ones of batch 1.
    """
    N, scale = o.q.shape[0], o.q.shape[1] ** -0.5
    k, v = o.k.contiguous(), torch.cat([o.v, torch.ones_like(o.delta)], dim=1)
    grad_less_delta = torch.cat([o.grad, -o.delta], dim=1)  # one product gives G v^T - delta
    for rows in _slices(N, scratch.shape[1]):
        q, grad = o.q[rows].contiguous(), o.grad[rows]
        weights, d_logits = scratch[:, : q.shape[0]].unbind(0)
        on_map = weights[:, : grid.positions].unflatten(1, grid)
        torch.add(o.by_row[rows, :, None], o.by_column[rows, None, :], out=on_map)
        weights[:, grid.positions :] = 0
        torch.softmax(weights.addmm_(q, k.t(), alpha=scale), dim=1, out=weights)
        to.v.addmm_(weights.t(), grad)
        torch.mm(grad_less_delta[rows], v.t(), out=d_logits).mul_(weights)
        to.q[rows] = d_logits.mm(k).mul_(scale)
        to.k.addmm_(d_logits.t(), q, alpha=scale)
        _sum_over_rows_and_columns(d_logits, grid, to.by_row[rows], to.by_column[rows])


def _sum_over_rows_and_columns(d_logits: Tensor, grid: Grid, d_row: Tensor, d_column: Tensor) -> None:
    on_map = d_logits[..., : grid.positions].unflatten(-1, grid)
    torch.sum(on_map, -1, out=d_row)
    torch.sum(on_map, -2, out=d_column)
