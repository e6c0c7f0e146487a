"""LST (Sung et al., NeurIPS 2022): a small network beside the frozen one; nothing flows back through that."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from convlora.adapters.base import Method, apply_linear, at_least_float32, check_option, is_int, register
from convlora.adapters.inject import blocks, patch_convolution, set_side_path

_HEAD = 16  # channels of a head of the side network
_TEMPERATURE = 0.1


@register
@dataclass(frozen=True)
class Lst(Method):
    """Ladder side tuning: a narrow copy of the encoder's structure, fed by the output of every block.

        s_0 = D_0 x_0,   s_i = side_i(m_i D_i x_i + (1 - m_i) s_(i-1)),   m_i = sigmoid(a_i / 0.1)
        output = x_n + U norm(s_n)

    where x_i is the output of block i of the frozen encoder, D_i maps to the side network's width, side_i is
    a transformer block of that width, a_i is a learned scalar that starts at zero, and U maps back.

    Source: Sung et al., "LST: Ladder Side-Tuning", NeurIPS 2022 (arXiv 2206.06522), section 3.2 and 3.3.

    Placement in SAM's encoder: every block has its rung, and side_i has the windows and relative positions
    of its block. The frozen blocks run without a graph, so their activations are not kept; the gradient
    ends at the neck. By default the side network has 7.5 % of the width, in heads of 16 channels: 96 at
    ViT-H, where the method trains 11.3 M with the decoder (the Conv-LoRA paper: 11.49 M, of a ratio that is
    not known).

    Differs from the source in that the frozen encoder's output stays in the sum and U starts at zero, so that
    training starts from the frozen encoder; side blocks start at random instead of from pruned weights; and
    no block is left out.
    """

    name: ClassVar[str] = "lst"

    width: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Channels of the side network, a multiple of 16; by default 7.5 % of the encoder's."
        },
    )

    def __post_init__(self) -> None:
        valid = self.width is None or (is_int(self.width, _HEAD) and self.width % _HEAD == 0)
        check_option(self, "width", valid, f"a multiple of {_HEAD}")

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Give the encoder the ladder as a side path; see `Method.install`."""
        _, patches = patch_convolution(encoder)
        width = self.width or max(_HEAD, round(0.075 * patches.out_channels / _HEAD) * _HEAD)
        sides = [block.narrowed(width, width // _HEAD) for block in blocks(encoder)]
        return set_side_path(encoder, Ladder(sides, patches.weight, width))


class Ladder(nn.Module):
    """Runs the blocks without a graph and the side network beside them; see `Lst` for the equation.

    Args:
        sides: a block of width `width` for each of the encoder's.
        like: weight of the patch convolution: gives width, device and dtype.
        width: channels of the side network.
    """

    unmergeable_because: ClassVar[str] = "its update depends on the input (a network of its own)"

    def __init__(self, sides: list[nn.Module], like: Tensor, width: int) -> None:
        super().__init__()
        dim = like.shape[0]
        self.sides = nn.ModuleList(sides)
        self.down = nn.ModuleList(nn.Linear(dim, width) for _ in range(len(sides) + 1))
        self.gates = nn.Parameter(torch.zeros(len(sides)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.to(like.device, at_least_float32(like.dtype))

    def forward(self, x: Tensor, patches: Tensor, image: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Run `blocks` and the ladder on x (B, H, W, C); patches and image are not used."""
        side = apply_linear(self._rung(0), x)
        mixes = torch.sigmoid(self.gates / _TEMPERATURE).to(side.dtype)
        for i, (block, side_block) in enumerate(zip(blocks, self.sides, strict=True)):
            with torch.no_grad():
                x = block(x)
            side = side_block(torch.lerp(side, apply_linear(self._rung(i + 1), x), mixes[i]))
        return x + apply_linear(self.up, self.norm(side)).to(x.dtype)

    def _rung(self, index: int) -> nn.Linear:
        layer = self.down[index]
        assert isinstance(layer, nn.Linear)
        return layer
