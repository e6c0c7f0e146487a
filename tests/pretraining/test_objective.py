"""The pretraining loss, against the formulas written out."""

import torch
from torch.nn import functional as F

from convlora.pretraining.objective import mask_iou, mask_losses, pretraining_loss


def _example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 5, 6, generator=generator, requires_grad=True)
    target = (torch.rand(3, 5, 6, generator=generator) > 0.6).float()
    return logits, target


def test_mask_losses_one_by_one():
    logits, target = _example()
    for balance in (0.0, 0.3, 1.0):
        got = mask_losses(logits, target, balance)
        for n in range(3):
            share = target[n].mean().clamp(0.02, 0.98)
            for m in range(4):
                p, y = logits[n, m].sigmoid(), target[n]
                entropy = F.binary_cross_entropy(p, y, reduction="none")
                weight = torch.where(y > 0, 0.5 / share, 0.5 / (1 - share))
                focal = ((p - y) ** 2 * entropy).mean()
                dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
                slow = balance * (weight * entropy).mean() + (1 - balance) * 10 * focal + dice
                # fp32: sums of 30 values
                torch.testing.assert_close(got[n, m], slow, rtol=1e-5, atol=1e-6)


def test_perfect_masks_cost_nothing():
    target = _example()[1]
    logits = (target * 2 - 1)[:, None].expand(-1, 4, -1, -1) * 50
    assert mask_losses(logits, target, 1.0).max() < 1e-3
    assert torch.equal(mask_iou(logits, target), torch.ones(3, 4))
    assert mask_losses(-logits, target, 0.0).min() > 1


def test_only_the_best_of_the_ambiguous_masks_is_trained():
    logits, target = _example()
    losses = mask_losses(logits, target, 1.0)
    iou = torch.zeros(3, 4, requires_grad=True)
    pretraining_loss(logits, iou, target, 1.0).backward()
    best = losses[:, 1:].argmin(dim=1) + 1
    for n in range(3):
        trained = {m for m in range(4) if logits.grad[n, m].abs().sum() > 0}
        assert trained == {0, int(best[n])}
    want = 2 * (0 - mask_iou(logits, target)) / 12
    torch.testing.assert_close(iou.grad, want)


def test_extreme_logits_have_finite_gradients():
    target = torch.zeros(1, 4, 4)
    logits = torch.tensor([1e4, -1e4]).repeat(8).reshape(1, 1, 4, 4).requires_grad_()
    mask_losses(logits, target, 0.5).sum().backward()
    assert logits.grad.isfinite().all()
