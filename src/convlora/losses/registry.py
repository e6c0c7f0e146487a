"""The losses by name, and the head that each one is for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from convlora.errors import ConfigError
from convlora.head import HeadKind
from convlora.losses.mask_classification import MaskClassificationWeights, mask_classification_loss
from convlora.losses.region import (
    balanced_bce_loss,
    bce_dice_loss,
    binary_focal_dice_loss,
    cross_entropy_dice_loss,
)
from convlora.losses.structure import structure_loss, structure_loss_official
from convlora.settings import near_hint


@dataclass(frozen=True)
class SegmentationLoss:
    """A loss and the head that it is for; calling it is the same for all heads.

    Attributes:
        head: kind of head whose output it takes.
        function: the loss of that head, of (mask_logits, target); for mask classification of
            (mask_logits, class_logits, target).
        about: what it is, in a line.
        resample: whether the mask logits must be brought to the size of the labels first.
    """

    head: HeadKind
    function: Callable[..., Tensor]
    about: str
    resample: bool = True

    def __call__(
        self,
        mask_logits: Tensor,
        class_logits: Tensor | None,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            mask_logits: (B, 1, H, W), (B, K, H, W), or (B, Q, h, w) for mask classification.
            class_logits: (B, Q, K + 1) for mask classification, else unused.
            target: (B, H, W) int64, 255 is ignored.
            generator: of random points, on the device of the logits; only mask classification has any.

        Raises:
            ConfigError: the loss needs class logits and the head has none, or the loss itself raises one.
            DataError: sizes or labels are not valid.
        """
        if self.head != "mask-classification":
            return self.function(mask_logits, target)
        if class_logits is None:
            raise ConfigError("The loss needs class logits, which only the head 'mask-classification' gives.")
        return self.function(mask_logits, class_logits, target, generator=generator)


def _mask_classification_total(
    mask_logits: Tensor,
    class_logits: Tensor,
    target: Tensor,
    weights: MaskClassificationWeights,
    generator: torch.Generator | None = None,
) -> Tensor:
    loss = mask_classification_loss(mask_logits, class_logits, target, weights=weights, generator=generator)
    return loss.total


def _mask_classification(weights: MaskClassificationWeights, about: str) -> SegmentationLoss:
    function = partial(_mask_classification_total, weights=weights)
    return SegmentationLoss("mask-classification", function, about, resample=False)


LOSSES: dict[str, SegmentationLoss] = {
    "structure": SegmentationLoss(
        "binary",
        structure_loss,
        "Cross entropy + IoU in which pixels near a boundary weigh up to 6 times as much (PraNet).",
    ),
    "structure-official": SegmentationLoss(
        "binary",
        structure_loss_official,
        "The same as the public code computes it: the IoU alone is weighted.",
    ),
    "balanced-bce": SegmentationLoss(
        "binary",
        balanced_bce_loss,
        "Cross entropy in which foreground and background of the images in memory at once weigh the same; 0 "
        "where these hold one of the two only.",
    ),
    "focal-dice": SegmentationLoss(
        "binary", binary_focal_dice_loss, "20 times the focal loss (gamma 2) + Dice, as SAM was trained."
    ),
    "bce-dice": SegmentationLoss("binary", bce_dice_loss, "Cross entropy + Dice."),
    "ce-dice": SegmentationLoss(
        "per-class", cross_entropy_dice_loss, "Cross entropy + Dice, the mean over the classes."
    ),
    "mask-classification": _mask_classification(
        MaskClassificationWeights(),
        "Masks matched to the classes of an image; class, mask and Dice parts weigh 10, 5 and 5.",
    ),
    "mask-classification-official": _mask_classification(
        MaskClassificationWeights.official(),
        "The same with 1, 1 and 1, as the official code trains.",
    ),
}


def get_loss(name: str, head: HeadKind | None = None) -> SegmentationLoss:
    """Look up a loss.

    Args:
        name: key of `LOSSES`.
        head: kind of head that it must fit; None takes any.

    Raises:
        ConfigError: there is no such loss, or it is for another head.
    """
    fitting = [key for key, loss in LOSSES.items() if head in (None, loss.head)]
    if name in fitting:
        return LOSSES[name]
    if name in LOSSES:
        raise ConfigError(
            f"loss is '{name}', which is for head '{LOSSES[name].head}', but the head is '{head}'. "
            f"For this head use one of: {', '.join(fitting)}."
        )
    hint = near_hint(name, fitting)
    raise ConfigError(f"loss is '{name}', which does not exist.{hint} Valid are: {', '.join(fitting)}.")
