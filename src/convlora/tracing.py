"""Whether what runs is also being recorded: code that depends on values, or works in place, must not be."""

import torch


def being_traced() -> bool:
    """Whether `torch.jit.trace` records the operations, as for OpenVINO."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not in __all__


def being_recorded() -> bool:
    """Whether `torch.jit.trace`, `torch.compile` or `torch.export` do."""
    return being_traced() or torch.compiler.is_compiling()
