"""Segmentation losses: pure functions of logits and labels, and the table that names them.

Every loss takes labels int64 (B, H, W) in which 255 is ignored anywhere, computes in float32 under any
autocast, and returns a scalar of which 0 is perfect.
"""

from convlora.head import HeadKind
from convlora.losses.common import IGNORE_INDEX
from convlora.losses.mask_classification import (
    MaskClassificationCosts,
    MaskClassificationLoss,
    MaskClassificationWeights,
    mask_classification_loss,
)
from convlora.losses.region import (
    balanced_bce_loss,
    bce_dice_loss,
    bce_loss,
    binary_focal_dice_loss,
    cross_entropy_dice_loss,
    cross_entropy_loss,
    dice_loss,
    focal_dice_loss,
    focal_loss,
)
from convlora.losses.registry import LOSSES, SegmentationLoss, get_loss
from convlora.losses.structure import structure_loss, structure_loss_official

__all__ = [
    "IGNORE_INDEX",
    "LOSSES",
    "HeadKind",
    "MaskClassificationCosts",
    "MaskClassificationLoss",
    "MaskClassificationWeights",
    "SegmentationLoss",
    "balanced_bce_loss",
    "bce_dice_loss",
    "bce_loss",
    "binary_focal_dice_loss",
    "cross_entropy_dice_loss",
    "cross_entropy_loss",
    "dice_loss",
    "focal_dice_loss",
    "focal_loss",
    "get_loss",
    "mask_classification_loss",
    "structure_loss",
    "structure_loss_official",
]
