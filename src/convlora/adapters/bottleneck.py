"""Adapter (Houlsby et al., ICML 2019; AdaptFormer, Chen et al., NeurIPS 2022): bottlenecks in the blocks."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.adapters.base import (
    Method,
    apply_linear,
    at_least_float32,
    check_option,
    is_int,
    is_number,
    register,
)
from convlora.adapters.inject import blocks, replace_module

_PLACES = {"parallel": ("mlp",), "sequential": ("attn", "mlp")}


@register
@dataclass(frozen=True)
class Adapter(Method):
    """Down-projection, non-linearity, up-projection beside or behind the layers of every block.

    parallel (AdaptFormer, equation 2):  MLP(x) + s W_up ReLU(W_down x + b_down) + b_up, x the MLP's input;
    sequential (Houlsby, figure 2):      h + W_up GELU(W_down h + b_down) + b_up, h = Attention(x) or MLP(x).

    Sources: Chen et al., "AdaptFormer", NeurIPS 2022 (arXiv 2205.13535), section 3.2, with its scale 0.1;
    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019 (arXiv 1902.00751), section
    2.1.

    Placement in SAM's encoder: parallel, one bottleneck at the MLP of every block, windowed and global
    alike; sequential, one behind attention (within the window) and one behind the MLP, before the residual
    sum. Each position is adapted on its own. In both, W_up and b_up start at zero (AdaptFormer; Houlsby
    starts near zero). Houlsby also trains the layer norms, and so does not this. The place and width in the
    Conv-LoRA paper are not known; width 6 gives 4.04 M trained parameters at ViT-H, as many as Conv-LoRA
    (4.02 M).
    """

    name: ClassVar[str] = "adapter"

    width: int = dataclasses.field(default=6, metadata={"help": "Channels of the bottleneck."})
    placement: str = dataclasses.field(
        default="parallel", metadata={"help": "parallel (AdaptFormer) or sequential (Houlsby)."}
    )
    scale: float = dataclasses.field(
        default=0.1,
        metadata={"help": "Factor of the parallel bottleneck's output; left out with sequential."},
    )

    def __post_init__(self) -> None:
        check_option(self, "width", is_int(self.width, 1), "an integer of at least 1")
        check_option(self, "placement", self.placement in _PLACES, "'parallel' or 'sequential'")
        check_option(self, "scale", is_number(self.scale) and self.scale != 0, "a number above 0")
        scales = self.placement == "parallel" or self.scale == Adapter.scale
        check_option(self, "scale", scales, "left out with placement=sequential, which has no such factor")

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Wrap the MLP, or attention and MLP, of every block; see `Method.install`."""
        parameters: list[nn.Parameter] = []
        for i, block in enumerate(blocks(encoder)):
            for place in _PLACES[self.placement]:
                base = getattr(block, place)
                bottleneck = Bottleneck(block.norm2.weight, self.width, relu=self.placement == "parallel")
                layer = (
                    ParallelAdapter(base, bottleneck, self.scale)
                    if self.placement == "parallel"
                    else SequentialAdapter(base, bottleneck)
                )
                replace_module(encoder, f"blocks.{i}.{place}", layer)
                parameters += bottleneck.parameters()
        return parameters


class Bottleneck(nn.Module):
    """(..., C) to (..., C) through `width` channels; starts at zero. Float32 where `like` is half precision.

    Args:
        like: (C,) tensor that gives the channels and the device.
        width: channels between.
        relu: ReLU, else GELU.
    """

    def __init__(self, like: Tensor, width: int, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.down = nn.Linear(like.shape[0], width)
        self.up = nn.Linear(width, like.shape[0])
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        with torch.no_grad():
            for parameter in (self.down.bias, self.up.weight, self.up.bias):
                parameter.zero_()
        self.to(like.device, at_least_float32(like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """In autocast's dtype or else the bottleneck's own."""
        hidden = apply_linear(self.down, x)
        return apply_linear(self.up, F.relu(hidden) if self.relu else F.gelu(hidden))


class ParallelAdapter(nn.Module):
    """base(x) + scale bottleneck(x), in the dtype of the base's output."""

    unmergeable_because: ClassVar[str] = (
        "its update depends on the input (ReLU), so no fixed weight equals it"
    )

    def __init__(self, base: nn.Module, bottleneck: Bottleneck, scale: float) -> None:
        super().__init__()
        self.base, self.bottleneck, self.scale = base, bottleneck, scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        out: Tensor = self.base(x)
        return torch.add(out, self.bottleneck(x).to(out.dtype), alpha=self.scale)


class SequentialAdapter(nn.Module):
    """h + bottleneck(h) for h = base(x), in the dtype of h."""

    unmergeable_because: ClassVar[str] = (
        "its update depends on the input (GELU), so no fixed weight equals it"
    )

    def __init__(self, base: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.base, self.bottleneck = base, bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        out: Tensor = self.base(x)
        return out + self.bottleneck(out).to(out.dtype)
