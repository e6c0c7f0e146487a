"""VPT (Jia et al., ECCV 2022): learned tokens beside those of the image."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from convlora.adapters.base import Block, Method, at_least_float32, check_option, is_int, register
from convlora.adapters.inject import blocks, patch_convolution, set_side_path


@register
@dataclass(frozen=True)
class Vpt(Method):
    """Learned tokens P that the image's tokens attend to in every block.

    deep:     [x_i, _] = block_i([x_(i-1), P_i]), new tokens for every block;
    shallow:  [x_1, Z_1] = block_1([x_0, P]),  [x_i, Z_i] = block_i([x_(i-1), Z_(i-1)]).

    Source: Jia et al., "Visual Prompt Tuning", ECCV 2022 (arXiv 2203.12119), equations 4 to 7.

    Placement in SAM's encoder, which the source does not have: in a windowed block each window attends to a
    copy of the tokens, and the copies are averaged over the image's windows afterwards (as the source does
    in Swin; it matters for shallow only, as deep drops them). The tokens have no place, so relative
    positions add nothing to their logits, neither as queries nor as keys. They are dropped after the last
    block: the feature map keeps its shape. Twelve deep tokens are 0.4915 M at ViT-H, 3.997 M with the
    decoder, the 0.62 % that the Conv-LoRA paper reports; whether it used deep ones, and how in windows, is
    not known.

    Differs from the other methods in that training does not start from the frozen encoder: new tokens
    take part in every softmax. The source's dropout on tokens is left out.
    """

    name: ClassVar[str] = "vpt"

    tokens: int = dataclasses.field(default=12, metadata={"help": "Learned tokens, in each block when deep."})
    deep: bool = dataclasses.field(
        default=True, metadata={"help": "New tokens in every block; else in the first only."}
    )

    def __post_init__(self) -> None:
        check_option(self, "tokens", is_int(self.tokens, 1), "an integer of at least 1")
        check_option(self, "deep", isinstance(self.deep, bool), "true or false")

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Give the encoder a side path that adds the tokens; see `Method.install`."""
        _, patches = patch_convolution(encoder)
        layers = len(blocks(encoder)) if self.deep else 1
        return set_side_path(encoder, PromptTokens(patches, layers, self.tokens))


class PromptTokens(nn.Module):
    """Runs the blocks with learned tokens beside the map.

    Args:
        patches: the encoder's patch convolution: tells width, patch size, device and dtype.
        layers: 1 (shallow), or the number of blocks (deep).
        count: tokens in a layer.
    """

    unmergeable_because: ClassVar[str] = (
        "its update depends on the input (the image attends to learned tokens)"
    )

    def __init__(self, patches: nn.Conv2d, layers: int, count: int) -> None:
        super().__init__()
        weight = patches.weight
        tokens = torch.empty(
            layers, count, weight.shape[0], device=weight.device, dtype=at_least_float32(weight.dtype)
        )
        bound = (6 / (weight[0].numel() + weight.shape[0])) ** 0.5  # Xavier's, of the patch embedding
        self.tokens = nn.Parameter(tokens.uniform_(-bound, bound))

    def forward(self, x: Tensor, patches: Tensor, image: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Run `blocks` on x (B, H, W, C); patches and image are not used."""
        deep = self.tokens.shape[0] == len(blocks)
        tokens = self._layer(0, x)
        for i, block in enumerate(blocks):
            x, tokens = cast(Block, block).with_tokens(x, tokens)
            if deep and i + 1 < len(blocks):
                tokens = self._layer(i + 1, x)
        return x

    def _layer(self, index: int, x: Tensor) -> Tensor:
        return self.tokens[index].to(x.dtype).expand(x.shape[0], -1, -1)
