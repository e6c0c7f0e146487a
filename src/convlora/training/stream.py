"""Which images make up a step: endless shuffled passes, the same for any number of processes and workers."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from convlora.training.plan import Plan


class Examples(Protocol):
    """Training images, augmented; `SegmentationDataset` or what stands for it."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def get(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One example: 'image' or 'embedding', 'mask' and 'index'."""
        ...


def place(position: int, images: int, seed: int) -> tuple[int, int]:
    """Epoch and image at a position of the stream; each epoch is a new shuffle of all images."""
    epoch, offset = divmod(position, images)
    return epoch, int(_order(epoch, images, seed)[offset])


def orders(first: int, end: int, images: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Epochs, each with its images in their order, of the positions from `first` to before `end`."""
    for epoch in range(first // images, -(-end // images)):
        start = epoch * images
        yield epoch, _order(epoch, images, seed)[max(0, first - start) : end - start].tolist()


@lru_cache(maxsize=2)  # `place` asks for every image; a batch may lie in two epochs
def _order(epoch: int, images: int, seed: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(images)
    order.flags.writeable = False  # it is shared
    return order


class PositionSampler(Sampler[list[int]]):
    """Positions of each micro-batch of one process, from `first_step` to the end of the plan."""

    def __init__(self, plan: Plan, process: int, first_step: int) -> None:
        self.plan, self.process, self.first_step = plan, process, first_step

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan
        share = plan.batch_size // plan.processes
        for step in range(self.first_step, plan.steps):
            start = step * plan.batch_size + self.process * share
            for micro in range(start, start + share, plan.micro_batch):
                yield list(range(micro, micro + plan.micro_batch))

    def __len__(self) -> int:
        return (self.plan.steps - self.first_step) * self.plan.micro_batches


class StreamDataset(Dataset[dict[str, Tensor]]):
    """The training images by their position in the stream; augmentation is drawn from epoch and image."""

    def __init__(self, images: Examples, seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        epoch, index = place(position, len(self.images), self.seed)
        key = np.random.SeedSequence((self.seed, position)).generate_state(1, np.uint64)[0] >> 1
        return {**self.images.get(index, epoch), "key": torch.tensor(int(key))}


def make_loader(
    images: Examples,
    plan: Plan,
    seed: int,
    workers: int,
    process: int = 0,
    first_step: int = 0,
    pin: bool = False,
) -> DataLoader[dict[str, Tensor]]:
    """Loader of micro-batches: 'image' (b, 3, S, S) or 'embedding', 'mask' (b, S, S) and 'key' (b,).

    The key is a number of the image's place in the stream: all randomness of a step is drawn from it. With
    `pin`, batches lie where a GPU of NVIDIA's reads them while it computes.
    """
    return DataLoader(
        StreamDataset(images, seed),
        batch_sampler=PositionSampler(plan, process, first_step),
        num_workers=workers,
        pin_memory=pin,
    )
