"""Activation checkpointing, and how a layer knows that it is computed for the second time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

_state = threading.local()  # the backward pass of a GPU has a thread of its own


def run_twice(function: Callable[..., Any], *inputs: Any) -> Any:  # noqa: ANN401  # as `checkpoint` has it
    """function(*inputs), whose activations are computed again in the backward pass instead of being kept."""
    draws = not getattr(_state, "without_draws", False)
    if torch.compiler.is_compiling():  # which takes no contexts of one's own
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=draws)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=draws, context_fn=_contexts)


@contextmanager
def without_draws() -> Iterator[None]:
    """Nothing that `run_twice` is given here draws from PyTorch's own generators.

    So their states need not be put back for the second pass, which they are for the whole process: beside a
    thread that draws augmentations, it would get others.
    """
    before, _state.without_draws = getattr(_state, "without_draws", False), True
    try:
        yield
    finally:
        _state.without_draws = before


def computed_again() -> bool:
    """Whether the pass at work is the second one; what it noted for others would hold a second graph."""
    return getattr(_state, "again", False)


def _contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    return nullcontext(), _again()


@contextmanager
def _again() -> Iterator[None]:
    before, _state.again = computed_again(), True
    try:
        yield
    finally:
        _state.again = before
