"""Linear probe: how much of the classes a linear layer finds in the encoder's features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convlora.data.masks import IGNORE
from convlora.errors import DataError, MissingExtraError

#: Features (N, C) float32 of the positions of an image, and their labels (N,) uint8.
Labelled = tuple[np.ndarray, np.ndarray]

_POSITIONS = 256  # of one training image


@dataclass(frozen=True)
class Probe:
    """Scores of a linear probe on positions of the feature map.

    Attributes:
        accuracy: share of the labelled positions.
        mean_iou: over the classes that the labels hold.
        iou: class id -> IoU.
    """

    accuracy: float
    mean_iou: float
    iou: dict[int, float]


def check_probe() -> None:
    """Check that scikit-learn is there.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("convlora analyze", "analyze", "scikit-learn") from error


def linear_probe(train: Sequence[Labelled], test: Sequence[Labelled], seed: int = 0) -> Probe:
    """Fit logistic regression on standardised features, and score it.

    Args:
        train: images; label 255 is left out. At most 256 positions of each are used, drawn by the seed.
        test: likewise; all positions are scored.
        seed: of the draw.

    Raises:
        DataError: the training positions hold fewer than two classes, or no position to score has a label.
    """
    rng = np.random.default_rng(seed)
    chosen = [_draw(features, labels, rng) for features, labels in train]
    features, labels = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    if len(np.unique(labels)) < 2:
        raise DataError(
            "The positions of the training images hold fewer than two classes, so there is nothing to probe. "
            "Use more images (--images)."
        )
    model = _fit(features, labels)
    counts = np.zeros((256, 256), np.int64)
    for own, truth in test:
        known = truth != IGNORE
        if known.any():
            np.add.at(counts, (truth[known], model.predict(own[known])), 1)
    if not counts.any():
        raise DataError(
            "All positions of the images that the probe is scored on are ignored (255), so there is nothing "
            "to score. Use more images (--images), or another --split."
        )
    return _score(counts)


def _draw(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Labelled:
    known = np.flatnonzero(labels != IGNORE)
    taken = rng.permutation(known)[:_POSITIONS]
    return features[taken], labels[taken]


def _fit(features: np.ndarray, labels: np.ndarray) -> Any:  # noqa: ANN401  # scikit-learn has no types
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return model.fit(features, labels)


def _score(counts: np.ndarray) -> Probe:
    """Scores of a confusion matrix, truth in rows."""
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = {int(c): float(hits[c] / union[c]) for c in np.flatnonzero(counts.sum(1))}
    return Probe(float(hits.sum() / counts.sum()), float(np.mean(list(iou.values()))), iou)
