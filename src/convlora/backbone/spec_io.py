"""Numbers of a SAM from transformers' config.json or from the shapes of Meta's tensors, and back."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convlora.backbone.presets import DecoderSpec, EncoderSpec, SamSpec
from convlora.errors import WeightsError

# What transformers leaves out of config.json when it equals its own default (SamVisionConfig and siblings).
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "output_channels": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 1024,
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "mlp_dim": None,
    "qkv_bias": True,
    "use_abs_pos": True,
    "use_rel_pos": True,
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
}
_DECODER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 256,
    "mlp_dim": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "attention_downsample_rate": 2,
    "num_multimask_outputs": 3,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 256,
}

#: What transformers reads beside these numbers, with the only value that is implemented here.
_IMPLEMENTED: dict[str, dict[str, Any]] = {
    "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3},
    "prompt_encoder_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_point_embeddings": 4},
    "mask_decoder_config": {"hidden_act": "relu", "layer_norm_eps": 1e-6},
}


def spec_from_config(config: Mapping[str, Any], source: Path) -> SamSpec:
    """Read transformers' `SamConfig` dictionary.

    Raises:
        WeightsError: it describes another kind of model, or a value is not valid, or not implemented; names
            the key.
    """
    if config.get("model_type") != "sam":
        kind = f"of type '{config['model_type']}'" if "model_type" in config else "without 'model_type'"
        raise WeightsError(
            f"{source} describes a model {kind}; only 'sam' (the first Segment "
            "Anything Model) can be loaded. Use facebook/sam-vit-base, -large or -huge."
        )
    if "vision_config" not in config:
        raise WeightsError(f"{source} lacks the key 'vision_config'. Download it again.")
    vision = _VISION_DEFAULTS | _section(config, "vision_config", _VISION_DEFAULTS, source)
    decoder = _DECODER_DEFAULTS | _section(config, "mask_decoder_config", _DECODER_DEFAULTS, source)
    prompt = _section(config, "prompt_encoder_config", {"mask_input_channels": 16}, source)
    encoder_spec = EncoderSpec(
        embed_dim=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        global_attn_indexes=tuple(vision["global_attn_indexes"]),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        window_size=vision["window_size"],
        mlp_dim=vision["mlp_dim"] or int(vision["hidden_size"] * vision["mlp_ratio"]),
        out_channels=vision["output_channels"],
        qkv_bias=vision["qkv_bias"],
        use_abs_pos=vision["use_abs_pos"],
        use_rel_pos=vision["use_rel_pos"],
    )
    decoder_spec = DecoderSpec(
        dim=decoder["hidden_size"],
        mlp_dim=decoder["mlp_dim"],
        depth=decoder["num_hidden_layers"],
        num_heads=decoder["num_attention_heads"],
        attention_downsample_rate=decoder["attention_downsample_rate"],
        num_multimask_outputs=decoder["num_multimask_outputs"],
        iou_head_depth=decoder["iou_head_depth"],
        iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
        mask_input_channels=prompt.get("mask_input_channels", 16),
    )
    return SamSpec(encoder_spec, decoder_spec)


def _section(
    config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], source: Path
) -> dict[str, Any]:
    """One part of the configuration, its values of the kind that the defaults are."""
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise WeightsError(f"{source}: {name} is {section!r}; it must be an object. Download it again.")
    for key, default in defaults.items():
        value = section.get(key, default)
        valid, rule = _check_value(value, default)
        if key == "window_size" and value == 0 and not isinstance(value, bool):
            continue  # no windows: every block is global
        if not valid:
            raise WeightsError(f"{source}: {name}.{key} is {value!r}; it must be {rule}. Download it again.")
    for key, only in _IMPLEMENTED[name].items():
        value = section.get(key, only)
        if value != only:  # the tensors would fit, and give other masks than in transformers
            raise WeightsError(
                f"{source}: {name}.{key} is {value!r}; only {only!r}, as in Meta's models, is implemented. "
                "Use a backbone that has it, such as facebook/sam-vit-base."
            )
    return section


def _check_value(value: object, default: object) -> tuple[bool, str]:
    """Whether a value is of the kind of its default, and the rule in words."""
    if isinstance(default, bool):
        return isinstance(value, bool), "true or false"
    if isinstance(default, tuple):
        listed = isinstance(value, list | tuple) and all(_is_whole(item) for item in value)
        return listed, "a list of numbers of blocks"
    if isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        return number, "a number above 0"
    if default is None:
        return value is None or (_is_whole(value) and value != 0), "null or a whole number from 1"
    return _is_whole(value) and value != 0, "a whole number from 1"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def spec_to_config(spec: SamSpec) -> dict[str, Any]:
    """Write transformers' `SamConfig` dictionary; inverse of `spec_from_config`."""
    encoder, decoder = spec.encoder, spec.decoder
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "hidden_size": encoder.embed_dim,
            "output_channels": encoder.out_channels,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.num_heads,
            "num_channels": 3,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "mlp_dim": encoder.hidden_mlp_dim,
            "qkv_bias": encoder.qkv_bias,
            "use_abs_pos": encoder.use_abs_pos,
            "use_rel_pos": encoder.use_rel_pos,
            "window_size": encoder.window_size,
            "global_attn_indexes": list(encoder.global_attn_indexes),
            "num_pos_feats": decoder.dim // 2,
        },
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder",
            "hidden_size": decoder.dim,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "mask_input_channels": decoder.mask_input_channels,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": decoder.dim,
            "mlp_dim": decoder.mlp_dim,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.num_heads,
            "attention_downsample_rate": decoder.attention_downsample_rate,
            "num_multimask_outputs": decoder.num_multimask_outputs,
            "iou_head_depth": decoder.iou_head_depth,
            "iou_head_hidden_dim": decoder.iou_head_hidden_dim,
        },
    }


