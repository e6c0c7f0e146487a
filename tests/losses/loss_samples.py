"""Inputs for losses of every head, and their values with gradients."""

import torch

from convlora.losses import LOSSES

CLASSES = 4
QUERIES = 6
SIZE = (12, 14)


def labels(head, batch=2, size=SIZE, ignored=True):
    """Random labels that all classes occur in; a block of the first image and some pixels are ignored."""
    target = torch.randint(0, 2 if head == "binary" else CLASSES, (batch, *size))
    if ignored:
        target[torch.rand(target.shape) < 0.1] = 255
        target[0, :4, :5] = 255
    return target


def logits(head, batch=2, size=SIZE, scale=3.0):
    """Random mask logits, and class logits for mask classification."""
    channels = {"binary": 1, "per-class": CLASSES, "mask-classification": QUERIES}[head]
    masks = scale * torch.randn(batch, channels, *size)
    return masks, (torch.randn(batch, QUERIES, CLASSES + 1) if head == "mask-classification" else None)


def value_and_gradients(loss, masks, classes, target, seed=0):
    """Loss and gradients of the logits that there are; the same random points for the same seed."""
    inputs = [x.detach().clone().requires_grad_() for x in (masks, classes) if x is not None]
    torch.manual_seed(seed)
    value = loss(inputs[0], inputs[1] if classes is not None else None, target)
    return value.detach(), *torch.autograd.grad(value, inputs)


def names(*heads):
    """Losses of the given heads, or all."""
    return [name for name, loss in LOSSES.items() if not heads or loss.head in heads]
