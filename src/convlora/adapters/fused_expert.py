"""An expert of many channels, without its fine pixels in memory at any time.

The fine pixels that the down step reads, P x P x r values a cell (16 r where the scale is even), are what an
expert costs in time: written, read by GELU, read by the weighted sum, and the same again backward. Here
they are made for one column p of each cell's P at a time, and again in the backward pass. With z the coarse
map, W_ij the kernel's (r, r) matrices, R_i and C_pj the fixed maps of the rows and of column p (`experts`),

    fine_p = sum_i  R_i (sum_j  C_pj (z W_ij)) + bias,    out = sum_p  d_p D GELU(fine_p).

R_i has a few weights a row around its diagonal: it is applied to blocks of cells and the rows within reach.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convlora.adapters.base import autocast_off

_REACH = 3
"""Cells above and below one that its fine rows depend on: three at scale 2, two beyond."""

_BLOCKS = (8, 16, 7, 6, 5, 9, 10, 11, 12, 13)
"""Cells of a block, the best first; a grid that none of them divides, or only once or twice, is one block."""


class Columns(NamedTuple):
    """Fixed maps along an axis of n cells for G experts, P fine pixels a cell.

    Attributes:
        up: (G, P, n, 3 n), at p and [x, (x', j)] the weight of coarse pixel x' in pixel p + j - 1 of cell x.
        down: (G, P, n), weight of fine pixel p in cell x.
    """

    up: Tensor
    down: Tensor

    def of(self, experts: slice | Tensor) -> "Columns":
        """Those of some experts."""
        return Columns(self.up[experts], self.down[experts])


class Rows(NamedTuple):
    """Fixed maps along an axis of n cells in blocks of b, for G experts; w = b + 2 reach, or n in one block.

    Attributes:
        up: (G, blocks, b P, 3 w), at [(y, p), (y', i)] the weight of coarse row y' in row p + i - 1 of y.
        back: (G, blocks, 3 b, w P), its transpose: from the fine rows within reach to the block's cells.
        down: (G, blocks, b, b P), weight of each fine row in its cell.
    """

    up: Tensor
    back: Tensor
    down: Tensor

    def of(self, experts: slice | Tensor) -> "Rows":
        """Those of some experts."""
        return Rows(self.up[experts], self.back[experts], self.down[experts])


def columns_of(sampling: Tensor, reduction: Tensor) -> Columns:
    """From what `experts.build_banks` gives, (G, P n, 3 n) and (G, P, n)."""
    G, P, n = reduction.shape
    return Columns(sampling.view(G, P, n, 3, n).transpose(3, 4).flatten(3), reduction)


def rows_of(sampling: Tensor, reduction: Tensor) -> Rows:
    """The same for the rows, in blocks."""
    G, P, n = reduction.shape
    b = next((b for b in _BLOCKS if n % b == 0 and n >= 3 * b), n)
    reach = 0 if b == n else _REACH
    shifts = sampling.view(G, P, n, 3, n).transpose(2, 3)  # (G, p, i, y, y')
    up, back = _blocks(shifts, b, reach), _blocks(shifts.mT, b, reach)
    return Rows(
        up=up.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3),
        back=back.permute(0, 3, 4, 2, 5, 1).flatten(4).flatten(2, 3),
        down=_blocks(torch.diag_embed(reduction), b, 0).permute(0, 2, 3, 4, 1).flatten(3),
    )


def _blocks(maps: Tensor, b: int, reach: int) -> Tensor:
    """Blocks of b along the diagonal of (..., n, n), wider by the reach: (..., n / b, b, b + 2 reach)."""
    padded = F.pad(maps, (reach, reach))
    starts = range(0, maps.shape[-1], b)
    return torch.stack([padded[..., s : s + b, s : s + b + 2 * reach] for s in starts], dim=-3)


def fused_expert(z: Tensor, weight: Tensor, bias: Tensor, rows: Rows, columns: Columns) -> Tensor:
    """One expert for all samples (G = 1), or one of its own for each (G = B); differentiable once.

    Args:
        z: (B, H, W, r).
        weight: (G, r, r, 3, 3).
        bias: (G, r).
        rows: of H cells.
        columns: of W cells.

    Returns:
        (B, H, W, r).
    """
    result: Tensor = _FusedExpert.apply(z, weight, bias, rows, columns)
    return result


class _FusedExpert(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # PyTorch has no type for it
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: Rows,
        columns: Columns,
    ) -> Tensor:
        ctx.save_for_backward(z, weight, bias)
        ctx.maps = rows, columns
        pixels = _FinePixels(z, weight, bias, rows, columns)
        out = torch.zeros_like(z, memory_format=torch.contiguous_format)
        for p, down in enumerate(pixels.column_down):
            out.addcmul_(pixels.rows_summed(F.gelu(pixels.column(p))), down)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # as above
        z, weight, bias = ctx.saved_tensors
        with autocast_off(grad.device.type):  # the caller's, where backward() stands inside of it
            pixels = _FinePixels(z, weight, bias, *ctx.maps)
            gradients = _Gradients(pixels)
            for p, down in enumerate(pixels.column_down):
                active = pixels.rows_spread(grad * down)
                gradients.add(p, active, pixels.column(p))
            return *gradients.of_inputs(z, len(weight)), None, None


class _FinePixels:
    """The fine pixels of an expert, one column of each cell's at a time; see the top of the file.

    Attributes:
        shape: (B, H, W, r) of the map.
        reach: rows that lie around a block; zero where there is one.
        kernels: (G, in, (i, j, out)).
        products: z W_ij, with rows of zeros within reach: (rows, (x', j), out), a row is (sample, y', i).
        column_down: P weights of the columns, (G, 1, W, 1) each.
    """

    def __init__(self, z: Tensor, weight: Tensor, bias: Tensor, rows: Rows, columns: Columns) -> None:
        B, H, W, r = self.shape = z.shape
        self.b = rows.down.shape[2]
        self.reach = (rows.up.shape[-1] // 3 - self.b) // 2
        self.up, self.back, self.row_down = (maps.expand(B, -1, -1, -1).flatten(0, 1) for maps in rows)
        self.column_up, self.column_down = columns.up, columns.down.transpose(0, 1)[:, :, None, :, None]
        self.kernels = weight.permute(0, 2, 3, 4, 1).flatten(2)
        padded = F.pad(z, (0, 0, 0, 0, self.reach, self.reach)).flatten(1, 2)
        products = torch.matmul(padded, self.kernels).view(B, -1, W, 3, 3 * r)
        self.products = products.transpose(2, 3).reshape(-1, 3 * W, r)
        blocks = H // self.b
        self.bias = bias[:, None, None].expand(B, blocks, W, r).reshape(B * blocks, 1, W * r)
        self.fine = z.new_empty(B * blocks, self.up.shape[1], W * r)

    def column(self, p: int) -> Tensor:
        """Fine column p before the GELU: (B blocks, b P, W r), valid until the next is asked for."""
        sampled = torch.bmm(self.sampling(p, len(self.products)), self.products)
        return torch.baddbmm(self.bias, self.up, self.windows(sampled, 3), out=self.fine)

    def sampling(self, p: int, rows: int) -> Tensor:
        """The map of fine column p for each row, of all samples' together: (rows, W, 3 W)."""
        up = self.column_up[:, p]
        if len(up) == 1:
            return up.expand(rows, -1, -1)
        return up[:, None].expand(-1, rows // len(up), -1, -1).flatten(0, 1)

    def windows(self, padded: Tensor, k: int) -> Tensor:
        """What each block depends on, k rows a cell: B (H + 2 reach) k rows to (B blocks, w k, W r)."""
        B, H, W, r = self.shape
        height, N = (H + 2 * self.reach) * k, W * r
        size = (B, H // self.b, (self.b + 2 * self.reach) * k, N)
        return padded.as_strided(size, (height * N, self.b * k * N, N, 1)).flatten(0, 1)

    def rows_summed(self, active: Tensor) -> Tensor:
        """Weighted sum over the fine rows of each cell: (B blocks, b P, W r) to (B, H, W, r)."""
        return torch.bmm(self.row_down, active).view(self.shape)

    def rows_spread(self, grad: Tensor) -> Tensor:
        """Its transpose."""
        return torch.bmm(self.row_down.mT, grad.reshape(len(self.row_down), self.b, -1))


class _Gradients:
    """Gradients of an expert, summed over the columns of fine pixels."""

    def __init__(self, pixels: _FinePixels) -> None:
        B, H, W, r = pixels.shape
        P, new = len(pixels.column_down), pixels.products.new_zeros
        self.pixels, self.P = pixels, P
        self.products = new(B * H * 3, 3 * W, r)
        self.bias = new(B, W * r)
        self.padded = new(B, (H + 2 * pixels.reach) * P, W * r)
        self.inner = self.padded[:, pixels.reach * P : (pixels.reach + H) * P]

    def add(self, p: int, active: Tensor, fine: Tensor) -> None:
        """Those through fine column p: `active` is the gradient of its GELU, `fine` what went into it."""
        pixels, shape = self.pixels, self.inner.shape
        gelu_backward = torch.ops.aten.gelu_backward.grad_input
        gelu_backward(active.view(shape), fine.view(shape), grad_input=self.inner)
        self.bias += self.inner.sum(1)
        sampled = torch.bmm(pixels.back, pixels.windows(self.padded, self.P))
        sampled = sampled.view(len(self.products), *pixels.shape[2:])
        self.products.baddbmm_(pixels.sampling(p, len(self.products)).mT, sampled)

    def of_inputs(self, z: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the map, of the G kernels and of their biases."""
        B, H, W, r = z.shape
        products = self.products.view(B, H, 3, W, 3 * r).transpose(2, 3).reshape(B, H * W, 9 * r)
        kernels = torch.matmul(z.reshape(B, H * W, r).mT, products)
        kernels = kernels.view(B, r, 3, 3, r).permute(0, 4, 1, 2, 3)
        bias = self.bias.view(B, W, r).sum(1)
        if experts < B:
            kernels, bias = kernels.sum(0, keepdim=True), bias.sum(0, keepdim=True)
        return torch.matmul(products, self.pixels.kernels.mT).view(z.shape), kernels, bias
