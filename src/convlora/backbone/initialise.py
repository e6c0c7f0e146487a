"""Random weights: where pretraining starts, and the baseline of an untrained encoder."""

import torch
from torch import Tensor, nn

from convlora.backbone.mask_decoder import CrossAttention
from convlora.backbone.presets import SamSpec
from convlora.backbone.sam import Sam
from convlora.randomness import seeded


def random_sam(spec: SamSpec, seed: int = 0) -> Sam:
    """Build a SAM with random weights; the caller's random state is left as it was.

    Linear layers are truncated normal (0.02) as in ViT, the position embedding is sine-cosine as in MAE,
    relative positions start at zero as in ViTDet. In the decoder, the attention between tokens and image
    starts with equal query and key projections, so that a click attends to its own place from the start:
    with independent ones, pretraining stays for a long time where masks do not depend on the prompt.
    """
    with seeded(seed):
        sam = Sam(spec)
        for module in sam.image_encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in sam.mask_decoder.transformer.modules():
            if isinstance(module, CrossAttention) and module.q_proj.out_features < spec.decoder.dim:
                nn.init.orthogonal_(module.q_proj.weight, gain=2.0)
                module.k_proj.load_state_dict(module.q_proj.state_dict())
        for kind in sam.prompt_encoder.point_embeddings.parameters():
            nn.init.normal_(kind, std=0.02)
        if sam.image_encoder.pos_embed is not None:
            sam.image_encoder.pos_embed.data = sine_cosine_positions(
                spec.encoder.grid, spec.encoder.embed_dim
            )
    return sam


def sine_cosine_positions(grid: int, dim: int) -> Tensor:
    """Fixed 2-D position embedding (1, grid, grid, dim): a quarter each of sin y, cos y, sin x, cos x."""
    quarter = dim // 4
    frequency = 10000.0 ** (-torch.arange(quarter) / quarter)
    phase = torch.arange(grid)[:, None] * frequency  # (grid, quarter)
    waves = torch.cat([phase.sin(), phase.cos()], dim=1)  # (grid, dim / 2)
    rows = waves[:, None].expand(grid, grid, -1)
    columns = waves[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1)[None]
