"""The two ends of the scale: leave the encoder as it is, or train all of it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from convlora.adapters.base import Method, register


@register
@dataclass(frozen=True)
class DecoderOnly(Method):
    """Train the mask decoder and head only; the encoder stays frozen. The floor of every comparison."""

    name: ClassVar[str] = "decoder-only"
    trains_encoder: ClassVar[bool] = False

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Nothing to do; see `Method.install`."""
        return []


@register
@dataclass(frozen=True)
class Full(Method):
    """Train every parameter of the encoder. Needs the most memory, and a file as large as the backbone."""

    name: ClassVar[str] = "full"

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Add nothing, train everything; see `Method.install`."""
        return list(encoder.parameters())
