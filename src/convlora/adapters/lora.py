"""LoRA (Hu et al., ICLR 2022): a low-rank update of a frozen linear layer."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.adapters.base import (
    Method,
    at_least_float32,
    autocast_active,
    check_option,
    check_targets,
    is_int,
    is_number,
    register,
)
from convlora.adapters.inject import replace_module, target_linears
from convlora.errors import ConfigError
from convlora.tracing import being_traced


@register
@dataclass(frozen=True)
class Lora(Method):
    """Low-rank update of linear layers, h = W x + b + (alpha / rank) B A x.

    Differs from the usual LoRA of ViTs in that SAM's q, k and v are one fused layer, so one update serves all
    three, as in Conv-LoRA's official code (whose filter "q", "v" matches the fused `qkv`).
    """

    name: ClassVar[str] = "lora"

    rank: int = dataclasses.field(default=3, metadata={"help": "Rank of the update."})
    alpha: float = dataclasses.field(default=32.0, metadata={"help": "The update is scaled by alpha / rank."})
    targets: tuple[str, ...] = dataclasses.field(
        default=("attn.qkv",),
        metadata={"help": "Layers of every block: qkv, proj, mlp, or exact names."},
    )

    def __post_init__(self) -> None:
        check_low_rank(self, self.rank, self.alpha)
        check_targets(self, self.targets)

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Wrap each target; see `Method.install`."""
        parameters: list[nn.Parameter] = []
        for name, base in target_linears(encoder, self.targets):
            check_rank_fits(self.rank, name, base)
            layer = LoRALinear(base, self.rank, self.alpha)
            replace_module(encoder, name, layer)
            parameters += [layer.lora_A, layer.lora_B]
        return parameters


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update, h = W x + b + (alpha / r) B A x.

    A (r, in) starts as nn.Linear's weight does and B (out, r) at zero, so the layer starts as its base.
    Both are float32 where the base is half precision; the output keeps the dtype of the base's.

    Args:
        base: the layer to adapt; its own parameters are left as they are.
        rank: r.
        alpha: numerator of the scale.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        self.lora_A, self.lora_B = new_low_rank_pair(base, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return updated_linear(self.base, x, project(x, self.lora_A), self.lora_B, self.scaling)

    def merged(self) -> nn.Linear:
        """The plain layer with weight W + (alpha / r) B A."""
        layer = nn.utils.skip_init(
            nn.Linear,
            self.base.in_features,
            self.base.out_features,
            bias=self.base.bias is not None,
            device=self.base.weight.device,
            dtype=self.base.weight.dtype,
        )
        with torch.no_grad():
            layer.weight.copy_(self.base.weight + self.scaling * (self.lora_B @ self.lora_A))
            if self.base.bias is not None:
                layer.bias.copy_(self.base.bias)
        return layer


def new_low_rank_pair(base: nn.Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, in), Kaiming uniform, and B (out, rank), zero, on the device of `base`, float32 at least."""
    device, dtype = base.weight.device, at_least_float32(base.weight.dtype)
    lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device, dtype=dtype))
    nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return lora_A, nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=dtype))


def project(x: Tensor, lora_A: Tensor) -> Tensor:
    """A x, (..., in) to (..., r), in autocast's dtype or else the adapter's."""
    if not autocast_active(x.device.type):
        x = x.to(lora_A.dtype)
    return F.linear(x, lora_A)


def updated_linear(base: nn.Linear, x: Tensor, z: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """base(x) + scaling B z for x (..., in) and z (..., r): (..., out) in the dtype of the base's output.

    The sum is made inside the product, in place, as no backward needs the base's output; and on a flat
    matrix, as autograd would copy a view that is written into.
    """
    if being_traced():
        return _wide_linear(base, x, z, lora_B, scaling)
    h = base(x.reshape(-1, x.shape[-1]))
    h.addmm_(z.reshape(-1, z.shape[-1]).to(h.dtype), lora_B.t().to(h.dtype), alpha=scaling)
    return h.view(*x.shape[:-1], h.shape[-1])


def _wide_linear(base: nn.Linear, x: Tensor, z: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """`updated_linear` as one product of [x, z, 0] with [W, scaling B, 0].

    For OpenVINO, which would write the base's wide output, then the update's, then their sum. The zeros make
    the width a multiple of 32, of what matrix units take at a time: without them it takes 1.5 times as long.
    """
    rest = -(x.shape[-1] + z.shape[-1]) % 32
    weight = torch.cat([base.weight, scaling * lora_B.to(base.weight.dtype)], dim=1)
    wide = torch.cat([x, F.pad(z.to(x.dtype), (0, rest))], dim=-1)
    return F.linear(wide, F.pad(weight, (0, rest)), base.bias)


def check_low_rank(method: Method, rank: object, alpha: object) -> None:
    """Raise a ConfigError unless rank is an integer of at least 1 and alpha a positive number."""
    check_option(method, "rank", is_int(rank, 1), "an integer of at least 1")
    check_option(method, "alpha", is_number(alpha) and alpha != 0, "a number above 0")


def check_rank_fits(rank: int, name: str, base: nn.Linear) -> None:
    """Raise a ConfigError where the rank is above the one that the layer itself can have."""
    full = min(base.in_features, base.out_features)
    if rank > full:
        raise ConfigError(
            f"rank is {rank}, but {name} has {base.in_features} inputs and {base.out_features} outputs, so "
            f"at most rank {full}. Set method.rank to {full} or less; 3 to 16 is usual."
        )
