"""Scores from a confusion matrix: IoU, Dice and accuracy, of a data set or as a mean over images.

Two ways to average, which can differ by many points:

- *Data-set level*: sum the confusion matrices of all images, then score. Every pixel counts the same, so
  large objects dominate.
- *Image level*: score each image, then average. Every image counts the same.

One rule for empty classes: a class that is in neither truth nor prediction has no score (0 / 0). It is NaN
and is left out of every mean, over classes and over images (the rule of nnU-Net). A class that is in only one
of the two scores 0.
"""

import torch
from torch import Tensor

from convlora.errors import DataError

IGNORE_INDEX = 255
"""Label of pixels that no metric looks at."""


def confusion_matrix(
    pred: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Count the pixels of each pair of true and predicted class.

    Args:
        pred: (H, W) integer, class ids 0 to `num_classes` - 1.
        target: (H, W) integer, class ids or `ignore_index`; what is predicted on ignored pixels is not read.
        num_classes: K.
        ignore_index: label of pixels that do not count.

    Returns:
        (K, K) int64, rows are the truth, columns the prediction; it sums to the number of labelled pixels.

    Raises:
        DataError: the maps are not (H, W) of one size, hold no integers, or hold an unknown class.
    """
    check_maps(pred, target)
    labelled = target != ignore_index
    truth = _class_ids(target[labelled], num_classes, f"true mask (apart from {ignore_index}, ignored)")
    predicted = _class_ids(pred[labelled], num_classes, "prediction")
    counts = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def iou_per_class(matrix: Tensor) -> Tensor:
    """IoU (Jaccard index) TP / (TP + FP + FN) of each class.

    Args:
        matrix: (..., K, K) counts, rows are the truth.

    Returns:
        (..., K) float64 in [0, 1]; NaN for a class in neither truth nor prediction.
    """
    hit, true, predicted = _totals(matrix)
    return hit / (true + predicted - hit)


def dice_per_class(matrix: Tensor) -> Tensor:
    """Dice coefficient (F1) 2 TP / (2 TP + FP + FN) of each class.

    Args:
        matrix: (..., K, K) counts, rows are the truth.

    Returns:
        (..., K) float64 in [0, 1]; NaN for a class in neither truth nor prediction.
    """
    hit, true, predicted = _totals(matrix)
    return 2 * hit / (true + predicted)


def precision_per_class(matrix: Tensor) -> Tensor:
    """Precision TP / (TP + FP) of each class.

    Args:
        matrix: (..., K, K) counts, rows are the truth.

    Returns:
        (..., K) float64 in [0, 1]; NaN for a class that is never predicted.
    """
    hit, _, predicted = _totals(matrix)
    return hit / predicted


def recall_per_class(matrix: Tensor) -> Tensor:
    """Recall (sensitivity) TP / (TP + FN) of each class.

    Args:
        matrix: (..., K, K) counts, rows are the truth.

    Returns:
        (..., K) float64 in [0, 1]; NaN for a class that is never in the truth.
    """
    hit, true, _ = _totals(matrix)
    return hit / true


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Share of labelled pixels whose class is right.

    Args:
        matrix: (..., K, K) counts, rows are the truth.

    Returns:
        (...) float64 in [0, 1]; NaN where no pixel is labelled.
    """
    hit, true, _ = _totals(matrix)
    return hit.sum(dim=-1) / true.sum(dim=-1)


def check_maps(pred: Tensor, target: Tensor) -> None:
    """Require two maps (H, W) of one size.

    Raises:
        DataError: they are not.
    """
    if pred.ndim != 2 or pred.shape != target.shape or pred.numel() == 0:
        raise DataError(
            "Metrics need a prediction and a truth (H, W) of one size, one image at a time, got "
            f"{tuple(pred.shape)} and {tuple(target.shape)}. Resample the prediction to the truth's size."
        )


def _totals(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of each class: right, in the truth, in the prediction; each (..., K) float64."""
    counts = matrix.double()
    return counts.diagonal(dim1=-2, dim2=-1), counts.sum(dim=-1), counts.sum(dim=-2)


def _class_ids(values: Tensor, num_classes: int, where: str) -> Tensor:
    """As int64, or DataError if a value is no class."""
    if values.is_floating_point() or values.is_complex():
        raise DataError(
            f"Metrics need class ids, got {values.dtype} in the {where}. Take the argmax over the classes."
        )
    ids = values.long()
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"The {where} holds the class {low if low < 0 else high}; "
                f"classes are 0 to {num_classes - 1}. Correct it, or the list of classes."
            )
    return ids
