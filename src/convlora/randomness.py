"""Draws from a seed of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU's generator as after `seed`; the caller's random state is left as it was.

    That of GPUs too, which `torch.manual_seed` would seed for good: `fork_rng` restores those alone that it
    is told of.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
