"""What pretraining minimises: masks for a prompt, class-agnostic, with a predicted IoU (SAM, section 3)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_losses(logits: Tensor, target: Tensor, balance: float) -> Tensor:
    """Loss of each mask: weighted binary cross entropy + soft Dice.

    SAM's focal x 20 + Dice collapses to empty masks when it starts from random weights; so cross entropy
    starts balanced between foreground and background (`balance` 1) and is annealed to the focal form (0).

    Args:
        logits: (N, M, h, w).
        target: (N, h, w) share of each cell that the mask covers, in [0, 1].
        balance: 1 balanced cross entropy, 0 focal loss x 10 (gamma 2).

    Returns:
        (N, M).
    """
    logits, truth = logits.float(), target.float()[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    focal = (entropy * (probability - truth).square()).mean(dim=(2, 3))
    share = truth.mean(dim=(2, 3), keepdim=True).clamp(0.02, 0.98)
    weight = truth / (2 * share) + (1 - truth) / (2 * (1 - share))
    balanced = (entropy * weight).mean(dim=(2, 3))
    overlap = (probability * truth).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    return balance * balanced + (1 - balance) * 10 * focal + dice


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of thresholded masks: logits (N, M, h, w), target (N, h, w) to (N, M)."""
    predicted, truth = logits > 0, (target > 0.5)[:, None]
    overlap = (predicted & truth).sum(dim=(2, 3)).float()
    union = (predicted | truth).sum(dim=(2, 3)).float()
    return overlap / union.clamp(min=1)


def pretraining_loss(logits: Tensor, iou: Tensor, target: Tensor, balance: float) -> Tensor:
    """Total loss of a batch of prompts.

    The single mask (token 0) is always trained; of the masks for ambiguous prompts only the best one is
    (SAM, section 3, "Resolving ambiguity"). The predicted IoU is regressed on the true one.

    Args:
        logits: (N, 1 + M, h, w), the single mask first.
        iou: (N, 1 + M) predicted.
        target: (N, h, w) in [0, 1].
        balance: as in `mask_losses`.
    """
    losses = mask_losses(logits, target, balance)
    masks = losses[:, 0] + losses[:, 1:].min(dim=1).values
    with torch.no_grad():
        true_iou = mask_iou(logits, target)
    return masks.mean() + F.mse_loss(iou.float(), true_iou)
