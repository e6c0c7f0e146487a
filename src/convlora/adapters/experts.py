"""Multi-scale convolution experts, computed on the coarse grid without the upsampled map.

Expert s is: bicubic up by s, 3x3 convolution (zero padding on the fine grid, bias), GELU, bicubic down to
the grid (align_corners=False, no antialias). The down step reads P fine rows per cell: the central one
where s is odd, four around the centre where s is even. The convolution needs those rows and their
neighbours, and each of them is a fixed linear map of the coarse rows. So with z the coarse map, W_ij the
kernel's nine (r, r) matrices,

    fine[p, q] = sum_ij  R_(p, i) (W_ij z) C_(q, j)^T + bias,      out = sum_pq  d_p d_q GELU(fine[p, q]),

where R_(p, i) (n, n) holds the bicubic weights of row p + i - 1 of every cell, zero outside the fine grid
(that is the padding); C likewise for columns. This is three matrix products. All of it is exact, gradients
too, and memory falls from s^2 to P^2 values per cell. Beside CPUs, shapes do not depend on the data, so
routing never makes the host wait for the device, and the whole traces and exports. Experts of many channels
run as `fused_expert` does, in steps that hold nothing of it.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convlora.adapters.base import at_least_float32, autocast_off
from convlora.adapters.fused_expert import Columns, Rows, columns_of, fused_expert, rows_of
from convlora.tracing import being_recorded, being_traced

_HELD = (20, 2)
"""Values per channel and cell that an expert of an even and of an odd scale leaves for its backward pass."""

_KEPT = 530
"""Values per cell that experts may hold: those of all eight scales at rank 6. All else of a ViT-B's training
step holds about 7,000 in a layer. More is made again in the backward pass (`fused_expert`), which up to about
this many values takes longer than keeping them."""

_DIRECT = 2
"""Up to this scale the upsampled map, s^2 values per cell, is smaller than what the down step reads of it."""


#: Types of devices on which the fixed maps are computed in float32: they have no float64.
WITHOUT_FLOAT64 = {"mps"}


class MultiScaleExperts(nn.Module):
    """M experts of which each sample uses its own choice.

    Kernels start as nn.Conv2d's do, biases at zero. Experts that no sample chose get a zero gradient, not
    None. Computes in float32 at least, under autocast too.

    Args:
        channels: r, of the input and the output.
        scales: upsampling factor of each expert, integers of at least 1; may repeat.
    """

    def __init__(
        self,
        channels: int,
        scales: Sequence[int],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        shape = (len(self.scales), channels, channels, 3, 3)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(shape[:2], device=device, dtype=dtype))
        for kernel in self.weight:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))

    def forward(self, z: Tensor, gates: Tensor | None, indices: Tensor) -> Tensor:
        """Weighted sum of the chosen experts, sum_k gates_k E_(indices_k)(z).

        Args:
            z: (B, H, W, channels) float.
            gates: (B, K) float; None where K is 1 and the weight exactly 1.
            indices: (B, K) int64, 0 to M - 1.

        Returns:
            (B, H, W, channels) float32, or float64 where the parameters are.
        """
        with autocast_off(z.device.type):
            z = z.to(at_least_float32(self.weight.dtype))
            recorded = _traced(z) or being_traced()
            choose = self._read if z.device.type == "cpu" and not recorded else self._masked
            outputs = [choose(z, index) for index in indices.unbind(1)]
            if gates is None:
                return outputs[0]
            weights = gates.to(z.dtype)[:, :, None, None, None].unbind(1)
            weighted = [g * out for g, out in zip(weights, outputs, strict=True)]
            return weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum(0)

    def mixed(self, z: Tensor, weights: Tensor | None = None) -> Tensor:
        """Weighted sum of all experts, sum_e w_e E_e(z).

        Args:
            z: (B, H, W, channels) float.
            weights: (B, M), or (B, H, W, M) for a mixture of its own at every position; ones if None.

        Returns:
            (B, H, W, channels) float32, or float64 where the parameters are.
        """
        with autocast_off(z.device.type):
            z = z.to(at_least_float32(self.weight.dtype))
            heavy, total = self._heavy(self.scales), torch.zeros_like(z)
            for e in range(len(self.scales)):
                out = self._single(z, e, heavy)
                if weights is not None:
                    w = weights[..., e].to(z.dtype)
                    out = out * w.view(*w.shape, *[1] * (z.ndim - w.ndim))
                total = total + out
            return total

    def _heavy(self, scales: Iterable[int]) -> bool:
        """Whether experts of these scales, run together, would hold too much for their backward pass.

        Only the parity counts, so 0 and 1 may stand for even and odd scales. In a ViT-B at 1024 px, as the
        memory model counts, one expert of each parity would hold 139 MiB at rank 32 and 18 MiB at rank 3; all
        eight scales at most 50 MiB at rank 3.
        """
        held = self.weight.shape[1] * sum(_HELD[scale % 2] for scale in scales)
        return held > _KEPT and not being_recorded()

    def _single(self, z: Tensor, expert: int, heavy: bool) -> Tensor:
        """One expert on all samples."""
        scale, choice = self.scales[expert], slice(expert, expert + 1)
        if scale > _DIRECT or being_traced():
            return self._expert(z, choice, scale % 2, heavy)
        arguments = z, self.weight[expert].to(z.dtype), self.bias[expert].to(z.dtype), scale
        if heavy and torch.is_grad_enabled():
            out: Tensor = checkpoint(on_fine_grid, *arguments, use_reentrant=False, preserve_rng_state=False)
            return out
        return on_fine_grid(*arguments)

    def _read(self, z: Tensor, index: Tensor) -> Tensor:
        """Expert `index[b]` on z[b], where the choice can be read without waiting: each sample runs once."""
        chosen = index.tolist()
        if len(set(chosen)) == 1:
            return self._single(z, chosen[0], self._heavy([self.scales[chosen[0]]]))
        outputs, order = [], []
        for odd in (0, 1):
            places = [b for b, expert in enumerate(chosen) if self.scales[expert] % 2 == odd]
            if places:
                outputs.append(self._expert(z[places], index[places], odd, self._heavy([odd])))
                order += places
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(outputs)[back]

    def _masked(self, z: Tensor, index: Tensor) -> Tensor:
        """`_read` in shapes that do not hang on the choice: odd and even scales both run, one adds zero."""
        parities = sorted({scale % 2 for scale in self.scales})
        outputs = [self._expert(z, index, odd, self._heavy([odd])) for odd in parities]
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]

    def _expert(self, z: Tensor, choice: slice | Tensor, odd: int, heavy: bool) -> Tensor:
        """One expert of this parity on all samples, or `choice[b]` on z[b]; zero for the other parity's."""
        weight = _chosen(self.weight, choice).to(z.dtype)
        bias = _chosen(self.bias, choice).to(z.dtype)
        H, W = z.shape[1:3]
        if heavy:
            rows, columns = _axes(self.scales, odd, (H, W), z)
            return fused_expert(z, weight, bias, rows.of(choice), columns.of(choice))
        by_row = axis_banks(self.scales, odd, H, z)
        by_column = by_row if H == W else axis_banks(self.scales, odd, W, z)
        B = z.shape[0]
        maps = (_chosen(bank, choice).expand(B, -1, -1) for bank in (*by_row, *by_column))
        up_rows, down_rows, up_columns, down_columns = maps
        kernels, biases = weight.expand(B, -1, -1, -1, -1), bias.expand(B, -1)
        fine = F.gelu(convolve_upsampled(z, kernels, biases, up_rows, up_columns))
        return downsample(fine, down_rows, down_columns)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"channels={self.weight.shape[1]}, scales={self.scales}"


