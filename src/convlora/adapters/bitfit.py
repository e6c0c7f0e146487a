"""BitFit (Ben Zaken et al., ACL 2022): train the biases, leave the weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from convlora.adapters.base import Method, register


@register
@dataclass(frozen=True)
class BitFit(Method):
    """Train every bias of the encoder: y = W x + b with W frozen and b trained, also in the layer norms.

    Source: Ben Zaken et al., "BitFit", ACL 2022 (arXiv 2106.10199), section 2.

    Placement in SAM's encoder: patch embedding, all layers of every block (windowed and global alike) and the
    norms of the neck, whose convolutions have no bias: 452,352 parameters at ViT-H. So does AutoGluon's
    'bit_fit', the framework of Conv-LoRA's code; which biases the Conv-LoRA paper trained is not known.
    Relative positions and the position embedding are no biases of a layer and stay frozen. The key's third
    of a `qkv` bias gets no gradient: it adds one constant to all logits of a query. Nothing is added, so
    nothing is left to merge.
    """

    name: ClassVar[str] = "bitfit"

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Add nothing; see `Method.install`."""
        return [p for name, p in encoder.named_parameters() if name.rpartition(".")[2] == "bias"]
