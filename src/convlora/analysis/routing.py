"""Which scale each block and each image chose."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from convlora.adapters.conv_lora import ConvLoRALinear
from convlora.adapters.gating import Routing


@dataclass
class Choices:
    """Shares of the experts.

    Attributes:
        scales: of the experts, in their order.
        shares: layer -> for each image the share of each expert, (images, M) once stacked: the share of the
            windows that went to it (balance, switch), or its mean weight (soft).
    """

    scales: tuple[int, ...]
    shares: dict[str, list[Tensor]] = field(default_factory=dict)

    def stacked(self) -> dict[str, Tensor]:
        """Layer -> (images, M) float32, rows that sum to one."""
        return {name: torch.stack(rows) for name, rows in self.shares.items()}


def routed_layers(encoder: nn.Module) -> dict[str, ConvLoRALinear]:
    """Layers with a gate, by name; none for other methods."""
    return {name: layer for name, layer in encoder.named_modules() if isinstance(layer, ConvLoRALinear)}


@contextmanager
def watch_routing(encoder: nn.Module) -> Iterator[Choices]:
    """Record the decisions of every gate, while images go through the encoder one by one."""
    layers = routed_layers(encoder)
    choices = Choices(next(iter(layers.values())).experts.scales)
    hooks = [
        layer.gate.register_forward_hook(partial(_record, choices, name)) for name, layer in layers.items()
    ]
    try:
        yield choices
    finally:
        for hook in hooks:
            hook.remove()


def _record(choices: Choices, name: str, gate: nn.Module, inputs: object, output: Routing | Tensor) -> None:
    count = len(choices.scales)
    if isinstance(output, Tensor):  # soft: weights (B', M), or (B', H, W, M)
        share = output.reshape(-1, count).float().mean(0)
    else:
        share = torch.bincount(output.indices.flatten(), minlength=count) / output.indices.numel()
    choices.shares.setdefault(name, []).append(share.cpu())
