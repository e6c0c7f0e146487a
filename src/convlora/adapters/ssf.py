"""SSF (Lian et al., NeurIPS 2022): scale and shift the output of every operation."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from convlora.adapters.base import Method, at_least_float32, check_targets, register
from convlora.adapters.inject import patch_convolution, replace_module, target_layers

_OPERATIONS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")


@register
@dataclass(frozen=True)
class Ssf(Method):
    """Scale and shift features channel by channel: y = gamma * base(x) + beta.

    Source: Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022 (arXiv 2210.08823), equation 3.

    Placement in SAM's encoder: after the patch embedding and, in every block, windowed and global alike,
    after both layer norms, qkv, proj and both layers of the MLP: 0.90 M at ViT-H, 4.41 M with the decoder.
    The neck, which the source's ViT does not have, is left as it is. Where the Conv-LoRA paper put them is
    not known.

    Differs from the source in that gamma starts at one and beta at zero exactly (there: with a deviation of
    0.02), so that training starts from the frozen encoder. Merging is exact: gamma and beta go into the
    weight and bias of the layer before them.
    """

    name: ClassVar[str] = "ssf"

    targets: tuple[str, ...] = dataclasses.field(
        default=_OPERATIONS, metadata={"help": "Linear layers and layer norms of every block, by exact name."}
    )

    def __post_init__(self) -> None:
        check_targets(self, self.targets)

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Wrap the patch convolution and each target; see `Method.install`."""
        parameters: list[nn.Parameter] = []
        found = target_layers(encoder, self.targets, also=(nn.LayerNorm,))
        for name, base in [*found, patch_convolution(encoder)]:
            layer = ScaledShifted(base)
            replace_module(encoder, name, layer)
            parameters += [layer.scale, layer.shift]
        return parameters


class ScaledShifted(nn.Module):
    """gamma * base(x) + beta, per channel, in the dtype of the base's output.

    Args:
        base: nn.Linear, nn.LayerNorm (channels last) or nn.Conv2d (channels second).
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        weight = base.get_parameter("weight")
        dtype = at_least_float32(weight.dtype)
        self.scale = nn.Parameter(torch.ones(weight.shape[0], device=weight.device, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros_like(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as the base's output."""
        out: Tensor = self.base(x)
        axes = (-1, 1, 1) if isinstance(self.base, nn.Conv2d) else (-1,)
        # in float32, as bfloat16 has steps of 0.0078 above 1, which learning would not get over; the product
        # keeps its half-precision operand for the backward pass, where addcmul would keep a copy
        scaled = out * self.scale.view(axes) + self.shift.view(axes)
        return scaled.to(out.dtype)

    def merged(self) -> nn.Module:
        """The plain layer with gamma W and gamma b + beta; a layer without bias gets one."""
        layer = copy.deepcopy(self.base)
        weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
        with torch.no_grad():
            rows = self.scale.view(-1, *[1] * (weight.ndim - 1))
            weight.copy_(rows * weight)
            shift = self.shift if bias is None else self.scale * bias + self.shift
            layer.bias = nn.Parameter(shift.to(weight.dtype))
        return layer
