"""SAM's image encoder: a plain ViT with windowed and global blocks (ViTDet, Li et al. 2022) and a neck."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.backbone.attention import Attention
from convlora.backbone.common import LayerNorm2d, MLPBlock, add_update
from convlora.backbone.presets import EncoderSpec
from convlora.errors import DataError
from convlora.recompute import run_twice


class PatchEmbed(nn.Module):
    """Non-overlapping patches to channel-last tokens."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H / patch, W / patch, C)."""
        return self.proj(x).permute(0, 2, 3, 1).contiguous()  # sums keep the layout: all blocks inherit it


def partition_windows(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C), zero-padded at the bottom and right, into (B * windows, window, window, C)."""
    B, H, W, C = x.shape
    x = F.pad(x, (0, 0, 0, -W % window, 0, -H % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.view(B, rows, window, columns, window, C)
    return x.transpose(2, 3).reshape(-1, window, window, C)


def merge_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Put windows back into (B, H, W, C) and drop the padding; inverse of `partition_windows`."""
    H, W = size
    window, C = windows.shape[1], windows.shape[3]
    rows, columns = -(-H // window), -(-W // window)
    x = windows.view(-1, rows, columns, window, window, C).transpose(2, 3)
    return x.reshape(-1, rows * window, columns * window, C)[:, :H, :W]


class Block(nn.Module):
    """Pre-norm transformer block; attention within windows, or over the whole map when `window_size` is 0.

    Attributes:
        map_size: (H, W) of the last map whose attention was computed: what `joined` puts windows back into.
        recompute: keep only the input for the backward pass, and compute the block again there (activation
            checkpointing, Chen et al. 2016, arXiv 1604.06174): less memory for one more forward pass.
    """

    def __init__(self, spec: EncoderSpec, window_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.window_size = window_size
        self.map_size = (0, 0)
        self.recompute = False
        self.norm1 = nn.LayerNorm(spec.embed_dim, eps=1e-6)
        self.attn = Attention(
            spec.embed_dim,
            spec.num_heads,
            grid=window_size or spec.grid,
            qkv_bias=spec.qkv_bias,
            use_rel_pos=spec.use_rel_pos,
        )
        self.norm2 = nn.LayerNorm(spec.embed_dim, eps=1e-6)
        self.mlp = MLPBlock(spec.embed_dim, spec.hidden_mlp_dim, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = run_twice(self._run, x)
            return out
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return add_update(x, self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        self.map_size = (x.shape[1], x.shape[2])
        return self.joined(self.attn(self.cut(x)))

    def cut(self, x: Tensor) -> Tensor:
        """Cut a map (B, H, W, C) into windows, zero-padded; in a global block, the map itself."""
        return partition_windows(x, self.window_size) if self.window_size else x

    def joined(self, windows: Tensor) -> Tensor:
        """Put windows back into the map that was cut last, (B, H, W, C), without the padding."""
        return merge_windows(windows, self.map_size) if self.window_size else windows

    def with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with tokens (B, n, C) beside the map (B, H, W, C); both are returned.

        In a windowed block every window gets a copy of the tokens, and the copies are averaged over the
        windows of the image afterwards, as VPT does in Swin (Jia et al., ECCV 2022).
        """
        if self.recompute and torch.is_grad_enabled():
            both: tuple[Tensor, Tensor] = run_twice(self._run_with_tokens, x, tokens)
            return both
        return self._run_with_tokens(x, tokens)

    def _run_with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        attended, tokens_attended = self._attend_with_tokens(self.norm1(x), self.norm1(tokens))
        x, tokens = x + attended, tokens + tokens_attended
        return x + self.mlp(self.norm2(x)), tokens + self.mlp(self.norm2(tokens))

    def _attend_with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.window_size == 0:
            return self.attn.with_tokens(x, tokens)
        self.map_size = (x.shape[1], x.shape[2])
        windows = self.cut(x)
        count = windows.shape[0] // x.shape[0]
        windows, copies = self.attn.with_tokens(windows, tokens.repeat_interleave(count, dim=0))
        return self.joined(windows), copies.unflatten(0, (-1, count)).mean(dim=1)

    def narrowed(self, dim: int, num_heads: int) -> "Block":
        """Make a new block of another width with this one's windows and relative positions."""
        spec = dataclasses.replace(self.spec, embed_dim=dim, num_heads=num_heads, mlp_dim=0)
        return Block(spec, self.window_size)


class ImageEncoder(nn.Module):
    """Image to image embedding.

    Differs from Meta's code in that any height and width that are multiples of the patch are accepted:
    the absolute position embedding is resampled bicubically, the relative tables linearly.

    Attributes:
        side_path: None, or a module that runs the blocks in its own way: called with the tokens (B, H, W, C),
            the patch embedding alone (B, H, W, C), the image and `blocks`; returns tokens (B, H, W, C).
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec.patch_size, 3, spec.embed_dim)
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, spec.grid, spec.grid, spec.embed_dim)) if spec.use_abs_pos else None
        )
        self.blocks = nn.ModuleList(
            Block(spec, 0 if i in spec.global_attn_indexes else spec.window_size) for i in range(spec.depth)
        )
        self.side_path: nn.Module | None = None
        self.neck = nn.Sequential(
            nn.Conv2d(spec.embed_dim, spec.out_channels, kernel_size=1, bias=False),
            LayerNorm2d(spec.out_channels),
            nn.Conv2d(spec.out_channels, spec.out_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(spec.out_channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode normalised images.

        Args:
            image: (B, 3, H, W) float; H and W multiples of the patch size.

        Returns:
            (B, out_channels, H / patch, W / patch) float.

        Raises:
            DataError: the height or width is not a multiple of the patch size.
        """
        self._check_size(image)
        patches = self.patch_embed(image)
        x = patches
        if self.pos_embed is not None:
            x = x + self._positions(x.shape[1], x.shape[2])
        if self.side_path is not None:
            x = self.side_path(x, patches, image, self.blocks)
        else:
            for block in self.blocks:
                x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))

    def set_recompute(self, recompute: bool) -> None:
        """Let all blocks, those of a side path too, keep their inputs only; see `Block`."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = recompute

    def _check_size(self, image: Tensor) -> None:
        patch, (H, W) = self.spec.patch_size, image.shape[-2:]
        if H % patch or W % patch or not H * W:
            fit = [max(patch, -(-side // patch) * patch) for side in (H, W)]
            raise DataError(
                f"The encoder got an image of {H} x {W} px (height x width); both must be multiples of the "
                f"patch size {patch}. Resize or pad it to {fit[0]} x {fit[1]}."
            )

    def _positions(self, height: int, width: int) -> Tensor:
        assert self.pos_embed is not None
        if self.pos_embed.shape[1:3] == (height, width):
            return self.pos_embed
        channels_first = self.pos_embed.permute(0, 3, 1, 2)
        resized = F.interpolate(channels_first, size=(height, width), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)
