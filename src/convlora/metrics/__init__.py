"""Scores of a segmentation: pure functions for one image or matrix, and an accumulator for a data set."""

from convlora.metrics.functional import (
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
)
from convlora.metrics.saliency import (
    SaliencyPair,
    balanced_error_rate,
    e_measure,
    mean_absolute_error,
    s_measure,
    saliency_measures,
    weighted_f_measure,
)
from convlora.metrics.stateful import LOWER_IS_BETTER, SALIENCY_KEYS, SegmentationMetrics

__all__ = [
    "LOWER_IS_BETTER",
    "SALIENCY_KEYS",
    "SaliencyPair",
    "SegmentationMetrics",
    "balanced_error_rate",
    "confusion_matrix",
    "dice_per_class",
    "e_measure",
    "iou_per_class",
    "mean_absolute_error",
    "pixel_accuracy",
    "precision_per_class",
    "recall_per_class",
    "s_measure",
    "saliency_measures",
    "weighted_f_measure",
]