def check_spec(spec: SamSpec, source: Path) -> None:
    """Check that the parts of a SAM fit each other, which no single tensor's shape tells.

    Raises:
        WeightsError: they do not; names the numbers.
    """
    encoder, decoder = spec.encoder, spec.decoder
    inner = decoder.dim // max(1, decoder.attention_downsample_rate)
    rules = {
        f"the encoder gives {encoder.out_channels} channels and the mask decoder takes {decoder.dim}": (
            encoder.out_channels == decoder.dim
        ),
        f"the encoder has {encoder.embed_dim} channels for {encoder.num_heads} heads": (
            _divides(encoder.num_heads, encoder.embed_dim)
        ),
        f"the mask decoder has {decoder.dim} and {inner} channels for {decoder.num_heads} heads": (
            _divides(decoder.num_heads, decoder.dim) and _divides(decoder.num_heads, inner)
        ),
    }
    broken = [text for text, fits in rules.items() if not fits]
    if broken:
        raise WeightsError(
            f"{source} describes a SAM that cannot work: {'; '.join(broken)}. Channels of neighbours must be "
            "the same, and a multiple of the heads. Download it again."
        )


def _divides(heads: int, channels: int) -> bool:
    return heads > 0 and channels > 0 and channels % heads == 0


def spec_from_tensors(tensors: Mapping[str, Tensor], source: Path) -> SamSpec:
    """Infer the numbers from the shapes in Meta's checkpoint; heads, windows and global blocks included.

    Raises:
        WeightsError: a tensor that the shapes are read from is missing, or has the axes of another model.
    """
    try:
        return SamSpec(_encoder_from(tensors), _decoder_from(tensors))
    except KeyError as error:
        raise WeightsError(
            f"{source} has no tensor {error}, so it is not a SAM checkpoint with Meta's names. "
            "Give one of Meta's sam_vit_*.pth, or a Hugging Face folder."
        ) from error
    except (IndexError, ValueError, ZeroDivisionError) as error:  # too few axes, or an empty one
        raise WeightsError(
            f"{source} has the names of a SAM checkpoint, but not its shapes ({error}). "
            "Give one of Meta's sam_vit_*.pth, or a Hugging Face folder."
        ) from error


def _encoder_from(tensors: Mapping[str, Tensor]) -> EncoderSpec:
    patch = tensors["image_encoder.patch_embed.proj.weight"]
    _, grid, _, dim = tensors["image_encoder.pos_embed"].shape
    tables = _numbered(tensors, r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_h")
    if 0 not in tables:
        raise KeyError("image_encoder.blocks.0.attn.rel_pos_h")
    spans = {number: (table.shape[0] + 1) // 2 for number, table in tables.items()}
    windows = [span for span in spans.values() if span != grid]
    return EncoderSpec(
        embed_dim=dim,
        depth=len(tables),
        num_heads=dim // tables[0].shape[1],
        global_attn_indexes=tuple(sorted(number for number, span in spans.items() if span == grid)),
        image_size=grid * patch.shape[-1],
        patch_size=patch.shape[-1],
        window_size=windows[0] if windows else 0,
        mlp_dim=tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
        out_channels=tensors["image_encoder.neck.0.weight"].shape[0],
        qkv_bias="image_encoder.blocks.0.attn.qkv.bias" in tensors,
    )


def _decoder_from(tensors: Mapping[str, Tensor]) -> DecoderSpec:
    tokens, dim = tensors["mask_decoder.mask_tokens.weight"].shape
    layer = "mask_decoder.transformer.layers.0"
    inner = tensors[f"{layer}.cross_attn_token_to_image.q_proj.weight"].shape[0]
    return DecoderSpec(
        dim=dim,
        mlp_dim=tensors[f"{layer}.mlp.lin1.weight"].shape[0],
        depth=len(_numbered(tensors, r"mask_decoder\.transformer\.layers\.(\d+)\.norm1\.weight")),
        attention_downsample_rate=dim // inner,
        num_multimask_outputs=tokens - 1,
        iou_head_depth=len(_numbered(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")),
        iou_head_hidden_dim=tensors["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        mask_input_channels=tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )


def _numbered(tensors: Mapping[str, Tensor], pattern: str) -> dict[int, Tensor]:
    return {int(match[1]): tensors[match[0]] for name in tensors if (match := re.fullmatch(pattern, name))}
