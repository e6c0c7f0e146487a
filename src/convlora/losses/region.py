"""Cross entropy, focal and Dice losses, binary and for several classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.errors import ConfigError
from convlora.losses.common import (
    IGNORE_INDEX,
    BinaryPixels,
    bce_per_pixel,
    binary_pixels,
    check_labels,
    check_sizes,
    full_precision,
    mean_over,
)

SMOOTH = 1.0
"""Pixels added to numerator and denominator of Dice: 1 on an empty mask that is predicted empty."""

# --- binary ---


@full_precision
def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, mean over the labelled pixels of the batch; 0 if there are none.

    Args:
        logits: (B, 1, H, W).
        target: (B, H, W) of 0, 1 and 255.

    Raises:
        ConfigError: the logits have more than one channel.
        DataError: sizes differ or a label is not valid.
    """
    pixels = binary_pixels(logits, target)
    return mean_over(bce_per_pixel(pixels), pixels.valid)


@full_precision
def balanced_bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy in which foreground and background of the batch weigh the same (SBU shadow).

    pos / (pos + neg) times the cross entropy with pos_weight = neg / pos, counted over the labelled pixels of
    the whole batch. Computed as its equal: foreground pixels weigh neg / (pos + neg), background pixels
    pos / (pos + neg). So a batch of one class only gives zero, without a division by zero; the official code
    adds 1e-10 to pos to the same end.

    Args:
        logits: (B, 1, H, W).
        target: (B, H, W) of 0, 1 and 255.

    Raises:
        ConfigError: the logits have more than one channel.
        DataError: sizes differ or a label is not valid.
    """
    pixels = binary_pixels(logits, target)
    share = mean_over(pixels.truth, pixels.valid)  # pos / (pos + neg)
    weight = pixels.truth * (1 - share) + (1 - pixels.truth) * share
    return mean_over(weight * bce_per_pixel(pixels), pixels.valid)


@full_precision
def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), mean over the labelled pixels of the batch.

    (1 - p_t)^gamma bce, where p_t is the probability of the true class. RetinaNet divides by the number of
    foreground anchors; here every labelled pixel counts, as usual for masks.

    Args:
        logits: (B, 1, H, W).
        target: (B, H, W) of 0, 1 and 255.
        gamma: 0 gives the cross entropy; more looks less at easy pixels.
        alpha: weight of the foreground in [0, 1], the background gets 1 - alpha; None weighs both 1.

    Raises:
        ConfigError: `gamma` or `alpha` is out of range, or the logits have more than one channel.
        DataError: sizes differ or a label is not valid.
    """
    if gamma < 0 or (alpha is not None and not 0 <= alpha <= 1):
        raise ConfigError(
            f"focal loss got gamma {gamma} and alpha {alpha}; gamma is 0 or more, alpha in [0, 1] or None."
        )
    return _focal(binary_pixels(logits, target), gamma, alpha)


@full_precision
def bce_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of `bce_loss` and the binary `dice_loss`; logits (B, 1, H, W), labels (B, H, W)."""
    pixels = binary_pixels(logits, target)
    return mean_over(bce_per_pixel(pixels), pixels.valid) + _binary_dice(pixels, SMOOTH)


@full_precision
def binary_focal_dice_loss(logits: Tensor, target: Tensor, focal_weight: float = 20.0) -> Tensor:
    """`focal_dice_loss` of labels: logits (B, 1, H, W), labels (B, H, W) of 0, 1 and 255."""
    pixels = binary_pixels(logits, target)
    return focal_weight * _focal(pixels, gamma=2.0, alpha=None) + _binary_dice(pixels, SMOOTH)


@full_precision
def focal_dice_loss(logits: Tensor, target: Tensor, focal_weight: float = 20.0) -> Tensor:
    """Focal loss (gamma 2) times `focal_weight` + soft Dice, mean over masks; 0 if there are none.

    SAM trains with it at 20 : 1 (Kirillov et al., ICCV 2023, section A). Targets may be soft, such as the
    share of a cell that a mask covers: 1 - p_t is |p - y| then, as in the quality focal loss (Li et al.,
    NeurIPS 2020), which is the same for hard masks and is least at p = y.

    Args:
        logits: (N, h, w), one mask each.
        target: (N, h, w) bool, or float in [0, 1].
        focal_weight: weight of the focal part.
    """
    truth = target.to(logits)
    probability = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = (bce * (probability - truth).square()).mean(dim=(1, 2))
    dice = 1 - _soft_dice(probability, truth, dims=(1, 2), smooth=SMOOTH)
    return (focal_weight * focal + dice).sum() / max(len(logits), 1)


# --- several classes ---


@full_precision
def cross_entropy_loss(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy of a softmax, weighted mean over the labelled pixels of the batch; 0 if there are none.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) of 0 to K - 1, and 255.
        class_weights: (K,), zero or more. As in PyTorch, the sum is divided by the weights of the pixels.

    Raises:
        ConfigError: `class_weights` does not have K values.
        DataError: sizes differ or a label is not valid.
    """
    values, labels = _class_pixels(logits, target)
    return _cross_entropy(values.log_softmax(dim=1), labels, class_weights)


