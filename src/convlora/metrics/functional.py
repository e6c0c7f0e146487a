"""Overlap scores from a confusion matrix.

A class that occurs neither in the truth nor in the prediction has no score: NaN, left out of every mean. So
an image without foreground on which none is predicted counts neither for nor against a model (as in nnU-Net);
one false pixel on it gives a Dice of 0.
"""

import torch
from torch import Tensor

IGNORE = 255


def confusion_matrix(
    predicted: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORE
) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        predicted: (H, W) integer ids in [0, num_classes).
        target: (H, W) integer ids in [0, num_classes), or `ignore_index`.
        num_classes: K.
        ignore_index: target pixels that are not counted.

    Returns:
        (K, K) int64; rows are the truth, columns the prediction.
    """
    labelled = target != ignore_index
    pairs = target[labelled].long() * num_classes + predicted[labelled].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(matrix: Tensor) -> Tensor:
    """Intersection over union (K,) float64 of a confusion matrix (K, K)."""
    hits, true, predicted = _marginals(matrix)
    return hits / (true + predicted - hits)


def dice_per_class(matrix: Tensor) -> Tensor:
    """Dice = F1 (K,) float64 of a confusion matrix (K, K)."""
    hits, true, predicted = _marginals(matrix)
    return 2 * hits / (true + predicted)


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Share of the labelled pixels whose class is right, scalar float64; NaN if none is labelled."""
    hits, true, _ = _marginals(matrix)
    return hits.sum() / true.sum()


def _marginals(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = matrix.double()
    return counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
