"""A small ViT encoder with the structure that methods rely on: one windowed and one global block."""

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

    def attend(self, x: Tensor) -> Tensor:
        w = self.window_size
        if not w:
            return self.attn(x)
        B, H, W, C = x.shape
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % w))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        x = x.view(B, rows, w, columns, w, C).transpose(2, 3).reshape(-1, w, w, C)
        x = self.attn(x).view(B, rows, columns, w, w, C).transpose(2, 3)
        return x.reshape(B, rows * w, columns * w, C)[:, :H, :W]


class FakeEncoder(nn.Module):
    """(B, 3, H, W) to (B, 4, H / 2, W / 2)."""

    def __init__(self, dim: int = 8, windows: tuple[int, ...] = (3, 0)) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 2, 2)
        self.blocks = nn.ModuleList(FakeBlock(dim, w) for w in windows)
        self.neck = nn.Conv2d(dim, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))
