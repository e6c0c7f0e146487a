"""Measures of one foreground map against a binary mask: S-measure, E-measure, weighted F, MAE, BER.

These are what the Conv-LoRA paper reports on its binary data beside IoU and Dice. Values agree with
PySODMetrics 1.6 to 1e-10 for the same float64 map; the exceptions are named in the docstrings below.
A float32 map can fall to the next of the 256 levels of the E-measure where a value sits exactly on one.

Each function scores one image; a data set is the mean over images. All are in [0, 1] (the paper prints
percent), but the E-measure, whose denominator of H W - 1 lets a perfect map pass 1 by 1 / (H W - 1).
An image without a labelled pixel is NaN.

The official code of Conv-LoRA scores maps and masks stretched to 1024 x 1024; we score at the native size.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, distance_transform_edt
from torch import Tensor

from convlora.errors import DataError
from convlora.metrics.functional import IGNORE_INDEX, check_maps

_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 1e-6  # how far a probability may leave [0, 1]: a float32 softmax or resampling does

_Map = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SaliencyPair:
    """A foreground map and its truth, ready for the measures; each (H, W).

    Attributes:
        probability: float64 in [0, 1], as given.
        prediction: float64 in [0, 1], stretched to the full range, 0 where ignored.
        truth: bool, False where ignored.
        labelled: bool, False where ignored.
    """

    probability: _Map
    prediction: _Map
    truth: _Mask
    labelled: _Mask

    @classmethod
    def of(cls, probability: Tensor, target: Tensor, *, normalize: bool = True) -> "SaliencyPair":
        """Check and prepare one image.

        Ignored pixels become background in both maps for S-measure, E-measure and weighted F, which need a
        whole rectangle; MAE and BER drop them.

        Args:
            probability: (H, W) floating point in [0, 1], the foreground's.
            target: (H, W) of 0, 1 and 255.
            normalize: stretch the map of each image linearly so that its labelled pixels span 0 to 1, as
                PySODMetrics, most papers of the field and the official code of Conv-LoRA do; a constant map
                stays. It affects all measures but BER. Beware: an image without foreground whose map is a
                uniform 0.01 plus noise is then scored as if the noise were a confident prediction.

        Raises:
            DataError: shapes differ, a probability is NaN or outside [0, 1], or a label is none of 0, 1, 255.
        """
        check_maps(probability, target)
        given: _Map = probability.detach().cpu().double().numpy()
        labels: NDArray[Any] = target.detach().cpu().numpy()
        _check_values(given, labels)
        values = given.clip(0, 1)
        labelled: _Mask = labels != IGNORE_INDEX
        stretched = _stretch(values, labelled) if normalize else values
        return cls(values, np.where(labelled, stretched, 0.0), labels == 1, labelled)


def saliency_measures(
    probability: Tensor, target: Tensor, *, normalize: bool = True, beta_squared: float = 1.0
) -> dict[str, float]:
    """All five measures of one image: s_measure, e_measure, weighted_f, mae, ber.

    Args:
        probability: (H, W) floating point in [0, 1], the foreground's.
        target: (H, W) of 0, 1 and 255.
        normalize: see `SaliencyPair.of`.
        beta_squared: see `weighted_f_measure`.

    Raises:
        DataError: see `SaliencyPair.of`.
    """
    pair = SaliencyPair.of(probability, target, normalize=normalize)
    return {
        "s_measure": s_measure(pair),
        "e_measure": e_measure(pair),
        "weighted_f": weighted_f_measure(pair, beta_squared),
        "mae": mean_absolute_error(pair),
        "ber": balanced_error_rate(pair),
    }


def s_measure(pair: SaliencyPair, alpha: float = 0.5) -> float:
    """Structure measure, alpha * object + (1 - alpha) * region (Fan et al., ICCV 2017).

    Empty truth: 1 - mean(p). Full truth: mean(p). If the centre of the foreground rounds to the last row or
    column, two or three of the four regions are empty and weigh zero; PySODMetrics returns NaN there.
    """
    if not pair.labelled.any():
        return math.nan
    share = float(pair.truth.mean())
    if share in (0.0, 1.0):
        mean = float(pair.prediction.mean())
        return mean if share else 1 - mean
    foreground = _object_score(pair.prediction[pair.truth])
    background = _object_score(1 - pair.prediction[~pair.truth])
    objects = share * foreground + (1 - share) * background
    return max(0.0, alpha * objects + (1 - alpha) * _region_score(pair.prediction, pair.truth))


def e_measure(pair: SaliencyPair) -> float:
    """Enhanced-alignment measure, mean of the curve over 256 thresholds (Fan et al., IJCAI 2018).

    The map is cut at p >= t / 255 after rounding down to 256 levels. With phi the binary map minus its mean,
    the alignment of prediction and truth is a = 2 phi_p phi_g / (phi_p^2 + phi_g^2), and the value is the sum
    of (a + 1)^2 / 4 over pixels divided by H W - 1. Both maps are binary, so a takes four values only, and
    cumulative histograms give how many pixels have each at every threshold.

    Empty truth: the share of predicted background. Full truth: the share of predicted foreground.
    """
    if not pair.labelled.any():
        return math.nan
    levels = (pair.prediction * 255).astype(np.uint8)
    true_positive, false_positive = (_at_or_above(levels[part]) for part in (pair.truth, ~pair.truth))
    pixels, positive = levels.size, int(pair.truth.sum())
    predicted = true_positive + false_positive
    total: NDArray[Any]
    if positive == 0:
        total = pixels - predicted
    elif positive == pixels:
        total = predicted
    else:
        share, true_share = predicted / pixels, positive / pixels
        false_negative = positive - true_positive
        total = (
            true_positive * _alignment(1 - share, 1 - true_share)
            + false_positive * _alignment(1 - share, -true_share)
            + false_negative * _alignment(-share, 1 - true_share)
            + (pixels - predicted - false_negative) * _alignment(-share, -true_share)
        )
    return float(total.mean()) / max(pixels - 1, 1)


def weighted_f_measure(pair: SaliencyPair, beta_squared: float = 1.0) -> float:
    """Weighted F-measure (Margolin et al., CVPR 2014).

    An error on the foreground is softened by the errors around it (Gaussian, 7 x 7, sigma 5); one on the
    background weighs up to twice with its distance d from the foreground, 2 - 0.5^(d / 5).

    Empty truth: 0, whatever the prediction, as in PySODMetrics.

    Args:
        pair: the image.
        beta_squared: weight of recall against precision. 1 is the value of the authors' code and of
            PySODMetrics; the official code of Conv-LoRA passes 0.3, so its numbers are not comparable.
    """
    if not pair.labelled.any():
        return math.nan
    if not pair.truth.any():
        return 0.0
    foreground, background = pair.truth, ~pair.truth
    error = np.abs(pair.prediction - foreground)
    distance, (rows, columns) = distance_transform_edt(background, return_indices=True)
    # background takes the error of the nearest foreground pixel, so that edges of objects are not blurred
    smooth = _gaussian_7x7(error[rows, columns])
    missed = np.minimum(error, smooth)[foreground]
    false_positive = float((error[background] * (2 - 0.5 ** (distance[background] / 5))).sum())
    true_positive = missed.size - float(missed.sum())
    recall = 1 - float(missed.mean())
    precision = true_positive / (true_positive + false_positive + _EPS)
    return (1 + beta_squared) * recall * precision / (recall + beta_squared * precision + _EPS)


def mean_absolute_error(pair: SaliencyPair) -> float:
    """Mean of |p - g| over labelled pixels; lower is better."""
    if not pair.labelled.any():
        return math.nan
    return float(np.abs(pair.prediction - pair.truth)[pair.labelled].mean())


def balanced_error_rate(pair: SaliencyPair, threshold: float = 0.5) -> float:
    """1 - mean of true positive rate and true negative rate over labelled pixels; lower is better.

    Foreground is where the probability as given is above `threshold`. A truth of one class only has one rate;
    the other is left out. The mean over images is what the paper reports on SBU, times 100; the official code
    cuts at 125 / 255.
    """
    positive = pair.probability > threshold
    rates = [
        float((positive[mask] == truth).mean())
        for truth, mask in ((True, pair.truth), (False, pair.labelled & ~pair.truth))
        if mask.any()
    ]
    return 1 - sum(rates) / len(rates) if rates else math.nan


def _check_values(values: _Map, labels: NDArray[Any]) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # written so that NaN fails too
        raise DataError(
            f"A foreground probability is in [0, 1], got values from {low:g} to {high:g}. Apply the sigmoid "
            "to logits; NaN means that the model has diverged: lower the learning rate or use fp32."
        )
    unknown = labels[(labels != 0) & (labels != 1) & (labels != IGNORE_INDEX)]
    if unknown.size:
        raise DataError(
            f"A binary mask holds 0, 1 and {IGNORE_INDEX} (ignored), got the label {unknown[0]}. "
            "Correct the mask, or name its classes."
        )


def _stretch(values: _Map, labelled: _Mask) -> _Map:
    """Linear, so that labelled pixels span 0 to 1; values outside the labelled pixels are not bounded."""
    known = values if labelled.all() else values[labelled]
    if known.size == 0:
        return values
    low, high = known.min(), known.max()
    return (values - low) / (high - low) if high > low else values


def _object_score(values: _Map) -> float:
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + _EPS)


def _region_score(prediction: _Map, truth: _Mask) -> float:
    """SSIM of the four regions that meet at the centre of the foreground, weighted by their areas."""
    height, width = truth.shape
    count = truth.sum()
    # + 1: the row and column of the centre belong to the upper and left regions, as in the authors' code
    y = int(np.round(truth.sum(axis=1) @ np.arange(height) / count)) + 1
    x = int(np.round(truth.sum(axis=0) @ np.arange(width) / count)) + 1
    score = 0.0
    for rows in (slice(0, y), slice(y, height)):
        for columns in (slice(0, x), slice(x, width)):
            part = prediction[rows, columns]
            if part.size:
                score += part.size / truth.size * _ssim(part, truth[rows, columns])
    return score


def _ssim(prediction: _Map, truth: _Mask) -> float:
    """Structural similarity of a whole region; the order of operations decides between 1 and 0 when flat."""
    degrees = prediction.size - 1 + _EPS
    x, y = float(prediction.mean()), float(truth.mean())
    dx, dy = prediction - x, truth - y
    variances = float((dx**2).sum()) / degrees + float((dy**2).sum()) / degrees
    numerator = 4 * x * y * float((dx * dy).sum()) / degrees
    denominator = (x**2 + y**2) * variances
    if numerator != 0:
        return numerator / (denominator + _EPS)
    return 1.0 if denominator == 0 else 0.0


def _at_or_above(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number of values >= t for t = 255 down to 0, (256,)."""
    return np.bincount(levels, minlength=256)[::-1].cumsum()


def _alignment(phi_prediction: _Map, phi_truth: float) -> _Map:
    """Enhanced alignment (a + 1)^2 / 4 at each threshold, (256,)."""
    aligned = 2 * phi_prediction * phi_truth / (phi_prediction**2 + phi_truth**2 + _EPS)
    return (aligned + 1) ** 2 / 4


def _gaussian_7x7(values: _Map) -> _Map:
    """Gaussian of sigma 5 cut to 7 x 7 and normalised, zeros beyond the edge; separable, so two passes."""
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5.0**2))
    kernel /= kernel.sum()
    rows = correlate1d(values, kernel, axis=0, mode="constant")
    return correlate1d(rows, kernel, axis=1, mode="constant")