@full_precision
def dice_loss(logits: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """Soft Dice loss, 1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s), over the labelled pixels.

    - One channel (sigmoid): for each image, then the mean over the batch. An image without foreground counts:
      its loss falls to zero as the prediction becomes empty.
    - K channels (softmax): for each class over the pixels of the whole batch, then the mean over the classes
      that occur in its labels; so a class that is rare among images is not averaged with empty ones. False
      positives of a class that does not occur are seen through the classes that lose those pixels.

    Args:
        logits: (B, 1, H, W) or (B, K, H, W).
        target: (B, H, W) of 0 and 1, or of 0 to K - 1; and 255.
        smooth: s, in pixels; above zero.

    Raises:
        ConfigError: `smooth` is not above zero.
        DataError: sizes differ or a label is not valid.
    """
    if smooth <= 0:
        raise ConfigError(
            f"Dice got smooth {smooth}; it must be above zero, or an empty mask divides by zero."
        )
    check_sizes(logits, target)
    if logits.shape[1] == 1:
        return _binary_dice(binary_pixels(logits, target), smooth)
    values, labels = _class_pixels(logits, target)
    return _class_dice(values.softmax(dim=1), labels, smooth)


@full_precision
def cross_entropy_dice_loss(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Sum of `cross_entropy_loss` and the `dice_loss` of K classes; `class_weights` act on the former only.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) of 0 to K - 1, and 255.
        class_weights: (K,), zero or more.

    Raises:
        ConfigError: `class_weights` does not have K values.
        DataError: sizes differ or a label is not valid.
    """
    values, labels = _class_pixels(logits, target)
    log_probability = values.log_softmax(dim=1)
    entropy = _cross_entropy(log_probability, labels, class_weights)
    return entropy + _class_dice(log_probability.exp(), labels, SMOOTH)


# --- parts ---


def _focal(pixels: BinaryPixels, gamma: float, alpha: float | None) -> Tensor:
    margin = pixels.logits * (2 * pixels.truth - 1)  # logit of the true class
    # (1 - p_t)^gamma through its logarithm: finite gradients for every gamma and logit
    loss = -F.logsigmoid(margin) * torch.exp(gamma * F.logsigmoid(-margin))
    if alpha is not None:
        loss = loss * (alpha * pixels.truth + (1 - alpha) * (1 - pixels.truth))
    return mean_over(loss, pixels.valid)


def _class_pixels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Checked logits, 0 where ignored so that no value there reaches the loss, and the labels."""
    check_sizes(logits, target)
    check_labels(target, logits.shape[1])
    return logits.masked_fill((target == IGNORE_INDEX)[:, None], 0), target.long()


def _cross_entropy(log_probability: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    num_classes = log_probability.shape[1]
    weights = log_probability.new_ones(num_classes) if class_weights is None else class_weights
    if weights.shape != (num_classes,):
        raise ConfigError(
            f"class_weights has shape {tuple(weights.shape)} for {num_classes} classes. Give one each."
        )
    weights = weights.to(log_probability)
    total = F.nll_loss(log_probability, labels, weights, ignore_index=IGNORE_INDEX, reduction="sum")
    valid = labels != IGNORE_INDEX
    weight = weights[labels.masked_fill(~valid, 0)].mul(valid).sum()
    return total / torch.where(weight > 0, weight, 1)  # nothing labelled: 0 / 1


def _binary_dice(pixels: BinaryPixels, smooth: float) -> Tensor:
    probability = pixels.logits.sigmoid() * pixels.valid
    return 1 - _soft_dice(probability, pixels.truth, dims=(1, 2), smooth=smooth).mean()


def _class_dice(probability: Tensor, labels: Tensor, smooth: float) -> Tensor:
    ids = torch.arange(probability.shape[1], device=labels.device)[:, None, None]
    valid = (labels != IGNORE_INDEX)[:, None]
    truth = ((labels[:, None] == ids) & valid).to(probability)
    loss = 1 - _soft_dice(probability * valid, truth, dims=(0, 2, 3), smooth=smooth)
    return mean_over(loss, truth.amax(dim=(0, 2, 3)))


def _soft_dice(probability: Tensor, truth: Tensor, dims: tuple[int, ...], smooth: float) -> Tensor:
    overlap = (probability * truth).sum(dim=dims)
    return (2 * overlap + smooth) / (probability.sum(dim=dims) + truth.sum(dim=dims) + smooth)
