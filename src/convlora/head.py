"""From mask tokens to a class map: binary, one token per class, or the paper's mask classification."""

import copy
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from convlora.backbone.mask_decoder import MaskDecoder
from convlora.errors import ConfigError

HeadKind = Literal["binary", "per-class", "mask-classification"]


_TOKEN_NOISE: dict[HeadKind, float] = {"per-class": 0.01, "mask-classification": 3.0}
"""Deviation of the mask tokens around SAM's at the start, in units of the deviation of its numbers."""


class HeadOutput(NamedTuple):
    """Raw output of the model, at the decoder's resolution (four times the embedding's)."""

    mask_logits: Tensor  # (B, T, h, w), one mask for each of T tokens
    class_logits: Tensor | None  # (B, T, K + 1), the last is 'no object'; only for mask classification


class SegmentationHead(nn.Module):
    """Meaning of the mask tokens, and the classification branch where there is one.

    - `binary`: one token; its mask logit is the logit of the foreground.
    - `per-class`: one token and one hypernetwork for each class; the logits go through a softmax.
    - `mask-classification` (Conv-LoRA, as in the official code): T tokens that share one
      hypernetwork, and a linear branch from each token to K + 1 classes. The map of a class is the sum over
      tokens of softmax(class)[..K] * sigmoid(mask).

    Every token and hypernetwork starts as a copy of SAM's single-mask token. Differs from the official code
    in that the copies get noise: identical tokens stay identical until the matching tells them apart. With
    one token a class 1 % of the token's spread is enough. In mask classification the noise has three times
    the spread: with 1 % all masks are alike, every step matches them anew, and after 200 steps nothing is
    learnt (docs/log.md).

    Args:
        kind: see above.
        num_classes: K, background included.
        num_masks: T for mask classification; at least K, since each class needs a mask of its own.
        dim: width of the decoder.
    """

    def __init__(self, kind: HeadKind, num_classes: int, num_masks: int, dim: int) -> None:
        super().__init__()
        _check(kind, num_classes, num_masks)
        self.kind: HeadKind = kind
        self.num_classes = num_classes
        self.num_tokens = {"binary": 1, "per-class": num_classes, "mask-classification": num_masks}[kind]
        self.classifier = nn.Linear(dim, num_classes + 1) if kind == "mask-classification" else None

    def equip(self, decoder: MaskDecoder) -> None:
        """Give the decoder this head's mask tokens and hypernetworks, copied from SAM's single-mask token."""
        token = decoder.mask_tokens.weight.detach()[:1]
        tokens = token.repeat(self.num_tokens, 1)
        if self.num_tokens > 1:
            tokens = tokens + _TOKEN_NOISE[self.kind] * token.std() * torch.randn_like(tokens)
        decoder.mask_tokens = nn.Embedding.from_pretrained(tokens, freeze=False)
        network = decoder.output_hypernetworks_mlps[0]
        shared = self.kind == "mask-classification"
        copies = [copy.deepcopy(network) for _ in range(1 if shared else self.num_tokens)]
        decoder.output_hypernetworks_mlps = nn.ModuleList(copies)

    def forward(self, mask_tokens: Tensor, mask_logits: Tensor) -> HeadOutput:
        """Add class logits where the head has them.

        Args:
            mask_tokens: (B, T, dim).
            mask_logits: (B, T, h, w).
        """
        class_logits = self.classifier(mask_tokens) if self.classifier is not None else None
        return HeadOutput(mask_logits, class_logits)

    def scores(self, output: HeadOutput) -> Tensor:
        """Scores that may be resampled: logits (B, 1, h, w) or (B, K, h, w), or summed masks (B, K, h, w)."""
        if output.class_logits is None:
            return output.mask_logits
        share = output.class_logits.float().softmax(dim=-1)[..., :-1]
        return torch.einsum("btk,bthw->bkhw", share, output.mask_logits.float().sigmoid())

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores (B, C, H, W) at any resolution to class probabilities (B, K, H, W) that sum to one."""
        scores = scores.float()
        if self.kind == "binary":
            foreground = scores.sigmoid()
            return torch.cat([1 - foreground, foreground], dim=1)
        if self.kind == "per-class":
            return scores.softmax(dim=1)
        return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)


def class_ids(probabilities: Tensor) -> Tensor:
    """Class of the greatest probability, the first of equals: (K, H, W) to (H, W) uint8.

    What argmax gives, which on a CPU takes tens of times as long over a dimension that is not the last.
    """
    ids = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
    greatest = probabilities[0].clone()
    for k, values in enumerate(probabilities[1:], start=1):
        ids.masked_fill_(values > greatest, k)
        torch.maximum(greatest, values, out=greatest)
    return ids


def _check(kind: str, num_classes: int, num_masks: int) -> None:
    if kind not in get_args(HeadKind):
        raise ConfigError(f"head is '{kind}'; it must be one of {', '.join(get_args(HeadKind))}.")
    if kind == "binary" and num_classes != 2:
        raise ConfigError(
            f"head is 'binary' but there are {num_classes} classes; it needs background and foreground. "
            "Use head 'per-class' or 'mask-classification'."
        )
    if num_classes < 2:
        raise ConfigError(f"There are {num_classes} classes; at least two are needed (background counts).")
    if kind == "mask-classification" and num_masks < num_classes:
        raise ConfigError(
            f"num_masks is {num_masks} but there are {num_classes} classes; each class needs a mask. "
            f"Set num_masks to {num_classes} or more."
        )
