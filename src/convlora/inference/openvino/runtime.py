"""OpenVINO itself: imported without its usage reports, and what this processor computes in."""

import functools
import sys
from types import ModuleType
from typing import Any

import torch

from convlora.errors import ConfigError, MissingExtraError

_TELEMETRY = "openvino_telemetry"


def openvino() -> ModuleType:
    """Import the package. Its own usage reports, which the import would send, are left out.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # "not there": OpenVINO takes its stub
        import openvino as package
    except ImportError as error:
        raise MissingExtraError("--engine openvino", "openvino", "openvino") from error
    return package


def version() -> str:
    """Version of OpenVINO, with its build."""
    return str(openvino().__version__)


def processor() -> str:
    """Name of the processor, as OpenVINO gives it."""
    return str(_core().get_property("CPU", "FULL_DEVICE_NAME")).strip()


def check_precision(dtype: torch.dtype | None) -> None:
    """Check that OpenVINO computes in `dtype` here; None is float32.

    Raises:
        ConfigError: it does not; OpenVINO itself would take another precision without a word.
        MissingExtraError: it is not installed.
    """
    openvino()
    if dtype == torch.float16:
        raise ConfigError(
            "precision is fp16, but OpenVINO computes in fp16 on few processors and in fp32 on the others "
            "without saying so. Use precision auto, bf16 or fp32, or engine torch."
        )
    if dtype == torch.bfloat16 and "BF16" not in _capabilities():
        raise ConfigError(
            "precision is bf16, but OpenVINO finds no bf16 arithmetic in this processor. "
            "Use precision auto or fp32."
        )


def compile_model(file: str, dtype: torch.dtype | None) -> Any:  # noqa: ANN401  # openvino.CompiledModel
    """Compile an IR file for this processor, for one image at a time, with as many threads as PyTorch has."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if dtype is None else "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return _core().compile_model(file, "CPU", settings)


def _capabilities() -> list[str]:
    return list(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _core() -> Any:  # noqa: ANN401  # openvino.Core
    return _only_core(openvino())


@functools.cache
def _only_core(package: ModuleType) -> Any:  # noqa: ANN401  # openvino.Core
    """One for the life of the process.

    OpenVINO puts the signal stack of the thread that first compiles into memory of its own. Where the last
    object of it is dropped in another thread, that memory goes and the stack stays: the next signal, Ctrl-C
    or the end of a child process, would end the process without a word.
    """
    return package.Core()
