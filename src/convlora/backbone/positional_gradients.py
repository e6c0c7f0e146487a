"""Gradients of attention with position logits, computed again in blocks: nothing of size N x N is held.

With P the weights, G the gradient of the output and L of the logits: L = P (G v^T - sum(G out)), and by_row
and by_column get the sums of L over each row's and column's keys.

Half precision: logits, weights and the sum over queries are float32, the other products take half-precision
operands, as in PyTorch's fused backward pass; sum(G out) rides along in the product G v^T in two parts, so
that the difference is rounded and not its terms.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from convlora.backbone.position_grid import Grid, position_bias, slices

BLOCK = 2**21
"""Logits held at a time: 8 MiB in float32, which stay in the cache of a processor core or near it."""

_ROWS = 512
"""Queries at a time of a large map."""

_MATRIX_UNIT = 32
"""Matrix units take so many half-precision channels at a time."""


class Gradients(NamedTuple):
    """Of the five inputs, shaped like them."""

    q: Tensor
    k: Tensor
    v: Tensor
    by_row: Tensor
    by_column: Tensor


class _Operands(NamedTuple):
    """What the gradients are made of, each (..., N, .): five inputs, the output's gradient G, sum(G out)."""

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


def gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], out: Tensor, grad: Tensor, grid: Grid
) -> Gradients:
    """Gradients of the five inputs of `attend_with_positions`, from its output and the output's gradient."""
    wide = torch.promote_types(out.dtype, torch.float32)
    delta = (grad.to(wide) * out).sum(-1, keepdim=True)
    operands = _Operands(*inputs, grad, delta)
    (B, heads), N = out.shape[:2], out.shape[2]
    if heads * N * N <= BLOCK:
        flat = _of_maps(operands.flat(), grid)
        return Gradients(*(t.unflatten(0, (B, heads)) for t in flat))
    results = Gradients(*(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs))
    scratch = _Scratch(min(_ROWS, N), N, out)
    for place in itertools.product(range(B), range(heads)):
        _of_head(operands.at(place), grid, scratch, Gradients(*(t[place] for t in results)))
    return results


def _of_maps(o: _Operands, grid: Grid) -> Gradients:
    """Gradients where a block holds whole maps; the operands are (B heads, N, .), and contiguous."""
    N, scale, wide = o.q.shape[1], o.q.shape[2] ** -0.5, o.delta.dtype
    results = Gradients(*map(torch.empty_like, o[:5]))
    for some in slices(o.q.shape[0], max(1, BLOCK // (N * N))):
        q, k, v, by_row, by_column, grad, delta = o.at(some)
        to = Gradients(*(t[some] for t in results))
        logits = position_bias(by_row.to(wide), by_column.to(wide), N, grid)
        logits.baddbmm_(q.to(wide), k.to(wide).transpose(1, 2), alpha=scale)
        weights = logits.softmax(-1).to(q.dtype)
        torch.bmm(weights.transpose(1, 2), grad, out=to.v)
        left, right = _with_delta(grad, v, delta)
        d_logits = torch.bmm(left, right.transpose(1, 2)).mul_(weights)
        torch.bmm(d_logits, k, out=to.q).mul_(scale)
        torch.bmm(d_logits.transpose(1, 2), q, out=to.k).mul_(scale)
        _sum_over_rows_and_columns(d_logits, grid, to.by_row, to.by_column)
    return results


class _Scratch:
    """Memory that all blocks of queries use in turn: fresh pages cost more than the arithmetic on them."""

    def __init__(self, rows: int, N: int, like: Tensor) -> None:
        self.rows = rows
        self.wide = torch.promote_types(like.dtype, torch.float32)
        self.logits = like.new_empty(rows, N, dtype=self.wide)
        half = self.wide != like.dtype
        self.weights = like.new_empty(rows, N) if half else self.logits
        self.d_logits = like.new_empty(rows, N)


def _of_head(o: _Operands, grid: Grid, scratch: _Scratch, to: Gradients) -> None:
    """Write the gradients of one head, whose operands are (N, .).

    Plain matrix products into memory that is used again, not batched ones of batch 1.
    """
    N, scale, wide = o.q.shape[0], o.q.shape[1] ** -0.5, scratch.wide
    k = o.k.contiguous()
    wide_k, by_row, by_column = (t.to(wide) for t in (k, o.by_row, o.by_column))
    left, right = _with_delta(o.grad, o.v, o.delta)
    to_k, to_v = torch.zeros_like(wide_k), torch.zeros_like(wide_k)
    for rows in slices(N, scratch.rows):
        q, grad = o.q[rows].contiguous(), o.grad[rows]
        n = q.shape[0]
        logits, weights, d_logits = scratch.logits[:n], scratch.weights[:n], scratch.d_logits[:n]
        on_map = logits[:, : grid.positions].unflatten(1, grid)
        torch.add(by_row[rows, :, None], by_column[rows, None, :], out=on_map)
        logits[:, grid.positions :] = 0
        logits.addmm_(q.to(wide), wide_k.t(), alpha=scale)
        torch.softmax(logits, dim=1, out=logits)
        if weights is not logits:
            weights.copy_(logits)
        _add_product(to_v, weights.t(), grad)
        torch.mm(left[rows], right.t(), out=d_logits).mul_(weights)
        to.q[rows] = d_logits.mm(k).mul_(scale)
        _add_product(to_k, d_logits.t(), q, scale)
        _sum_over_rows_and_columns(d_logits, grid, to.by_row[rows], to.by_column[rows])
    to.k.copy_(to_k)
    to.v.copy_(to_v)


def _add_product(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Add scale a b to `total`, which may be of higher precision."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=scale)
    else:
        total.add_(a.mm(b), alpha=scale)


def _with_delta(grad: Tensor, v: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Widen G and v, (..., N, d), by channels that make their product G v^T - delta; delta is (..., N, 1)."""
    parts = [-delta.to(grad.dtype)]
    if delta.dtype != grad.dtype:
        parts.append((-delta - parts[0]).to(grad.dtype))
        rest = -(grad.shape[-1] + len(parts)) % _MATRIX_UNIT
        parts.append(grad.new_zeros(*grad.shape[:-1], rest))
    left = torch.cat([grad, *parts], dim=-1)
    return left, torch.cat([v, v.new_ones(*v.shape[:-1], left.shape[-1] - v.shape[-1])], dim=-1)


def _sum_over_rows_and_columns(d_logits: Tensor, grid: Grid, d_row: Tensor, d_column: Tensor) -> None:
    on_map = d_logits[..., : grid.positions].unflatten(-1, grid)
    torch.sum(on_map, -1, out=d_row)
    torch.sum(on_map, -2, out=d_column)
