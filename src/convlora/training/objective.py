"""Loss of a batch: the head's loss on masks of the input's size, and the method's own losses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.config import RunConfig
from convlora.head import HeadKind, HeadOutput
from convlora.losses import get_loss
from convlora.model import SegmentationModel, default_head

#: What 'default' and 'official' (the paper's code) mean for each head.
NAMED_LOSSES: dict[str, dict[HeadKind, str]] = {
    "default": {"binary": "bce-dice", "per-class": "ce-dice", "mask-classification": "mask-classification"},
    "official": {
        "binary": "structure-official",
        "per-class": "ce-dice",
        "mask-classification": "mask-classification-official",
    },
}


def resolve_loss(name: str, head: HeadKind) -> str:
    """Name of the loss for a head, checked.

    Raises:
        ConfigError: it is unknown, or belongs to another head.
    """
    resolved = NAMED_LOSSES.get(name, {}).get(head, name)
    get_loss(resolved, head)
    return resolved


def choose_head(config: RunConfig, classes: Sequence[str]) -> HeadKind:
    """Head of a run: binary for two classes, else the one asked for.

    Raises:
        ConfigError: the run's loss is unknown, or belongs to another head.
    """
    head = default_head(len(classes))
    head = head if head == "binary" else config.multiclass_head
    resolve_loss(config.loss, head)
    return head


Objective = Callable[[HeadOutput, Tensor, Sequence[int]], Tensor]


def make_objective(segmenter: SegmentationModel, loss: str) -> Objective:
    """Build the function (output, target (B, S, S) int64 with 255 ignored, keys of the images) -> scalar.

    The loss is that of each image, averaged over the images, as the official setting of one image a device
    has it. Many losses are no sum over images (Dice over a batch, means over labelled pixels); so computed,
    they do not depend on how a batch is cut into processes and micro-batches. The random points of mask
    classification are drawn by the image's key, to the same end.
    """
    head = segmenter.head.kind
    chosen = get_loss(resolve_loss(loss, head), head)

    def objective(output: HeadOutput, target: Tensor, keys: Sequence[int]) -> Tensor:
        masks = output.mask_logits.float()
        if chosen.resample:
            size = (target.shape[-2], target.shape[-1])
            masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        losses = []
        for i, key in enumerate(keys):
            classes = None if output.class_logits is None else output.class_logits[i : i + 1]
            generator = torch.Generator(masks.device).manual_seed(key)
            losses.append(chosen(masks[i : i + 1], classes, target[i : i + 1], generator))
        total = torch.stack(losses).mean()
        auxiliary = segmenter.auxiliary_loss()
        return total if auxiliary is None else total + auxiliary

    return objective
