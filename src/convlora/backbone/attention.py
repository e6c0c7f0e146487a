"""Multi-head self-attention with decomposed relative positions (MViTv2, Li et al. 2022; SAM's encoder)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.backbone.position_grid import Grid
from convlora.backbone.positional_attention import attend_with_positions


def relative_positions(table: Tensor, size: int) -> Tensor:
    """Embedding of the offset from every query to every key along one axis.

    Args:
        table: (2 n - 1, d) learned embeddings of the offsets -(n-1) .. n-1.
        size: number of positions on the axis; the table is resampled linearly when it is not n.

    Returns:
        (size, size, d); entry [q, k] belongs to the offset q - k.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


class Attention(nn.Module):
    """Self-attention on a channel-last map; logits are q.k / sqrt(d) + q.R_h[row] + q.R_w[column].

    The (H W) x (H W) bias that Meta's and transformers' code build is never held; see `positional_attention`.

    Args:
        dim: channels C.
        num_heads: heads; d = C / num_heads.
        grid: cells a side of the square map that the relative tables are made for.
        qkv_bias: whether the fused q, k, v projection has a bias.
        use_rel_pos: whether relative positions are added.
    """

    def __init__(
        self, dim: int, num_heads: int, grid: int, qkv_bias: bool = True, use_rel_pos: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_rel_pos = use_rel_pos
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if use_rel_pos:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each map: (B, H, W, C) to (B, H, W, C)."""
        B, H, W, _ = x.shape
        out = self._attend(self.qkv(x).flatten(1, 2), H, W)
        return self.proj(out.reshape(B, H, W, -1))

    def probabilities(self, x: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        """Attention of the map (B, H, W, C) on itself, some queries at a time, for analysis; not for speed.

        Args:
            x: input of `forward`.
            chunk: queries at once: the whole of it, heads x N x N, is what `forward` never holds.

        Yields:
            (B, heads, at most `chunk`, H W) float32, rows that sum to one; queries in the order of rows.
        """
        B, H, W, _ = x.shape
        qkv = self.qkv(x).float().flatten(1, 2)
        q, k, _v = qkv.view(B, H * W, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        positions = self._position_logits(q, H, W) if self.use_rel_pos else None
        for start in range(0, H * W, chunk):
            part = slice(start, start + chunk)
            logits = q[:, :, part] @ k.transpose(2, 3) * q.shape[-1] ** -0.5
            if positions is not None:
                by_row, by_column = (p[:, :, part] for p in positions)
                both = by_row[..., :, None] + by_column[..., None, :]
                logits = logits + both.flatten(3)
            yield logits.softmax(dim=-1)

    def with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with tokens beside the map that attend and are attended to; they have no position.

        Args:
            x: (B, H, W, C).
            tokens: (B, n, C).

        Returns:
            The map and the tokens, shaped as they came.
        """
        B, H, W, _ = x.shape
        out = self._attend(torch.cat([self.qkv(x).flatten(1, 2), self.qkv(tokens)], dim=1), H, W)
        return self.proj(out[:, : H * W].reshape(B, H, W, -1)), self.proj(out[:, H * W :])

    def _attend(self, qkv: Tensor, H: int, W: int) -> Tensor:
        """Attention of (B, N, 3 C), the H W positions of the map first: (B, N, C)."""
        B, N, _ = qkv.shape
        q, k, v = qkv.view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, d)
        if self.use_rel_pos:
            out = self._attend_with_positions(q, k, v, H, W)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(B, N, -1)

    def _attend_with_positions(self, q: Tensor, k: Tensor, v: Tensor, H: int, W: int) -> Tensor:
        by_row, by_column = self._position_logits(q[:, :, : H * W], H, W)
        tokens = q.shape[2] - H * W
        if tokens:
            by_row, by_column = (F.pad(logits, (0, 0, 0, tokens)) for logits in (by_row, by_column))
        return attend_with_positions(q, k, v, by_row, by_column, Grid(H, W))

    def _position_logits(self, q: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Logit of every query (unscaled) for each row (B, heads, H W, H) and column (B, heads, H W, W)."""
        q_map = q.unflatten(2, (H, W))
        R_h = relative_positions(self.rel_pos_h, H).to(q.dtype)
        R_w = relative_positions(self.rel_pos_w, W).to(q.dtype)
        by_row = torch.einsum("bnhwd,hkd->bnhwk", q_map, R_h).flatten(2, 3)
        by_column = torch.einsum("bnhwd,wkd->bnhwk", q_map, R_w).flatten(2, 3)
        return by_row, by_column