def on_fine_grid(z: Tensor, weight: Tensor, bias: Tensor, scale: int) -> Tensor:
    """One expert as its formula reads, on (B, H, W, r), with the upsampled map.

    The interpolations are products with their matrices, plane by plane: a fraction of the time of
    F.interpolate's bicubic.
    """
    _, H, W, _ = z.shape
    fine = z.permute(0, 3, 1, 2)
    if scale > 1:
        fine = resample(fine, *(_matrix(scale * n, n, z) for n in (H, W)))
    fine = F.gelu(F.conv2d(fine, weight, bias, padding=1))
    if scale > 1:
        fine = resample(fine, *(_matrix(n, scale * n, z) for n in (H, W)))
    return fine.permute(0, 2, 3, 1)


def resample(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sums of the rows and of the columns of (B, r, H, W); the matrices are (H', H) and (W', W)."""
    return rows @ planes.contiguous() @ columns.t()


def bicubic_matrix(out: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of F.interpolate's bicubic (align_corners=False) from `size` cells to `out`: (out, size)."""
    precise = torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
    rows = torch.arange(out, device=device)
    return upsampling_weights(rows, torch.tensor(out / size, device=device), size, precise).to(dtype)


@lru_cache(maxsize=64)
def _kept_matrix(out: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # as in `_kept_banks`
        return bicubic_matrix(out, size, device, dtype)


def _matrix(out: int, size: int, like: Tensor) -> Tensor:
    return (bicubic_matrix if _traced(like) else _kept_matrix)(out, size, like.device, like.dtype)


def convolve_upsampled(z: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The convolution of the upsampled map at the P x P fine pixels per cell that the down step reads.

    Args:
        z: (B, H, W, r).
        weight: (B, r, r, 3, 3), one kernel per sample.
        bias: (B, r).
        rows: (B, P H, 3 H) weights of the rows; see `sampling_matrix`.
        columns: (B, P W, 3 W) likewise.

    Returns:
        (B, P, H, r, P, W).
    """
    B, H, W, r = z.shape
    P = rows.shape[1] // H
    kernel = weight.permute(0, 3, 1, 4, 2).reshape(B, 9 * r, r)  # (i, out, j) x in
    maps = kernel @ z.reshape(B, H * W, r).transpose(1, 2)
    maps = maps.view(B, 3, 3 * r, H, W).transpose(2, 3).reshape(B, 3 * H, 3 * r * W)  # (i, y) x (out, j, x)
    maps = (rows @ maps).view(B, P * H * r, 3 * W)  # (p, y, out) x (j, x)
    per_row = bias[:, None].expand(B, P * H, r).reshape(B, P * H * r, 1)
    return torch.baddbmm(per_row, maps, columns.transpose(1, 2)).view(B, P, H, r, P, W)


def downsample(fine: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
    """Weighted sum over the fine pixels of each cell: (B, P, H, r, P, W) to (B, H, W, r).

    Args:
        fine: (B, P, H, r, P, W).
        row_weights: (B, P, H).
        column_weights: (B, P, W).
    """
    B, P, H, r, _, W = fine.shape
    if P == 1:
        weights = row_weights[:, 0, :, None, None] * column_weights[:, 0, None, None]
        return (fine.view(B, H, r, W) * weights).transpose(2, 3)
    eye = torch.eye(W, dtype=fine.dtype, device=fine.device)  # OpenVINO has no diag_embed
    columns = (column_weights[..., None] * eye).reshape(B, P * W, W)
    summed = torch.bmm(fine.reshape(B, P * H * r, P * W), columns).view(B, P, H, r, W)
    return (summed * row_weights[:, :, :, None, None]).sum(1).transpose(2, 3)


def axis_banks(scales: tuple[int, ...], odd: int, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Call `build_banks` with the device and dtype of `like`; keep the result, except while tracing."""
    return (build_banks if _traced(like) else _kept_banks)(scales, odd, n, like.device, like.dtype)


def _traced(like: Tensor) -> bool:
    return torch.compiler.is_compiling() or type(like) is not Tensor


def build_banks(
    scales: tuple[int, ...], odd: int, n: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The two fixed linear maps along one axis of n cells, stacked over the M experts.

    Returns:
        (M, P n, 3 n): at [(p, y), (i, y')] the weight of coarse row y' in fine row p + i - 1 of cell y.
        (M, P, n): the weight of fine row p in cell y. Experts whose scale has the other parity get zeros.
    """
    precise = torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
    scale = torch.tensor(scales, device=device).view(-1, 1, 1)
    rows = fine_rows(scales, odd, n, device)
    shifted = rows[..., None] + torch.arange(-1, 2, device=device)
    sampling = upsampling_weights(shifted, scale[..., None], n, precise).reshape(len(scales), -1, 3 * n)
    reduction = reduction_weights(rows, scale, n, precise)
    member = torch.tensor([s % 2 == odd for s in scales], device=device).view(-1, 1, 1)
    return (sampling * member).to(dtype), (reduction * member).to(dtype)


@lru_cache(maxsize=64)
def _kept_banks(
    scales: tuple[int, ...], odd: int, n: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # else no backward pass could take them later
        return build_banks(scales, odd, n, device, dtype)


@lru_cache(maxsize=64)
def _kept_rows(scales: tuple[int, ...], odd: int, n: int, device: torch.device, dtype: torch.dtype) -> Rows:
    with torch.inference_mode(False):
        return rows_of(*_kept_banks(scales, odd, n, device, dtype))


@lru_cache(maxsize=64)
def _kept_columns(
    scales: tuple[int, ...], odd: int, n: int, device: torch.device, dtype: torch.dtype
) -> Columns:
    with torch.inference_mode(False):
        return columns_of(*_kept_banks(scales, odd, n, device, dtype))


def _axes(scales: tuple[int, ...], odd: int, size: tuple[int, int], like: Tensor) -> tuple[Rows, Columns]:
    """What `fused_expert` takes; kept, except where tensors without values count the memory of a step."""
    if _traced(like):
        by_row, by_column = (axis_banks(scales, odd, n, like) for n in size)
        return rows_of(*by_row), columns_of(*by_column)
    rows = _kept_rows(scales, odd, size[0], like.device, like.dtype)
    return rows, _kept_columns(scales, odd, size[1], like.device, like.dtype)


def _chosen(maps: Tensor, choice: slice | Tensor) -> Tensor:
    """Of the M experts' maps, with the same gradient on every device."""
    return maps[choice] if isinstance(choice, slice) else maps.index_select(0, choice)


def fine_rows(scales: tuple[int, ...], odd: int, n: int, device: torch.device) -> Tensor:
    """Fine rows that the down step reads for each of n cells: the central one, or the four around the centre.

    Returns:
        (M, P, n) integers; those outside the fine grid are to be clamped.
    """
    first = [(s - 1) // 2 if odd else s // 2 - 2 for s in scales]
    rows = [[f + p for p in range(1 if odd else 4)] for f in first]
    cells = torch.arange(n, device=device) * torch.tensor(scales, device=device)[:, None]
    return torch.tensor(rows, device=device)[:, :, None] + cells[:, None]


def upsampling_weights(rows: Tensor, scale: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Bicubic weights of the n coarse rows in fine `rows`, (*rows.shape, n); zero outside the fine grid."""
    source = (rows.to(dtype) + 0.5) / scale - 0.5
    coarse = torch.arange(-2, n + 2, device=rows.device)
    weights = cubic(source[..., None] - coarse)
    before, weights, after = weights.split([2, n, 2], dim=-1)  # rows beyond the ends repeat the end
    weights = weights + before.sum(-1, keepdim=True) * (coarse[2:-2] == 0)
    weights = weights + after.sum(-1, keepdim=True) * (coarse[2:-2] == n - 1)
    inside = (rows >= 0) & (rows < scale * n)
    return weights * inside[..., None]


def reduction_weights(rows: Tensor, scale: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Weights of the fine rows of each cell in the down step, (M, P, n); at the ends, scale 2 clamps."""
    P = rows.shape[1]
    offsets = torch.arange(P, device=rows.device, dtype=dtype) - (P - 1) / 2
    slots = rows.clamp(min=0).minimum(scale * n - 1) - rows[:, :1]  # (M, P, n)
    hits = slots[:, None] == torch.arange(P, device=rows.device)[:, None, None]
    return (cubic(offsets)[:, None] * hits).sum(2)


def cubic(x: Tensor) -> Tensor:
    """PyTorch's bicubic kernel (a = -0.75) at distance x; zero from 2 on."""
    x = x.abs()
    near = (1.25 * x - 2.25) * x * x + 1
    far = ((-0.75 * x + 3.75) * x - 6) * x + 3
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
