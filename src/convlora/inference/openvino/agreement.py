"""Whether a converted model computes what PyTorch does, on one image.

Compared are the logits, by the root mean square of their difference over that of the reference, and the
share of pixels with another class. The reference is PyTorch in float32. The bounds:

- float32: a thousandth of both. Orders of summation differ, by 1e-6 in what was measured; a wrong
  operation differs by far more.
- bfloat16: four times the error of PyTorch's own bfloat16 on the same image, and at least two hundredths of
  the logits and of the pixels. Rounding that comes out otherwise is no mistake: OpenVINO keeps the residual
  stream in bfloat16 too, where PyTorch's autocast has it in float32, and an expert of Conv-LoRA whose gate is
  near a tie may be another one, in either of them, for the window it is near a tie in.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from convlora.errors import DisagreementError
from convlora.head import HeadOutput, SegmentationHead

_FLOAT32, _FLOOR, _TIMES = 1e-3, 2e-2, 4.0


@dataclass(frozen=True)
class Difference:
    """Of two outputs.

    Attributes:
        logits: root mean square of the difference over that of the reference; infinite where not finite.
        pixels: share of the pixels, at the output's resolution, with another class.
    """

    logits: float
    pixels: float

    def to_dict(self) -> dict[str, float]:
        """Plain types, for JSON."""
        return dataclasses.asdict(self)


def difference(head: SegmentationHead, output: HeadOutput, reference: HeadOutput) -> Difference:
    """Compare an output with a reference."""
    pairs = [(output.mask_logits, reference.mask_logits)]
    if output.class_logits is not None and reference.class_logits is not None:
        pairs.append((output.class_logits, reference.class_logits))
    ids = [head.probabilities(head.scores(one)).argmax(dim=1) for one in (output, reference)]
    return Difference(
        max(_relative(a.double(), b.double()) for a, b in pairs), (ids[0] != ids[1]).double().mean().item()
    )


def _relative(a: Tensor, b: Tensor) -> float:
    error = ((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def check_agreement(found: Difference, torch_half: Difference | None) -> None:
    """Raise a DisagreementError where a converted model is too far from PyTorch's float32.

    Args:
        found: of the converted model.
        torch_half: of PyTorch's own bfloat16, if the converted model computes in that; else None.
    """
    if torch_half is None:
        allowed = Difference(_FLOAT32, _FLOAT32)
    else:
        allowed = Difference(max(_FLOOR, _TIMES * torch_half.logits), max(_FLOOR, _TIMES * torch_half.pixels))
    if found.logits <= allowed.logits and found.pixels <= allowed.pixels:
        return
    precision = "fp32" if torch_half is None else "bf16"
    raise DisagreementError(
        f"The model converted for OpenVINO ({precision}) does not compute what PyTorch does on this image: "
        f"its logits differ by {found.logits:.2g} of their size (at most {allowed.logits:.2g} may be "
        f"rounding), and {100 * found.pixels:.2g} % of the pixels have another class (at most "
        f"{100 * allowed.pixels:.2g} %). Use engine torch"
        + (", or precision fp32." if torch_half is not None else ".")
    )


def torch_output(model: torch.nn.Module, pixels: Tensor, dtype: torch.dtype | None) -> HeadOutput:
    """Output of PyTorch on the CPU, under autocast to `dtype` if there is one."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        output: HeadOutput = model(pixels)
    return output
