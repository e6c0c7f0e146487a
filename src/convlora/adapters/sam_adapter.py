"""SAM-Adapter (Chen et al., ICCV Workshops 2023): prompts from patches and high frequencies."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.adapters.base import (
    Method,
    apply_linear,
    at_least_float32,
    autocast_active,
    autocast_off,
    check_option,
    is_int,
    is_number,
    register,
)
from convlora.adapters.inject import blocks, patch_convolution, set_side_path


@register
@dataclass(frozen=True)
class SamAdapter(Method):
    """Add to the input of every block prompts made from the patches and the image's high frequencies.

        F = E(patches) + P(highpass(image)),    x_i <- x_i + U GELU(T_i F)

    where E (linear) and P (a patch convolution) map to C / reduction channels, T_i is a linear layer of
    block i and U one linear layer, shared by all blocks, back to C channels. The high-pass removes the
    centre of the shifted spectrum, a box of `rate` of its area, and takes the absolute value of the inverse
    transform.

    Source: Chen et al., "SAM-Adapter", ICCV Workshops 2023 (arXiv 2304.09148), section 3, and its official
    code with its defaults, reduction 32 and rate 0.25: 0.187 M at ViT-H. It is Explicit Visual Prompting
    (Liu et al., CVPR 2023) in SAM. The size in the Conv-LoRA paper is not known.

    Placement in SAM's encoder: the prompts are added to the whole map before a block cuts it into windows, so
    windowed and global blocks are treated alike; patches are taken before the position embedding.

    Differs from the official code in that U starts at zero, so that training starts from the frozen encoder
    (there: normal with deviation 0.02), and in that the images are normalised as SAM's.
    """

    name: ClassVar[str] = "sam-adapter"

    reduction: int = dataclasses.field(
        default=32, metadata={"help": "The encoder's width divided by that of the prompts."}
    )
    rate: float = dataclasses.field(
        default=0.25,
        metadata={"help": "Share of the spectrum, around its centre, that the high-pass removes."},
    )

    def __post_init__(self) -> None:
        check_option(self, "reduction", is_int(self.reduction, 1), "an integer of at least 1")
        check_option(
            self, "rate", is_number(self.rate) and self.rate < 1, "a number from 0 up to, not including, 1"
        )

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Give the encoder a side path that makes and adds the prompts; see `Method.install`."""
        _, patches = patch_convolution(encoder)
        return set_side_path(
            encoder, PromptGenerator(patches, len(blocks(encoder)), self.reduction, self.rate)
        )


class PromptGenerator(nn.Module):
    """Runs the blocks with prompts added; see `SamAdapter` for the equation.

    Args:
        patches: the encoder's patch convolution: tells patch size, width C, device and dtype.
        depth: number of blocks.
        reduction: the prompts have C / reduction channels, at least one.
        rate: see `high_frequencies`.
    """

    unmergeable_because: ClassVar[str] = "its update depends on the input (prompts made from the image)"

    def __init__(self, patches: nn.Conv2d, depth: int, reduction: int, rate: float) -> None:
        super().__init__()
        dim = patches.out_channels
        width = max(1, dim // reduction)
        self.rate = rate
        self.embedding = nn.Linear(dim, width)
        patch = (patches.kernel_size[0], patches.kernel_size[1])
        self.frequencies = nn.Conv2d(patches.in_channels, width, kernel_size=patch, stride=patch)
        self.tune = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.to(patches.weight.device, at_least_float32(patches.weight.dtype))

    def forward(self, x: Tensor, patches: Tensor, image: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Run `blocks` on x (B, H, W, C), given the patches (B, H, W, C) and the image (B, 3, h, w)."""
        high = high_frequencies(image, self.rate)
        if not autocast_active(image.device.type):
            high = high.to(self.frequencies.weight.dtype)
        features = apply_linear(self.embedding, patches) + self.frequencies(high).permute(0, 2, 3, 1)
        for block, tune in zip(blocks, self.tune, strict=True):
            assert isinstance(tune, nn.Linear)
            prompt = apply_linear(self.up, F.gelu(apply_linear(tune, features)))
            x = block(x + prompt.to(x.dtype))
        return x


def high_frequencies(image: Tensor, rate: float) -> Tensor:
    """Absolute value of the image without its low frequencies.

    Args:
        image: (B, C, h, w).
        rate: area of the box at the centre of the shifted spectrum that is removed, a share of all; its side
            is 2 floor(sqrt(rate h w) / 2), a square in any image, cut where the image is shorter.

    Returns:
        (B, C, h, w) float32.
    """
    h, w = image.shape[-2:]
    half = int((h * w * rate) ** 0.5 // 2)
    with autocast_off(image.device.type):
        low = [_is_low(side, half, image.device) for side in (h, w)]
        keep = ~(low[0][:, None] & low[1])
        spectrum = torch.fft.fft2(image.to(at_least_float32(image.dtype)))
        return torch.fft.ifft2(spectrum * keep).real.abs()


def _is_low(side: int, half: int, device: torch.device) -> Tensor:
    """(side,) bool: whether a frequency, in the order of torch.fft, lies in the box around the centre."""
    shifted = (torch.arange(side, device=device) + side // 2) % side  # place in the shifted spectrum
    return (shifted >= side // 2 - half) & (shifted < side // 2 + half)
