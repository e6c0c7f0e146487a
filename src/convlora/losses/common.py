"""What all losses share: the ignored label, full precision, and the checks of their inputs."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.errors import ConfigError, DataError

IGNORE_INDEX = 255
"""Label of pixels that no loss looks at."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def full_precision(loss: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: half-precision tensors come in as float32 and autocast is off, so sums over pixels hold."""

    @wraps(loss)
    def computed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        values = [*args, *kwargs.values()]
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        promoted = {key: _promote(value) for key, value in kwargs.items()}
        known = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if known else nullcontext():
            return loss(*map(_promote, args), **promoted)  # type: ignore[arg-type]  # types are kept

    return computed


def _promote(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


class BinaryPixels(NamedTuple):
    """Inputs of a binary loss; each (B, H, W) in the dtype of the logits."""

    logits: Tensor  # 0 where ignored, so that no value there, not even NaN, reaches the loss
    truth: Tensor  # 1 foreground, else 0
    valid: Tensor  # 0 ignored, else 1


def binary_pixels(logits: Tensor, target: Tensor) -> BinaryPixels:
    """Split logits (B, 1, H, W) and labels (B, H, W) of 0, 1 and 255 into values, truth and validity.

    Raises:
        ConfigError: the logits do not have exactly one channel.
        DataError: sizes differ, or a label is none of 0, 1 and 255.
    """
    check_sizes(logits, target)
    if logits.shape[1] != 1:
        raise ConfigError(
            f"A binary loss needs logits of one channel, got {logits.shape[1]}. "
            "Use head 'binary', or a loss for several classes such as 'ce-dice'."
        )
    check_labels(target, num_classes=2)
    valid = target != IGNORE_INDEX
    values = logits.squeeze(1).masked_fill(~valid, 0)
    return BinaryPixels(values, (target == 1).to(values), valid.to(values))


def bce_per_pixel(pixels: BinaryPixels) -> Tensor:
    """Binary cross entropy of each pixel, (B, H, W); ignored pixels hold ln 2, so weight them with zero."""
    return F.binary_cross_entropy_with_logits(pixels.logits, pixels.truth, reduction="none")


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1, over all dimensions; 0 where it is 1 nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def check_sizes(logits: Tensor, target: Tensor) -> None:
    """Require logits (B, C, H, W) for labels (B, H, W).

    Raises:
        DataError: they do not fit each other.
    """
    if logits.ndim != 4 or (logits.shape[0], *logits.shape[2:]) != tuple(target.shape):
        raise DataError(
            f"The loss needs logits (B, C, H, W) and labels (B, H, W) of one size, got {tuple(logits.shape)} "
            f"and {tuple(target.shape)}. Resample the logits to the size of the labels first."
        )


def check_labels(target: Tensor, num_classes: int) -> None:
    """Require labels of 0 to `num_classes` - 1, or 255.

    Costs one synchronisation of the device; without it a wrong label is an assertion inside a CUDA kernel,
    or silently background.

    Raises:
        DataError: another label occurs.
    """
    if target.numel() == 0:
        return
    low, high = torch.stack(target.masked_fill(target == IGNORE_INDEX, 0).aminmax()).tolist()
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"A mask holds the label {wrong}; labels are 0 to {num_classes - 1}, and {IGNORE_INDEX} is "
            "ignored. Correct the masks or the list of classes."
        )
