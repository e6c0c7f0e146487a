"""Loss of a batch: the head's loss on masks of the input's size, and the method's own losses."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from convlora.head import HeadKind, HeadOutput
from convlora.losses import get_loss
from convlora.model import Segmenter

#: What 'default' and 'official' (the paper's code) mean for each head.
_NAMED: dict[str, dict[HeadKind, str]] = {
    "default": {"binary": "structure", "per-class": "ce-dice", "mask-classification": "mask-classification"},
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
    resolved = _NAMED.get(name, {}).get(head, name)
    get_loss(resolved, head)
    return resolved


def make_objective(segmenter: Segmenter, loss: str) -> Callable[[HeadOutput, Tensor], Tensor]:
    """Build the function (output, target (B, S, S) int64 with 255 ignored) -> scalar loss."""
    head = segmenter.head.kind
    chosen = get_loss(resolve_loss(loss, head), head)

    def objective(output: HeadOutput, target: Tensor) -> Tensor:
        masks = output.mask_logits.float()
        if chosen.resample:
            size = (target.shape[-2], target.shape[-1])
            masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        total = chosen(masks, output.class_logits, target)
        auxiliary = segmenter.auxiliary_loss()
        return total if auxiliary is None else total + auxiliary

    return objective
