"""What computes the model's output: PyTorch, or OpenVINO on CPUs."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from convlora.errors import ConfigError
from convlora.frozen import hold_frozen_in
from convlora.head import HeadOutput
from convlora.inference.device import autocast_dtype, choose_device, slowness
from convlora.model import SegmentationModel
from convlora.settings import near_hint

ENGINES = ("torch", "openvino")


class Engine(Protocol):
    """Runs one model.

    Attributes:
        name: one of `ENGINES`.
    """

    name: ClassVar[str]

    def run(self, pixels: Tensor) -> HeadOutput:
        """Predict: (B, 3, H, W) float32, normalised, on the engine's device."""
        ...


def _type_of(device: str | torch.device | None) -> str | None:
    """Type of a device that need not be here.

    Raises:
        ConfigError: the name is none.
    """
    try:
        return None if device is None else torch.device(device).type
    except (RuntimeError, TypeError):
        return choose_device(device).type


class TorchEngine:
    """Runs a model with PyTorch, under autocast.

    Args:
        model: in evaluation mode, on the device that its input will be on; its frozen weights are rounded to
            `dtype` for good (`hold_frozen_in`).
        dtype: for autocast; None is float32.

    Raises:
        ConfigError: the model was used in another precision before.
    """

    name: ClassVar[str] = "torch"

    def __init__(self, model: SegmentationModel, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        hold_frozen_in(model, dtype)

    def run(self, pixels: Tensor) -> HeadOutput:
        """Predict; see `Engine.run`."""
        with torch.autocast(pixels.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            output: HeadOutput = self.model(pixels)
        return output


@dataclass(frozen=True)
class Computing:
    """What computes, where, and in which precision; checked."""

    engine: str
    device: torch.device
    dtype: torch.dtype | None

    @property
    def warning(self) -> str | None:
        """What is to be said before it starts, or None."""
        return slowness(self.dtype, self.device) if self.engine == "torch" else None

    def build(self, model: SegmentationModel) -> Engine:
        """Make the engine of a model that is on the device, in evaluation mode."""
        if self.engine == "torch":
            return TorchEngine(model, self.dtype)
        from convlora.inference.openvino.engine import OpenVinoEngine

        return OpenVinoEngine(model, self.dtype)


def choose_computing(
    engine: str = "torch", device: str | torch.device | None = None, precision: str = "auto"
) -> Computing:
    """Check what was asked for, before a model is loaded.

    Args:
        engine: torch or openvino.
        device: see `choose_device`; openvino computes on the CPU only.
        precision: see `autocast_dtype`; openvino knows no fp16.

    Raises:
        ConfigError: a name is none of these, or what it names is not to be had here or not together.
        MissingExtraError: OpenVINO is not installed.
    """
    if engine not in ENGINES:
        hint = near_hint(str(engine).lower(), ENGINES)
        raise ConfigError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}.{hint}")
    if engine == "torch":
        where = choose_device(device)
        return Computing(engine, where, autocast_dtype(precision, where))
    if _type_of(device) not in {None, "cpu"}:
        raise ConfigError(
            f"engine is 'openvino', which computes on the CPU here, but device is '{device}'. "
            "Leave the device out, or use engine torch."
        )
    dtype = autocast_dtype(precision, torch.device("cpu"))
    from convlora.inference.openvino.runtime import check_precision

    check_precision(dtype)
    return Computing(engine, torch.device("cpu"), dtype)
