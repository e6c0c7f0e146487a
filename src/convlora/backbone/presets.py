"""All numbers of the SAM variants, as frozen dataclasses; modules take them as plain arguments.

Sources: Segment Anything (Kirillov et al., ICCV 2023, appendix A) and Meta's `build_sam.py`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EncoderSpec:
    """Numbers of the ViT image encoder."""

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    mlp_dim: int = 0  # 0: four times embed_dim
    out_channels: int = 256
    qkv_bias: bool = True
    use_abs_pos: bool = True
    use_rel_pos: bool = True

    @property
    def grid(self) -> int:
        """Patches a side at the native image size."""
        return self.image_size // self.patch_size

    @property
    def hidden_mlp_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.mlp_dim or 4 * self.embed_dim


@dataclass(frozen=True)
class DecoderSpec:
    """Numbers of the prompt encoder and the mask decoder."""

    dim: int = 256
    mlp_dim: int = 2048
    depth: int = 2
    num_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    mask_input_channels: int = 16


@dataclass(frozen=True)
class SamSpec:
    """Numbers of a whole SAM."""

    encoder: EncoderSpec
    decoder: DecoderSpec = field(default_factory=DecoderSpec)


VIT_B = SamSpec(EncoderSpec(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)))
VIT_L = SamSpec(EncoderSpec(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)))
VIT_H = SamSpec(EncoderSpec(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)))

# Patch 8 at 256 px: the 32 x 32 grid of a 512 px picture at patch 16; masks at half the input's resolution.
SAM_TINY = SamSpec(
    EncoderSpec(
        embed_dim=192,
        depth=8,
        num_heads=3,
        global_attn_indexes=(1, 3, 5, 7),
        image_size=256,
        patch_size=8,
        window_size=8,
        out_channels=128,
    ),
    DecoderSpec(dim=128, mlp_dim=512, iou_head_hidden_dim=128),
)

#: Names that `--backbone` takes and the shape behind each; only sam-tiny's weights are inside the package.
BACKBONES: dict[str, SamSpec] = {
    "sam-tiny": SAM_TINY,
    "facebook/sam-vit-base": VIT_B,
    "facebook/sam-vit-large": VIT_L,
    "facebook/sam-vit-huge": VIT_H,
}
