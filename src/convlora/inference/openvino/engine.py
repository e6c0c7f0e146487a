"""The engine: converts or finds the model, compares it with PyTorch once, runs it."""

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from convlora.errors import ConfigError, DisagreementError
from convlora.frozen import hold_frozen_in
from convlora.head import HeadOutput
from convlora.inference.openvino.agreement import check_agreement, difference, torch_output
from convlora.inference.openvino.conversion import Logits, convert
from convlora.inference.openvino.runtime import compile_model, processor, version
from convlora.inference.openvino.store import Converted, converted, fingerprint
from convlora.model import SegmentationModel


class OpenVinoEngine:
    """Runs a model with OpenVINO on the CPU.

    The model is converted for the size of the first image, and again for another size; the conversions are
    kept on the disk (`store`). On the first image of a conversion, precision and processor the output is
    compared with PyTorch's (`agreement`), which is recorded.

    Args:
        model: in evaluation mode, on the CPU; its weights must not change any more.
        dtype: bfloat16, or None for float32.
        tell: is told what is worth knowing; by default it goes to standard error.

    Raises:
        ConfigError: PyTorch has rounded the model's weights to half precision for its own use.
    """

    name: ClassVar[str] = "openvino"

    def __init__(
        self, model: SegmentationModel, dtype: torch.dtype | None, tell: Callable[[str], None] | None = None
    ) -> None:
        hold_frozen_in(model, None)  # a conversion is of whole weights; OpenVINO rounds them itself
        self.model, self.dtype = model, dtype
        self._tell = tell or _to_standard_error
        self._compiled: dict[tuple[int, int], tuple[Converted, Any]] = {}
        self._refused: DisagreementError | None = None

    def run(self, pixels: Tensor) -> HeadOutput:
        """Predict; images one by one, as the conversion is for one.

        Args:
            pixels: (B, 3, H, W) float32, normalised, on the CPU; H and W as the model accepts them.

        Raises:
            DisagreementError: the output is not PyTorch's; for all images from then on.
            ConfigError: OpenVINO cannot convert or compile the model.
            WriteError: the conversion cannot be kept.
        """
        if self._refused is not None:
            raise self._refused
        size = (pixels.shape[-2], pixels.shape[-1])
        if size not in self._compiled:
            self._compiled[size] = self._load(size)
        stored, compiled = self._compiled[size]
        outputs = [_infer(compiled, image) for image in pixels.split(1)]
        self._check(stored, pixels[:1], outputs[0])
        return _joined(outputs)

    def _load(self, size: tuple[int, int]) -> tuple[Converted, Any]:
        key = fingerprint(self.model, size)
        try:
            stored = converted(key, lambda file: convert(Logits(self.model), size, file), self._tell)
            return stored, compile_model(str(stored.model), self.dtype)
        except RuntimeError as error:  # what OpenVINO raises, with a trace of its own source in the text
            reason = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(
                f"OpenVINO {version()} cannot run this model: {reason}. Use engine torch, or the version of "
                "OpenVINO in constraints.txt."
            ) from error

    def _check(self, stored: Converted, pixels: Tensor, output: HeadOutput) -> None:
        how = f"{'fp32' if self.dtype is None else 'bf16'} on {processor()}"
        if stored.was_checked(how):
            return
        head, reference = self.model.head, torch_output(self.model, pixels, None)
        found, half = difference(head, output, reference), None
        if self.dtype is not None:
            half = difference(head, torch_output(self.model, pixels, self.dtype), reference)
        try:
            check_agreement(found, half)
        except DisagreementError as error:
            self._refused = error
            raise
        stored.record_check(how, found.to_dict())


def _infer(compiled: Any, image: Tensor) -> HeadOutput:  # noqa: ANN401  # openvino.CompiledModel
    values = compiled([image.contiguous().numpy()])
    parts = [torch.from_numpy(values[i].copy()) for i in range(len(values))]
    return HeadOutput(parts[0], parts[1] if len(parts) > 1 else None)


def _joined(outputs: list[HeadOutput]) -> HeadOutput:
    of_classes = [one.class_logits for one in outputs if one.class_logits is not None]
    return HeadOutput(
        torch.cat([one.mask_logits for one in outputs]), torch.cat(of_classes) if of_classes else None
    )


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)
