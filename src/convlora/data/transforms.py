"""Geometry between an image and the encoder's square input, and its exact inverse."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.data.masks import IGNORE
from convlora.errors import ConfigError

# ImageNet's, for RGB in [0, 1]: what SAM was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Geometry:
    """How an image was brought to a square: resized to `resized`, then padded at the bottom and right."""

    native: tuple[int, int]  # (H, W)
    resized: tuple[int, int]
    side: int
    stretched: bool = False


def fit_geometry(native: tuple[int, int], side: int, resize: str) -> Geometry:
    """Decide the geometry.

    Args:
        native: (H, W) of the image.
        side: of the square in pixels.
        resize: 'pad' keeps the aspect (longest side becomes `side`), 'stretch' fills the square as the
            official Conv-LoRA code does.

    Raises:
        ConfigError: `resize` is neither.
    """
    if resize == "stretch":
        return Geometry(native, (side, side), side, stretched=True)
    if resize != "pad":
        raise ConfigError(f"resize is '{resize}'; it must be 'pad' or 'stretch'.")
    scale = side / max(native)
    height, width = (max(1, round(length * scale)) for length in native)
    return Geometry(native, (height, width), side)


def apply_image(image: Tensor, geometry: Geometry) -> Tensor:
    """Resize an image and pad it with the mean colour: (3, H, W) float to (3, side, side).

    The mean colour is 0 once normalised, the padding that SAM was trained with.

    Padding resizes bilinearly, stretching bicubically (as the official code); both smooth when shrinking.
    Bicubic weights overshoot at edges: the result is clamped to [0, 1], as 8-bit resizing does.
    """
    mode = "bicubic" if geometry.stretched else "bilinear"
    resized = F.interpolate(image[None], geometry.resized, mode=mode, align_corners=False, antialias=True)[0]
    return _pad(resized.clamp(0, 1) - mean_colour(image), geometry, 0.0) + mean_colour(image)


def apply_mask(mask: Tensor, geometry: Geometry) -> Tensor:
    """Resize a mask to the nearest ids and pad it with 'ignore': (H, W) uint8 to (side, side) uint8."""
    resized = F.interpolate(mask[None, None].float(), geometry.resized, mode="nearest-exact")[0]
    return _pad(resized, geometry, float(IGNORE))[0].to(torch.uint8)


def mean_colour(like: Tensor) -> Tensor:
    """ImageNet's mean as (3, 1, 1), in the device and dtype of `like`."""
    return torch.tensor(MEAN, device=like.device, dtype=like.dtype)[:, None, None]


def normalize(image: Tensor) -> Tensor:
    """RGB in [0, 1], (..., 3, H, W), to zero mean and unit variance by ImageNet's numbers."""
    std = torch.tensor(STD, device=image.device, dtype=image.dtype)[:, None, None]
    return (image - mean_colour(image)) / std


def invert(scores: Tensor, geometry: Geometry) -> Tensor:
    """Bring scores of the square, at any resolution, to the image's own size.

    Every native pixel is looked up bilinearly at the place of its centre, in one step: no rounding of the
    crop, no second resampling. Places are those of `apply_image`, so a ramp comes back as the same ramp.

    Args:
        scores: (C, h, w) on a grid that covers the whole square.
        geometry: of the image.

    Returns:
        (C, H, W), in the dtype of `scores`.
    """
    (H, W), (height, width) = geometry.native, geometry.resized
    rows = _centres(H, height / geometry.side, scores.device)
    columns = _centres(W, width / geometry.side, scores.device)
    grid = torch.stack([columns.expand(H, W), rows[:, None].expand(H, W)], dim=-1)
    sampled = F.grid_sample(
        scores[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0].to(scores.dtype)


def _centres(count: int, share: float, device: torch.device) -> Tensor:
    """Centres of `count` pixels that fill the first `share` of the axis [-1, 1]."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count * 2 * share - 1


def _pad(x: Tensor, geometry: Geometry, value: float) -> Tensor:
    height, width = geometry.resized
    return F.pad(x, (0, geometry.side - width, 0, geometry.side - height), value=value)
