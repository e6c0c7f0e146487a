"""Structure loss: cross entropy and IoU that weigh pixels near a boundary more.

Fan et al., PraNet, MICCAI 2020.
"""

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.losses.common import BinaryPixels, bce_per_pixel, binary_pixels, full_precision, mean_over

BOUNDARY_WINDOW = 31
"""Side in pixels of the neighbourhood that decides how near a boundary is."""

BOUNDARY_WEIGHT = 5.0
"""Extra weight of a pixel whose whole neighbourhood is of the other class."""


@full_precision
def structure_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Weighted binary cross entropy + weighted IoU, the form that the paper of PraNet describes.

    With y the labels and w = 1 + 5 |avgpool31(y) - y| (zero where ignored), for each image
    sum(w bce) / sum(w) + 1 - (I + 1) / (U - I + 1), where I = sum(w p y) and U = sum(w (p + y)); then the
    mean over the batch. An image without labelled pixels contributes zero.

    The public code of PraNet, and of Conv-LoRA after it, computes something else: `structure_loss_official`.

    Args:
        logits: (B, 1, H, W).
        target: (B, H, W) of 0, 1 and 255.

    Raises:
        ConfigError: the logits have more than one channel.
        DataError: sizes differ or a label is not valid.
    """
    pixels = binary_pixels(logits, target)
    weight = boundary_weights(pixels)
    weighted = (weight * bce_per_pixel(pixels)).sum(dim=(1, 2))
    bce = weighted / weight.sum(dim=(1, 2)).clamp(min=1)  # a labelled pixel weighs 1 or more
    return (bce + _weighted_iou_loss(pixels, weight)).mean()


@full_precision
def structure_loss_official(logits: Tensor, target: Tensor) -> Tensor:
    """Structure loss as the public code computes it; the published results were made with it.

    The code passes `reduce="none"`, a deprecated boolean that any string sets: the cross entropy is already
    the mean over the batch when the weights come, and they cancel. Only the IoU is weighted.

    Args:
        logits: (B, 1, H, W).
        target: (B, H, W) of 0, 1 and 255.

    Raises:
        ConfigError: the logits have more than one channel.
        DataError: sizes differ or a label is not valid.
    """
    pixels = binary_pixels(logits, target)
    iou = _weighted_iou_loss(pixels, boundary_weights(pixels)).mean()
    return mean_over(bce_per_pixel(pixels), pixels.valid) + iou


def boundary_weights(pixels: BinaryPixels) -> Tensor:
    """Weights 1 + 5 |avgpool31(y) - y|, (B, H, W); 0 where ignored.

    Beyond the edge of the image y counts as background, as in PraNet. Ignored pixels leave the mean of the
    neighbourhood instead: they are no boundary.
    """
    truth, valid = pixels.truth, pixels.valid
    # a labelled pixel's window holds that pixel; the others only must not divide by zero
    labelled = count_in_window(valid, outside=1).clamp_(min=1)
    contrast = count_in_window(truth, outside=0).to(truth.dtype).div_(labelled).sub_(truth).abs_()
    return torch.addcmul(valid, valid, contrast, value=BOUNDARY_WEIGHT)


def count_in_window(values: Tensor, outside: int) -> Tensor:
    """How many 1s each pixel's window holds: (B, H, W) of 0s and 1s to int16; beyond the edge is `outside`.

    One axis after the other, by sums of 1, 2, 4, 8 and 16 neighbours, in int16 (961 at most): exact, and in
    a small part of the time that average pooling takes.
    """
    half = BOUNDARY_WINDOW // 2
    counts = F.pad(values.to(torch.int16), (half, half, half, half), value=outside)
    for dim in (2, 1):
        counts = _window_sum(counts, dim, BOUNDARY_WINDOW)
    return counts


def _window_sum(values: Tensor, dim: int, window: int) -> Tensor:
    """Sum of each `window` neighbours along an axis, which becomes shorter by `window` - 1."""
    length = values.shape[dim] - window + 1
    parts, start, size = [], 0, 1
    sums = values  # of `size` neighbours
    while True:
        if window & size:
            parts.append(sums.narrow(dim, start, length))
            start += size
        if start == window:
            return reduce(torch.add, parts)
        rest = sums.shape[dim] - size
        sums = sums.narrow(dim, 0, rest) + sums.narrow(dim, size, rest)
        size *= 2


def _weighted_iou_loss(pixels: BinaryPixels, weight: Tensor) -> Tensor:
    """1 - (I + 1) / (U - I + 1) of each image, (B,); 0 where nothing has a weight."""
    predicted = weight * pixels.logits.sigmoid()
    intersection = (predicted * pixels.truth).sum(dim=(1, 2))
    total = predicted.sum(dim=(1, 2)) + (weight * pixels.truth).sum(dim=(1, 2))
    return 1 - (intersection + 1) / (total - intersection + 1)
