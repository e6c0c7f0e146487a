"""Names of tensors in transformers' files, as one table. Ours are Meta's, so Meta's `.pth` needs none."""

import re
from collections.abc import Iterator

_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

#: transformers' `SamModel` | ours; `{i}` is the number of a block, layer or network. First match wins.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("shared_image_embedding.positional_embedding", _POSITIONS),
    ("prompt_encoder.shared_embedding.positional_embedding", _POSITIONS),  # the same tensor, tied
    ("vision_encoder.pos_embed", "image_encoder.pos_embed"),
    ("vision_encoder.patch_embed.projection.", "image_encoder.patch_embed.proj."),
    ("vision_encoder.layers.{i}.layer_norm1.", "image_encoder.blocks.{i}.norm1."),
    ("vision_encoder.layers.{i}.layer_norm2.", "image_encoder.blocks.{i}.norm2."),
    ("vision_encoder.layers.{i}.", "image_encoder.blocks.{i}."),
    ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
    ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
    ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
    ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
    ("prompt_encoder.point_embed.{i}.", "prompt_encoder.point_embeddings.{i}."),
    ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
    ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
    ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
    ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
    ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
    ("mask_decoder.transformer.layers.{i}.layer_norm1.", "mask_decoder.transformer.layers.{i}.norm1."),
    ("mask_decoder.transformer.layers.{i}.layer_norm2.", "mask_decoder.transformer.layers.{i}.norm2."),
    ("mask_decoder.transformer.layers.{i}.layer_norm3.", "mask_decoder.transformer.layers.{i}.norm3."),
    ("mask_decoder.transformer.layers.{i}.layer_norm4.", "mask_decoder.transformer.layers.{i}.norm4."),
    ("mask_decoder.transformer.layer_norm_final_attn.", "mask_decoder.transformer.norm_final_attn."),
    ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
    ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
    ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
)


def from_transformers(name: str, iou_head_depth: int) -> str:
    """Our name of a tensor of transformers' `SamModel`; a name in no row is returned unchanged.

    Args:
        name: key in the safetensors file.
        iou_head_depth: linear layers of the IoU head (a hypernetwork has three).
    """
    return _translate(name, _rows(iou_head_depth))


def to_transformers(name: str, iou_head_depth: int) -> str:
    """Name in transformers' `SamModel` of one of our tensors; inverse of `from_transformers`."""
    return _translate(name, ((ours, theirs) for theirs, ours in _rows(iou_head_depth)))


def _rows(iou_head_depth: int) -> Iterator[tuple[str, str]]:
    """All rows; transformers names a network's first and last layer, Meta numbers them."""
    yield from _PREFIXES
    networks = (("output_hypernetworks_mlps.{i}", 3), ("iou_prediction_head", iou_head_depth))
    for network, depth in networks:
        names = ["proj_in", *(f"layers.{i}" for i in range(depth - 2)), "proj_out"]
        for number, name in enumerate(names):
            yield f"mask_decoder.{network}.{name}.", f"mask_decoder.{network}.layers.{number}."


def _translate(name: str, rows: Iterator[tuple[str, str]]) -> str:
    for source, target in rows:
        pattern = re.escape(source).replace(r"\{i\}", r"(\d+)")
        if match := re.match(pattern, name):
            number = match[1] if match.groups() else ""
            return target.replace("{i}", number) + name[match.end() :]
    return name
