"""Scores of a whole data set from one image after another, in constant memory."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convlora.metrics import saliency
from convlora.metrics.functional import (
    IGNORE,
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    pixel_accuracy,
)

_EXTRAS = ("s_measure", "e_measure", "weighted_f", "mae", "ber")


class SegmentationMetrics:
    """Accumulates images; every part of the state is a sum, so states of several processes add up.

    Two kinds of scores: over the data set (pixels of all images together), and, with the prefix `image_`, the
    mean over images of each image's score. What happens to classes that do not occur: `metrics.functional`.

    Args:
        classes: names, id 0 first.
        foreground: ids that count for the `_foreground` means.
        binary: also compute S-measure, E-measure, weighted F, MAE and BER of the foreground probability.
    """

    def __init__(self, classes: Sequence[str], foreground: Sequence[int], binary: bool) -> None:
        self.classes, self.foreground, self.binary = tuple(classes), list(foreground), binary
        K = len(self.classes)
        self.matrix = torch.zeros(K, K, dtype=torch.float64)
        self.image_sums = torch.zeros(2, K, dtype=torch.float64)  # Dice, IoU
        self.image_counts = torch.zeros(K, dtype=torch.float64)  # images in which the class has a score
        self.extras = torch.zeros(len(_EXTRAS), dtype=torch.float64)
        self.images = torch.zeros(2, dtype=torch.float64)  # all, and those with a labelled pixel

    @property
    def n_images(self) -> int:
        """Images seen."""
        return int(self.images[0])

    def update(self, predicted: Tensor, target: Tensor, foreground: Tensor | None = None) -> None:
        """Add one image at its native size.

        Args:
            predicted: (H, W) integer class ids.
            target: (H, W) integer class ids, 255 is ignored.
            foreground: (H, W) float probability in [0, 1]; needed where `binary`.

        Raises:
            ValueError: sizes differ, or `foreground` is missing.
        """
        if predicted.shape != target.shape:
            raise ValueError(f"prediction {tuple(predicted.shape)} and target {tuple(target.shape)} differ")
        matrix = confusion_matrix(predicted, target, len(self.classes)).double()
        dice, iou = dice_per_class(matrix), iou_per_class(matrix)
        self.matrix += matrix
        self.image_sums += torch.stack([dice, iou]).nan_to_num(0.0)
        self.image_counts += ~dice.isnan()
        labelled = bool(matrix.sum() > 0)
        self.images += torch.tensor([1.0, float(labelled)], dtype=torch.float64)
        if self.binary and labelled:
            if foreground is None:
                raise ValueError("binary metrics need the foreground probability")
            self.extras += torch.tensor(_binary_extras(foreground, target), dtype=torch.float64)

    def compute(self) -> dict[str, float]:
        """Flat scores; NaN where there is nothing to score."""
        per_image = self.image_sums / self.image_counts
        scores = _summarise("", dice_per_class(self.matrix), iou_per_class(self.matrix), self)
        scores["pixel_accuracy"] = float(pixel_accuracy(self.matrix))
        scores |= _summarise("image_", per_image[0], per_image[1], self)
        if self.binary:
            means = self.extras / self.images[1]
            scores |= dict(zip(_EXTRAS, means.tolist(), strict=True))
        return {**scores, "n_images": self.n_images}

    def state_tensor(self) -> Tensor:
        """All state as one float64 vector; the sum over processes is the state of all their images."""
        return torch.cat([part.flatten() for part in self._parts()])

    def load_state_tensor(self, state: Tensor) -> None:
        """Replace the state by one of the same length from `state_tensor`."""
        parts = self._parts()
        for part, values in zip(parts, state.double().split([p.numel() for p in parts]), strict=True):
            part.copy_(values.view_as(part))

    def _parts(self) -> list[Tensor]:
        return [self.matrix, self.image_sums, self.image_counts, self.extras, self.images]


def _summarise(prefix: str, dice: Tensor, iou: Tensor, metrics: SegmentationMetrics) -> dict[str, float]:
    scores = {
        f"{prefix}mean_dice_foreground": float(dice[metrics.foreground].nanmean()),
        f"{prefix}mean_iou": float(iou.nanmean()),
        f"{prefix}mean_iou_foreground": float(iou[metrics.foreground].nanmean()),
    }
    for i, name in enumerate(metrics.classes):
        scores[f"{prefix}dice/{name}"], scores[f"{prefix}iou/{name}"] = float(dice[i]), float(iou[i])
    return scores


def _binary_extras(foreground: Tensor, target: Tensor) -> list[float]:
    """Scores of one image in the order of `_EXTRAS`.

    Ignored pixels are dropped for MAE and BER; the others look at neighbourhoods, so there ignored pixels
    become background in both prediction and truth.
    """
    labelled = (target != IGNORE).cpu().numpy()
    truth = (target == 1).cpu().numpy()
    probability = np.where(labelled, foreground.double().cpu().numpy(), 0.0)
    predicted = saliency.prepare(probability)
    return [
        saliency.s_measure(predicted, truth),
        saliency.e_measure(predicted, truth),
        saliency.weighted_f(predicted, truth),
        saliency.mean_absolute_error(predicted[labelled], truth[labelled]),
        saliency.balanced_error_rate(probability[labelled] > 0.5, truth[labelled]),
    ]
