"""All scores of a model on a data set, fed one image at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from convlora.errors import ConfigError, DataError
from convlora.metrics.functional import (
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
)
from convlora.metrics.saliency import saliency_measures

SALIENCY_KEYS = ("s_measure", "e_measure", "weighted_f", "mae", "ber")
"""Scores that only binary segmentation has."""

LOWER_IS_BETTER = frozenset({"mae", "ber"})
"""Scores where less is better; for all others more is."""


class _Parts(NamedTuple):
    """Views into the flat state; L image-level scores: IoU and Dice of K classes, accuracy, saliency."""

    n_images: Tensor  # (1,)
    confusion: Tensor  # (K, K)
    sums: Tensor  # (L,) over the images where the score is defined
    counts: Tensor  # (L,) number of these images


class SegmentationMetrics:
    """Accumulates scores over images, at native resolution; memory does not grow with their number.

    Everything it knows is one flat vector of sums, so the states of several processes add:

        state = metrics.state_tensor()
        torch.distributed.all_reduce(state)
        metrics.load_state_tensor(state)

    Definitions and the rule for empty classes: `convlora.metrics.functional`, `convlora.metrics.saliency`.

    Args:
        class_names: name of each class id.
        foreground: ids that count as foreground, e.g. [1] in binary, all but background in multi-class.
        binary: also compute the saliency measures of class 1; it needs two classes and foreground [1].

    Raises:
        ConfigError: names repeat, a foreground id is no class or repeats, or `binary` does not fit.
    """

    def __init__(self, class_names: Sequence[str], foreground: Sequence[int], binary: bool) -> None:
        self.class_names = tuple(class_names)
        self.foreground = tuple(foreground)
        self.binary = binary
        self._check()
        classes = len(self.class_names)
        self._image_scores = 2 * classes + 1 + (len(SALIENCY_KEYS) if binary else 0)
        # float64 counts exactly up to 2^53 pixels
        self._state = torch.zeros(1 + classes**2 + 2 * self._image_scores, dtype=torch.float64)

    @property
    def n_images(self) -> int:
        """Number of images seen, also those without a labelled pixel."""
        return int(self._parts().n_images)

    def update(
        self, pred_ids: Tensor, target_ids: Tensor, foreground_probability: Tensor | None = None
    ) -> dict[str, float]:
        """Add one image.

        Args:
            pred_ids: (H, W) integer, class ids.
            target_ids: (H, W) integer, class ids; 255 is ignored.
            foreground_probability: (H, W) floating point in [0, 1], of class 1; given if and only if binary.

        Returns:
            The image's own scores, by the names that `compute` has for a data set.

        Raises:
            DataError: sizes, labels or probabilities are not valid; the state is then as before.
        """
        if (foreground_probability is None) == self.binary:
            raise DataError(
                "Binary metrics need a foreground probability map, got none. Pass the probability of class 1."
                if self.binary
                else "Metrics of several classes take no foreground probability map, got one. Leave it out."
            )
        matrix = confusion_matrix(pred_ids, target_ids, len(self.class_names)).cpu()
        scores = [iou_per_class(matrix), dice_per_class(matrix), pixel_accuracy(matrix)[None]]
        measures: dict[str, float] = {}
        if foreground_probability is not None:
            measures = saliency_measures(foreground_probability, target_ids)
            scores.append(torch.tensor([measures[key] for key in SALIENCY_KEYS], dtype=torch.float64))
        values = torch.cat(scores)
        parts = self._parts()
        parts.n_images.add_(1)
        parts.confusion.add_(matrix)
        parts.sums.add_(values.nan_to_num(nan=0.0))
        parts.counts.add_(~values.isnan())
        return {**self._of_matrix(matrix), **measures}

    def compute(self) -> dict[str, float]:
        """Scores so far, flat.

        Returns:
            `mean_dice_foreground`, `mean_iou` (all classes), `mean_iou_foreground`, `pixel_accuracy`,
            `dice/<class>` and `iou/<class>` at data-set level; the same with the prefix `image_` as means
            over images (a mean over classes is taken last); `precision/<class>` and `recall/<class>` at
            data-set level; in binary also `s_measure`, `e_measure`,
            `weighted_f`, `mae`, `ber` as means over images; `n_images`. All but `n_images` are fractions,
            not percent. NaN marks a score that is not defined, such as that of a class that never occurs.
        """
        parts, classes = self._parts(), len(self.class_names)
        matrix, image_means = parts.confusion, parts.sums / parts.counts
        image_iou, image_dice, accuracy, saliency = image_means.split(
            [classes, classes, 1, self._image_scores - 2 * classes - 1]
        )
        return {
            **self._of_matrix(matrix),
            **self._named("image_", image_iou, image_dice, accuracy),
            **(dict(zip(SALIENCY_KEYS, saliency.tolist(), strict=True)) if self.binary else {}),
            "n_images": self.n_images,
        }

    def state_tensor(self) -> Tensor:
        """Copy of all that was accumulated: flat, float64, on the CPU; states of the same classes add."""
        return self._state.clone()

    def load_state_tensor(self, state: Tensor) -> None:
        """Replace what was accumulated by a state, or a sum of states.

        Raises:
            ConfigError: its size is that of other classes, or it is not float64 (float32 miscounts pixels).
        """
        if state.shape != self._state.shape or state.dtype != torch.float64:
            raise ConfigError(
                f"The state has shape {tuple(state.shape)} and {state.dtype}; these classes need "
                f"{tuple(self._state.shape)} and torch.float64. Use the same classes in every process."
            )
        self._state.copy_(state)

    def merge(self, other: "SegmentationMetrics") -> None:
        """Add what another accumulator of the same classes has seen.

        Raises:
            ConfigError: its classes differ.
        """
        mine, theirs = ((m.class_names, m.foreground, m.binary) for m in (self, other))
        if mine != theirs:
            raise ConfigError(f"Metrics merge only with the same classes, got {theirs} for {mine}.")
        self._state.add_(other._state)

    def _parts(self) -> _Parts:
        classes = len(self.class_names)
        images, confusion, sums, counts = self._state.split(
            [1, classes**2, self._image_scores, self._image_scores]
        )
        return _Parts(images, confusion.view(classes, classes), sums, counts)

    def _of_matrix(self, matrix: Tensor) -> dict[str, float]:
        shares = {"precision": precision_per_class(matrix), "recall": recall_per_class(matrix)}
        named = {
            f"{kind}/{name}": value
            for kind, values in shares.items()
            for name, value in zip(self.class_names, values.tolist(), strict=True)
        }
        scores = self._named("", iou_per_class(matrix), dice_per_class(matrix), pixel_accuracy(matrix))
        return {**scores, **named}

    def _named(self, prefix: str, iou: Tensor, dice: Tensor, accuracy: Tensor) -> dict[str, float]:
        chosen = list(self.foreground)
        scores = {
            f"{prefix}mean_dice_foreground": float(dice[chosen].nanmean()),
            f"{prefix}mean_iou": float(iou.nanmean()),
            f"{prefix}mean_iou_foreground": float(iou[chosen].nanmean()),
            f"{prefix}pixel_accuracy": float(accuracy),
        }
        for kind, values in (("dice", dice), ("iou", iou)):
            for name, value in zip(self.class_names, values.tolist(), strict=True):
                scores[f"{prefix}{kind}/{name}"] = value
        return scores

    def _check(self) -> None:
        names, ids = self.class_names, self.foreground
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"Classes need names, each once, got {list(names)}. Rename the repeated ones.")
        if not ids or len(set(ids)) != len(ids) or not set(ids) <= set(range(len(names))):
            raise ConfigError(
                f"Foreground is one or more of the ids 0 to {len(names) - 1}, each once, got {list(ids)}."
            )
        if self.binary and (len(names), ids) != (2, (1,)):
            raise ConfigError(
                f"Binary metrics need two classes and foreground [1], got {len(names)} classes and "
                f"foreground {list(ids)}. Pass binary=False."
            )
