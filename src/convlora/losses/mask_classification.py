"""Mask classification: queries matched to the classes of an image (Cheng et al., Mask2Former, CVPR 2022)."""

from dataclasses import astuple, dataclass
from typing import NamedTuple, Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from convlora.errors import ConfigError, DataError
from convlora.losses.common import IGNORE_INDEX, check_labels, full_precision
from convlora.losses.points import PointSampling, label_shares, labelled, sample_logits, uncertain_points


@dataclass(frozen=True)
class MaskClassificationWeights:
    """Weights of the parts in the total, and of the class 'no object' in the class part; zero or more."""

    class_: float = 10.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1

    def __post_init__(self) -> None:
        _check_weights(self)

    @classmethod
    def official(cls) -> Self:
        """What the official code trains with: it configures 10 : 5 : 5 but never applies it, so 1 : 1 : 1."""
        return cls(class_=1.0, mask=1.0, dice=1.0)


@dataclass(frozen=True)
class MaskClassificationCosts:
    """Weights of the parts in the cost of a match; they decide who is matched, not the loss. Zero or more."""

    class_: float = 2.0
    mask: float = 5.0
    dice: float = 5.0

    def __post_init__(self) -> None:
        _check_weights(self)


def _check_weights(weights: MaskClassificationWeights | MaskClassificationCosts) -> None:
    parts = (weights.class_, weights.mask, weights.dice)
    if min(astuple(weights)) < 0 or max(parts) == 0:
        raise ConfigError(
            f"{weights} is not valid; each value must be zero or more, and one part above zero."
        )


class MaskClassificationLoss(NamedTuple):
    """Scalars; `total` is the weighted sum of the unweighted parts."""

    total: Tensor
    class_: Tensor
    mask: Tensor
    dice: Tensor


class Matches(NamedTuple):
    """M matched pairs, sorted by image and query; each (M,) int64."""

    image: Tensor
    query: Tensor
    label: Tensor


DEFAULT_WEIGHTS = MaskClassificationWeights()
DEFAULT_COSTS = MaskClassificationCosts()


@full_precision
def mask_classification_loss(
    mask_logits: Tensor,
    class_logits: Tensor,
    target: Tensor,
    *,
    weights: MaskClassificationWeights = DEFAULT_WEIGHTS,
    costs: MaskClassificationCosts = DEFAULT_COSTS,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    generator: torch.Generator | None = None,
) -> MaskClassificationLoss:
    """Match each class of an image to one query, then class cross entropy + mask cross entropy + Dice.

    The class part runs over all queries; those without a match learn 'no object'. The mask parts run over
    sampled points of the matched masks and are divided by their number in this batch (of this process: unlike
    Mask2Former no average over processes). Labels need not have the resolution of the masks.

    Differs from the official Conv-LoRA code, which calls the Mask2Former loss of transformers: the weights
    are applied; and label 255 is neither a class nor part of any point, where theirs fails on it. A point is
    left out if any of the labels that it interpolates is 255. An image of nothing but 255 has no part in any
    of the losses: it does not say that there is no object.

    Args:
        mask_logits: (B, Q, h, w).
        class_logits: (B, Q, K + 1), the last is 'no object'.
        target: (B, H, W) of 0 to K - 1, and 255.
        weights: of the parts.
        costs: of the matching.
        num_points: points that a mask is compared at.
        oversample_ratio: candidates for each point; see `convlora.losses.points.uncertain_points`.
        importance_ratio: share of the points that go where the mask is uncertain.
        generator: of the random points, on the device of the logits; else the global one.

    Raises:
        ConfigError: an image has more classes than there are queries, or an option is out of range.
        DataError: shapes do not fit each other or a label is not valid.
    """
    sampling = PointSampling(num_points, oversample_ratio, importance_ratio, generator)
    sampling.check()
    _check_shapes(mask_logits, class_logits, target)
    target = target.long()
    present = _present_classes(target, class_logits.shape[2] - 1, num_queries=mask_logits.shape[1])
    matches = _match(mask_logits, class_logits, target, present, costs, sampling)
    class_ = _class_loss(class_logits, matches, present.any(dim=1), weights.no_object)
    mask, dice = _mask_losses(mask_logits, target, matches, sampling)
    total = weights.class_ * class_ + weights.mask * mask + weights.dice * dice
    return MaskClassificationLoss(total, class_, mask, dice)


# --- matching ---


@torch.no_grad()
def _match(
    mask_logits: Tensor,
    class_logits: Tensor,
    target: Tensor,
    present: Tensor,
    costs: MaskClassificationCosts,
    sampling: PointSampling,
) -> Matches:
    """Give each class that is `present` (B, K) in an image a query, at least total cost (Hungarian)."""
    mask_cost, dice_cost = pairwise_costs(mask_logits, target, present.shape[1], sampling)
    class_cost = -class_logits.softmax(dim=-1)[..., :-1]
    cost = costs.class_ * class_cost + costs.mask * mask_cost + costs.dice * dice_cost
    worst = torch.finfo(cost.dtype).max  # a diverged query is matched last instead of ending the run
    cost = cost.nan_to_num(nan=worst, posinf=worst, neginf=worst).cpu()
    found: list[tuple[int, int, int]] = []
    for image, classes in enumerate(present):
        labels = classes.nonzero().flatten()
        queries, columns = linear_sum_assignment(cost[image][:, labels].numpy())
        found += [(image, query, int(labels[column])) for query, column in zip(queries, columns, strict=True)]
    table = torch.tensor(found, dtype=torch.int64, device=target.device).reshape(-1, 3)
    return Matches(*table.unbind(dim=1))


