"""Forward pass of SAM's image encoder, batch 1: ours, transformers' SamModel, and arithmetic alone.

    python benchmarks/encoder.py                        # ViT-B at 1024 px, fp32 and bf16: about four minutes
    python benchmarks/encoder.py --image-size 512 --repeats 5

Sides, in turn in one process, same weights (random) and image: convlora; transformers' vision encoder with
sdpa and with its default, eager attention (fp32); `products`, the matrix products of the same shapes and
nothing else: the linear layers, the convolutions, and the two products of attention by PyTorch's fused kernel
without positions. In bf16 transformers' model is cast whole; ours runs under autocast with frozen
weights held in bf16, as in the commands; bf16 is left out where the processor has no arithmetic for it.
Prints JSON with medians, ratios (medians over neighbouring runs) and the largest difference of the outputs.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SamModel

from common import dtypes, in_turn, parser, random_transformers_sam, ratio, report, summary
from convlora.backbone.image_encoder import ImageEncoder
from convlora.backbone.presets import BACKBONES, EncoderSpec
from convlora.backbone.weights import load_sam
from convlora.frozen import hold_frozen_in

Side = Callable[[], object]


def transformers_model(attention: str, folder: str) -> torch.nn.Module:
    return SamModel.from_pretrained(folder, attn_implementation=attention).vision_encoder.eval()


def products(spec: EncoderSpec, size: int, dtype: torch.dtype) -> Side:
    """The matrix products of one forward pass, on operands of their own."""
    side, C, heads = size // spec.patch_size, spec.embed_dim, spec.num_heads
    tokens, d = side * side, C // heads
    x, wide = torch.randn(tokens, C, dtype=dtype), torch.randn(tokens, spec.hidden_mlp_dim, dtype=dtype)
    shapes = {
        "qkv": (3 * C, C),
        "proj": (C, C),
        "lin1": (spec.hidden_mlp_dim, C),
        "lin2": (C, spec.hidden_mlp_dim),
    }
    weights = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    windows = (-(-side // spec.window_size)) ** 2
    whole = torch.randn(1, heads, tokens, d, dtype=dtype)
    cut = torch.randn(windows, heads, spec.window_size**2, d, dtype=dtype)
    patch = torch.randn(tokens, 3 * spec.patch_size**2, dtype=dtype)
    patch_weight = torch.randn(C, 3 * spec.patch_size**2, dtype=dtype)
    neck = torch.randn(1, C, side, side, dtype=dtype)
    one = torch.randn(spec.out_channels, C, 1, 1, dtype=dtype)
    three = torch.randn(spec.out_channels, spec.out_channels, 3, 3, dtype=dtype)

    def run() -> None:
        F.linear(patch, patch_weight)
        for i in range(spec.depth):
            for name, weight in weights.items():
                F.linear(wide if name == "lin2" else x, weight)
            q = whole if i in spec.global_attn_indexes else cut
            F.scaled_dot_product_attention(q, q, q)
        F.conv2d(F.conv2d(neck, one), three, padding=1)

    return run


def ours(encoder: ImageEncoder, image: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return encoder(image)


def theirs(model: torch.nn.Module, image: Tensor) -> Tensor:
    return model(image).last_hidden_state


@torch.inference_mode()
def measure(options: argparse.Namespace, dtype: torch.dtype, folder: str) -> dict[str, Any]:
    spec = BACKBONES[options.backbone].encoder
    image = torch.randn(1, 3, options.image_size, options.image_size)
    encoder = load_sam(folder).sam.image_encoder.eval().requires_grad_(False)
    hold_frozen_in(encoder, None if dtype == torch.float32 else dtype)  # as the commands do
    sdpa = transformers_model("sdpa", folder)
    sides: dict[str, Side] = {
        "convlora": partial(ours, encoder, image, dtype),
        "transformers sdpa": partial(theirs, sdpa.to(dtype), image.to(dtype)),
        "products": products(spec, options.image_size, dtype),
    }
    if dtype == torch.float32:
        eager = transformers_model("eager", folder)
        sides["transformers eager"] = partial(theirs, eager, image)
    times = in_turn(sides, options.repeats)
    a, b = sides["convlora"](), sides["transformers sdpa"]()
    return {
        "seconds": summary(times),
        "times faster than transformers sdpa": ratio(times["transformers sdpa"], times["convlora"]),
        "times faster than transformers eager": ratio(times["transformers eager"], times["convlora"])
        if "transformers eager" in times
        else None,
        "times the products alone": ratio(times["convlora"], times["products"]),
        "largest difference / largest value": ((a.float() - b.float()).abs().max() / b.abs().max()).item(),
    }


def main() -> None:
    made = parser(__doc__, backbone="facebook/sam-vit-base", image_size=1024, repeats=5, dtype="fp32,bf16")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        random_transformers_sam(options.backbone, options.image_size, Path(folder))
        chosen, left_out = dtypes(options.dtype)
        result = {name: measure(options, dtype, folder) for name, dtype in chosen.items()}
    report("encoder forward", {"options": vars(options), **result, **left_out}, "transformers")


if __name__ == "__main__":
    main()
