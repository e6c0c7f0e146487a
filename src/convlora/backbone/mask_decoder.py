"""SAM's mask decoder: two-way transformer, upscaling, and one hypernetwork for each mask token."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.backbone.common import MLP, LayerNorm2d, MLPBlock
from convlora.backbone.presets import DecoderSpec

_EPS = 1e-6  # as in transformers; Meta's code leaves PyTorch's 1e-5 in the two-way blocks


class CrossAttention(nn.Module):
    """Multi-head attention whose inner width is `dim / downsample_rate`."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Nq, dim), (B, Nk, dim), (B, Nk, dim) to (B, Nq, dim)."""
        heads = [
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        ]
        return self.out_proj(attend(*heads).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (B, heads, Nq, d), (B, heads, Nk, d), (B, heads, Nk, d) to (B, heads, Nq, d).

    PyTorch's fused kernel for CPUs works through long rows of keys and queries. With a handful of tokens on
    one side it takes several times as long as the formula, whose table of scores then is small.
    """
    queries, keys, width = q.shape[2], k.shape[2], q.shape[3]
    if q.device.type != "cpu" or queries * keys > width * (queries + keys):
        return F.scaled_dot_product_attention(q, k, v)
    dtype = q.dtype
    with torch.autocast("cpu", enabled=False):  # the fused kernel too sums in fp32
        if dtype in (torch.bfloat16, torch.float16):
            q, k, v = q.float(), k.float(), v.float()
        if queries < keys:
            return ((q * width**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v).to(dtype)
        # a softmax over a few neighbours in memory is slow, one over a few rows is not
        weights = (k * width**-0.5 @ q.transpose(-2, -1)).softmax(dim=-2)
        return (weights.transpose(-2, -1) @ v).to(dtype)


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, spec: DecoderSpec, skip_first_layer_pe: bool) -> None:
        super().__init__()
        dim, heads, rate = spec.dim, spec.num_heads, spec.attention_downsample_rate
        self.self_attn = CrossAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.cross_attn_token_to_image = CrossAttention(dim, heads, rate)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = MLPBlock(dim, spec.mlp_dim, nn.ReLU())
        self.norm3 = nn.LayerNorm(dim, eps=_EPS)
        self.norm4 = nn.LayerNorm(dim, eps=_EPS)
        self.cross_attn_image_to_token = CrossAttention(dim, heads, rate)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (B, N, dim) and image (B, h w, dim)."""
        if self.skip_first_layer_pe:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(k, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """`spec.depth` two-way blocks and a last attention from the tokens to the image."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayAttentionBlock(spec, i == 0) for i in range(spec.depth))
        self.final_attn_token_to_image = CrossAttention(
            spec.dim, spec.num_heads, spec.attention_downsample_rate
        )
        self.norm_final_attn = nn.LayerNorm(spec.dim)

    def forward(self, image: Tensor, image_pe: Tensor, token_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Update image (B, h w, dim) and tokens (B, N, dim); returns tokens, image."""
        tokens = token_pe
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class DecodedTokens(NamedTuple):
    """What the two-way transformer made: IoU token, mask tokens and the upscaled image."""

    iou_token: Tensor  # (N, dim)
    mask_tokens: Tensor  # (N, T, dim)
    pixels: Tensor  # (N, h, w, 2, 2, 2, 2, dim / 8): each cell's quarters (row, column), and theirs


def _quarters(layer: nn.Module, x: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2, (..., C) to (..., 4, C'): row by row of each cell."""
    assert isinstance(layer, nn.ConvTranspose2d)
    assert layer.bias is not None
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))


class MaskDecoder(nn.Module):
    """Image embedding and prompt embeddings to masks; parameter names are those of Meta's checkpoints.

    Args:
        spec: numbers of the decoder.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        dim, tokens = spec.dim, spec.num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(spec)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(tokens))
        self.iou_prediction_head = MLP(dim, spec.iou_head_hidden_dim, tokens, spec.iou_head_depth)

    def decode(self, image: Tensor, image_pe: Tensor, sparse: Tensor | None = None) -> DecodedTokens:
        """Run the transformer and the upscaling.

        Args:
            image: (N, dim, h, w) image embedding with the dense prompt embedding added.
            image_pe: (1, dim, h, w) positional encoding.
            sparse: (N, P, dim) embeddings of clicks and boxes, or None.
        """
        N, _, h, w = image.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(N, -1, -1)
        if sparse is not None:
            tokens = torch.cat([tokens, sparse], dim=1)
        tokens, pixels = self.transformer(
            image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2), tokens
        )
        pixels = self._upscale(pixels).view(N, h, w, 2, 2, 2, 2, -1)
        return DecodedTokens(tokens[:, 0], tokens[:, 1 : 1 + self.mask_tokens.num_embeddings], pixels)

    def _upscale(self, x: Tensor) -> Tensor:
        """`output_upscaling` of (N, cells, dim) to (N, cells, 16 pixels, dim / 8), in the pixels' own order.

        A transposed convolution whose stride is its kernel is a linear layer to each cell's four quarters,
        and what stands between and behind works pixel by pixel. So nothing needs to be brought in rows and
        columns before the masks are, which have far fewer channels.
        """
        first, norm, gelu, second, last = self.output_upscaling
        assert isinstance(norm, LayerNorm2d)
        x = _quarters(first, x)
        x = gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        return last(_quarters(second, x)).flatten(-3, -2)

    def masks(self, decoded: DecodedTokens) -> Tensor:
        """Mask logits (N, T, 4 h, 4 w); a single hypernetwork is shared by all tokens."""
        networks = self.output_hypernetworks_mlps
        if len(networks) == 1:
            weights = networks[0](decoded.mask_tokens)
        else:
            weights = torch.stack(
                [network(decoded.mask_tokens[:, i]) for i, network in enumerate(networks)], dim=1
            )
        pixels = decoded.pixels
        logits = pixels.flatten(1, 6) @ weights.transpose(1, 2)
        rows_and_columns = logits.view(*pixels.shape[:-1], -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
        return rows_and_columns.reshape(len(logits), -1, 4 * pixels.shape[1], 4 * pixels.shape[2])

    def forward(self, image: Tensor, image_pe: Tensor, sparse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """SAM's own output for every mask token: the single mask first, then those for ambiguous prompts.

        Args:
            image: as in `decode`.
            image_pe: as in `decode`.
            sparse: as in `decode`.

        Returns:
            Mask logits (N, T, 4 h, 4 w) and predicted IoU (N, T).
        """
        decoded = self.decode(image, image_pe, sparse)
        return self.masks(decoded), self.iou_prediction_head(decoded.iou_token)
