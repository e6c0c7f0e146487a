"""A small ViT encoder with the structure that methods rely on: one windowed and one global block."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FakeAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        q, k, v = self.qkv(x).view(B, H * W, 3, C).unbind(2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).view(B, H, W, C))

    def with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        B, H, W, C = x.shape
        both = torch.cat([x.reshape(B, H * W, C), tokens], dim=1)
        q, k, v = self.qkv(both).view(B, -1, 3, C).unbind(2)
        out = self.proj(F.scaled_dot_product_attention(q, k, v))
        return out[:, : H * W].reshape(B, H, W, C), out[:, H * W :]


class FakeMLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, 2 * dim)
        self.lin2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class FakeBlock(nn.Module):
    def __init__(self, dim: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = FakeAttention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FakeMLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        new: list[Tensor] = []

        def attn(windows: Tensor) -> Tensor:
            copies = self.norm1(tokens).repeat_interleave(windows.shape[0] // x.shape[0], dim=0)
            out, seen = self.attn.with_tokens(windows, copies)
            new.append(seen.view(x.shape[0], -1, *seen.shape[1:]).mean(1))
            return out

        out = x + self.attend(self.norm1(x), attn)
        tokens = tokens + new[0]
        return out + self.mlp(self.norm2(out)), tokens + self.mlp(self.norm2(tokens))

    def narrowed(self, dim: int, num_heads: int) -> nn.Module:
        assert dim % num_heads == 0
        return FakeBlock(dim, self.window_size)

    def attend(self, x: Tensor, attn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self.size = x.shape[1:3]
        return self.joined((attn or self.attn)(self.cut(x)))

    def cut(self, x: Tensor) -> Tensor:
        w = self.window_size
        if not w:
            return x
        B, H, W, C = x.shape
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % w))
        x = x.view(B, x.shape[1] // w, w, x.shape[2] // w, w, C)
        return x.transpose(2, 3).reshape(-1, w, w, C)

    def joined(self, windows: Tensor) -> Tensor:
        w, (H, W) = self.window_size, self.size
        if not w:
            return windows
        rows, columns, C = -(-H // w), -(-W // w), windows.shape[-1]
        x = windows.view(-1, rows, columns, w, w, C).transpose(2, 3)
        return x.reshape(-1, rows * w, columns * w, C)[:, :H, :W]


class FakeEncoder(nn.Module):
    """(B, 3, H, W) to (B, 4, H / 2, W / 2)."""

    def __init__(self, dim: int = 8, windows: tuple[int, ...] = (3, 0)) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 2, 2)
        self.blocks = nn.ModuleList(FakeBlock(dim, w) for w in windows)
        self.side_path: nn.Module | None = None
        self.neck = nn.Conv2d(dim, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).permute(0, 2, 3, 1)
        if self.side_path is not None:
            x = self.side_path(x, x, image, self.blocks)
        else:
            for block in self.blocks:
                x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))
