"""A small SAM of transformers and ours with the same random weights."""

import torch
from torch import nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from convlora.backbone.key_maps import from_transformers
from convlora.backbone.presets import DecoderSpec, EncoderSpec, SamSpec
from convlora.backbone.sam import Sam

# Windows of 7 on a grid of 10: the padding does not divide. IoU head of 4 layers: not the default.
SPEC = SamSpec(
    EncoderSpec(
        embed_dim=48,
        depth=4,
        num_heads=3,
        global_attn_indexes=(1, 3),
        image_size=160,
        window_size=7,
        out_channels=32,
    ),
    DecoderSpec(dim=32, mlp_dim=64, num_heads=4, iou_head_depth=4, iou_head_hidden_dim=24),
)


def transformers_sam(spec: SamSpec = SPEC, seed: int = 0) -> SamModel:
    """Transformers' model of the same numbers, all parameters random (position tables too)."""
    encoder, decoder = spec.encoder, spec.decoder
    vision = SamVisionConfig(
        hidden_size=encoder.embed_dim,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size,
        window_size=encoder.window_size,
        global_attn_indexes=list(encoder.global_attn_indexes),
        output_channels=encoder.out_channels,
        num_pos_feats=decoder.dim // 2,
    )
    prompt = SamPromptEncoderConfig(
        hidden_size=decoder.dim, image_size=encoder.image_size, patch_size=encoder.patch_size
    )
    mask = SamMaskDecoderConfig(
        hidden_size=decoder.dim,
        mlp_dim=decoder.mlp_dim,
        num_attention_heads=decoder.num_heads,
        iou_head_depth=decoder.iou_head_depth,
        iou_head_hidden_dim=decoder.iou_head_hidden_dim,
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=mask.to_dict(),
    )
    torch.manual_seed(seed)
    model = SamModel(config).eval()
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) in norms:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        else:
            # standard deviation 1/sqrt(fan-in) keeps signals of order one through every layer
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.data.normal_(0, fan_in**-0.5)
    return model


def ours(model: SamModel, spec: SamSpec = SPEC) -> Sam:
    """Our SAM with the weights of transformers' model."""
    sam = Sam(spec).eval()
    depth = spec.decoder.iou_head_depth
    sam.load_state_dict({from_transformers(k, depth): v.clone() for k, v in model.state_dict().items()})
    return sam


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Full tensors agree to `tolerance` of the wanted tensor's scale, which must not be zero."""
    assert got.shape == want.shape
    scale = want.abs().max()
    assert scale > 0
    assert (got - want).abs().max() <= tolerance * scale
