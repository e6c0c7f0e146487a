"""Scores of a foreground probability map, as camouflage and polyp papers (and Conv-LoRA's) report them.

All take a prediction (H, W) float64 in [0, 1] and a truth (H, W) bool, and agree with PySODMetrics.
"""

import numpy as np
from scipy import ndimage

_EPS = np.spacing(1)
_SIDE = np.arange(-3, 4)
_GAUSSIAN = np.exp(-(_SIDE[:, None] ** 2 + _SIDE[None] ** 2) / (2 * 5**2))
_GAUSSIAN /= _GAUSSIAN.sum()


def prepare(probability: np.ndarray, normalize: bool = True) -> np.ndarray:
    """Quantise a probability map to 8 bits and stretch it to [0, 1].

    The field's tools read predictions as 8-bit pictures and stretch each between its least and greatest
    value; so a map that is nearly empty is judged by its faint maximum. The official Conv-LoRA code does the
    same.

    Args:
        probability: (H, W) float in [0, 1].
        normalize: stretch; a constant map is left as it is.
    """
    grey = np.round(np.asarray(probability, dtype=np.float64) * 255) / 255
    low, high = grey.min(), grey.max()
    return (grey - low) / (high - low) if normalize and high > low else grey


def mean_absolute_error(predicted: np.ndarray, truth: np.ndarray) -> float:
    """MAE: mean of |prediction - truth|; 0 is perfect."""
    return float(np.abs(predicted - truth).mean())


def balanced_error_rate(predicted: np.ndarray, truth: np.ndarray) -> float:
    """BER = 1 - mean of the true positive and true negative rates; 0 is perfect (papers print it times 100).

    Args:
        predicted: (H, W) bool, thresholded.
        truth: (H, W) bool. A class that it lacks is left out of the mean.
    """
    rates = [(predicted[truth]).mean()] if truth.any() else []
    rates += [(~predicted[~truth]).mean()] if not truth.all() else []
    return float(1 - np.mean(rates))


def s_measure(predicted: np.ndarray, truth: np.ndarray, alpha: float = 0.5) -> float:
    """Structure measure (Fan et al., ICCV 2017); 1 is perfect.

    An empty truth gives 1 - mean(prediction), a full one mean(prediction).
    """
    share = truth.mean()
    if share in {0.0, 1.0}:
        return float(predicted.mean() if share else 1 - predicted.mean())
    of_object = share * _object_score(predicted[truth]) + (1 - share) * _object_score(1 - predicted[~truth])
    return float(max(0.0, alpha * of_object + (1 - alpha) * _region_score(predicted, truth)))


def e_measure(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018), mean over the 256 thresholds; 1 is perfect."""
    levels = (predicted * 255).astype(np.uint8)
    # at threshold t (descending): pixels predicted foreground, split by the truth
    hits = np.cumsum(np.bincount(levels[truth], minlength=256)[::-1])
    false = np.cumsum(np.bincount(levels[~truth], minlength=256)[::-1])
    size, positives = truth.size, int(truth.sum())
    if positives == 0:
        total = size - hits - false
    elif positives == size:
        total = hits + false
    else:
        total = _alignment(hits, false, size, positives)
    return float(np.mean(total / (size - 1 + _EPS)))


def weighted_f(predicted: np.ndarray, truth: np.ndarray, beta_squared: float = 1.0) -> float:
    """Weighted F-measure (Margolin et al., CVPR 2014); 1 is perfect, 0 where the truth is empty.

    Args:
        predicted: see the module.
        truth: see the module.
        beta_squared: weight of recall; 1 as in PySODMetrics and Matlab. The official Conv-LoRA code has 0.3.
    """
    if not truth.any():
        return 0.0
    distance, nearest = ndimage.distance_transform_edt(~truth, return_indices=True)
    error = np.abs(predicted - truth)
    # background pixels take the error of the nearest foreground pixel, then errors are smoothed
    spread = np.where(truth, error, error[nearest[0], nearest[1]])
    smoothed = ndimage.convolve(spread, _GAUSSIAN, mode="constant")
    importance = np.where(truth, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    weighted = np.where(truth & (smoothed < error), smoothed, error) * importance
    hits = truth.sum() - weighted[truth].sum()
    recall = 1 - weighted[truth].mean()
    precision = hits / (hits + weighted[~truth].sum() + _EPS)
    bottom = recall + beta_squared * precision + _EPS
    return float((1 + beta_squared) * recall * precision / bottom)


def _object_score(values: np.ndarray) -> float:
    mean = values.mean()
    deviation = values.std(ddof=1) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + _EPS)


def _region_score(predicted: np.ndarray, truth: np.ndarray) -> float:
    """SSIM of the four quarters around the centroid of the truth, weighted by their areas."""
    height, width = truth.shape
    row, column = (round(float(c)) + 1 for c in np.argwhere(truth).mean(axis=0))
    total = 0.0
    for rows in (slice(0, row), slice(row, height)):
        for columns in (slice(0, column), slice(column, width)):
            part = truth[rows, columns]
            if part.size:
                total += part.size / truth.size * _similarity(predicted[rows, columns], part)
    return total


def _similarity(predicted: np.ndarray, truth: np.ndarray) -> float:
    x, y = predicted.mean(), truth.mean()
    freedom = predicted.size - 1 + _EPS
    spread = (((predicted - x) ** 2).sum() + ((truth - y) ** 2).sum()) / freedom
    joint = ((predicted - x) * (truth - y)).sum() / freedom
    top, bottom = 4 * x * y * joint, (x**2 + y**2) * spread
    if top != 0:
        return float(top / (bottom + _EPS))
    return 1.0 if bottom == 0 else 0.0


def _alignment(hits: np.ndarray, false: np.ndarray, size: int, positives: int) -> np.ndarray:
    """Sum of the enhanced alignment matrix at each threshold; it has one value for each kind of pixel."""
    predicted = hits + false
    mean_predicted, mean_truth = predicted / size, positives / size
    kinds = (
        (hits, 1 - mean_predicted, 1 - mean_truth),
        (false, 1 - mean_predicted, -mean_truth),
        (positives - hits, -mean_predicted, 1 - mean_truth),
        (size - positives - false, -mean_predicted, -mean_truth),
    )
    total = np.zeros(256)
    for count, a, b in kinds:
        aligned = 2 * a * b / (a**2 + b**2 + _EPS)
        total += count * (aligned + 1) ** 2 / 4
    return total