def pairwise_costs(
    mask_logits: Tensor, target: Tensor, num_classes: int, sampling: PointSampling
) -> tuple[Tensor, Tensor]:
    """Cross entropy and Dice loss of every query against every class, each (B, Q, K), at uniform points."""
    images = torch.arange(len(target), device=target.device)
    points = sampling.uniform(len(target), sampling.num_points, target.device)
    valid = labelled(target, images, points)[:, None]  # (B, 1, P)
    logits = sample_logits(mask_logits, points).masked_fill(~valid, 0)
    ids = torch.arange(num_classes, device=target.device)[None]
    truth = label_shares(target, images, points, ids).to(logits) * valid
    share = valid.to(logits) / valid.sum(dim=2, keepdim=True).clamp(min=1)
    # bce(x, y) = softplus(x) - x y: one product for all pairs instead of two
    background = (F.softplus(logits) * share).sum(dim=2, keepdim=True)
    mask_cost = background - (logits * share) @ truth.mT
    probability = logits.sigmoid() * valid
    total = probability.sum(dim=2, keepdim=True) + truth.sum(dim=2)[:, None]
    return mask_cost, 1 - (2 * probability @ truth.mT + 1) / (total + 1)


def _present_classes(target: Tensor, num_classes: int, num_queries: int) -> Tensor:
    """Which classes occur in which image, (B, K) bool on the CPU.

    Raises:
        ConfigError: an image has more classes than queries.
        DataError: a label is not valid.
    """
    check_labels(target, num_classes)
    table = torch.zeros(len(target), IGNORE_INDEX + 1, dtype=torch.bool, device=target.device)
    present = table.scatter_(1, target.flatten(1), True)[:, :num_classes].cpu()
    most = int(present.sum(dim=1).max()) if len(present) else 0
    if most > num_queries:
        raise ConfigError(
            f"num_masks is {num_queries} but an image has {most} classes; each class needs a mask token of "
            f"its own. Set num_masks to {num_classes} or more."
        )
    return present


# --- parts of the loss ---


def _class_loss(class_logits: Tensor, matches: Matches, known: Tensor, no_object: float) -> Tensor:
    """Cross entropy over the queries of `known` (B,) images, weighted mean; a class weighs 1."""
    num_classes = class_logits.shape[2] - 1
    labels = torch.full(class_logits.shape[:2], num_classes, device=class_logits.device)
    labels[matches.image, matches.query] = matches.label
    weights = class_logits.new_ones(num_classes + 1)
    weights[-1] = no_object
    known = known.to(class_logits.device)
    logits, labels = class_logits[known].flatten(0, 1), labels[known].flatten()
    total = F.cross_entropy(logits, labels, weights, reduction="sum")
    weight = weights[labels].sum()
    return total / torch.where(weight > 0, weight, 1)  # nothing known, or no match and no_object 0: 0 / 1


def _mask_losses(
    mask_logits: Tensor, target: Tensor, matches: Matches, sampling: PointSampling
) -> tuple[Tensor, Tensor]:
    """Cross entropy and Dice loss of the matched masks at sampled points; zero if there are none."""
    masks = mask_logits[matches.image, matches.query]
    points = uncertain_points(masks, target, matches.image, sampling)
    valid = labelled(target, matches.image, points)
    truth = label_shares(target, matches.image, points, matches.label[:, None])[:, 0].to(masks) * valid
    logits = sample_logits(masks[:, None], points)[:, 0].masked_fill(~valid, 0)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    mask = bce.sum(dim=1) / valid.sum(dim=1).clamp(min=1)
    probability = logits.sigmoid() * valid
    overlap = (probability * truth).sum(dim=1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=1) + truth.sum(dim=1) + 1)
    count = max(len(masks), 1)
    return mask.sum() / count, dice.sum() / count


# --- checks ---


def _check_shapes(mask_logits: Tensor, class_logits: Tensor, target: Tensor) -> None:
    fits = mask_logits.ndim == 4 and class_logits.ndim == 3 and target.ndim == 3
    if not fits or mask_logits.shape[:2] != class_logits.shape[:2] or len(mask_logits) != len(target):
        raise DataError(
            "Mask classification needs mask logits (B, Q, h, w), class logits (B, Q, K + 1) and labels "
            f"(B, H, W); got {tuple(mask_logits.shape)}, {tuple(class_logits.shape)}, {tuple(target.shape)}."
        )
