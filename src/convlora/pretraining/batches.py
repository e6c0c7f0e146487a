"""Scenes to training batches: random crop, scale and flips, then masks and the prompts that ask for them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.data.transforms import normalize
from convlora.pretraining.prompts import sample_box, sample_click, sample_masks
from convlora.pretraining.shards import ShardReader
from convlora.pretraining.textures import TextureBank

# A click on a part cannot tell whether the whole is meant; a box can.
_COARSE_CLICKS, _COARSE_BOXES = 0.12, 0.35


@dataclass(frozen=True)
class Batch:
    """Images, the masks asked for, and the prompts; images beyond the first B are photographs without any."""

    image: Tensor  # (B + E, 3, S, S) normalised
    target: Tensor  # (B * Q, S / cell, S / cell) share of each cell that the mask covers
    points: Tensor | None  # (B, Q, 1, 2) clicks in pixels
    boxes: Tensor | None  # (B, Q, 4) XYXY in pixels


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """Endless batches for one stage of pretraining; each worker draws its own.

    Args:
        reader: the scenes.
        size: side S of the images in pixels.
        batch: images B.
        prompts: prompts Q for each image.
        seed: start of the random numbers.
        textures: where photographs come from; none are drawn if None.
        photographs: crops of photographs E beside the scenes of a batch.
        cell: pixels a side of a cell of the decoder's masks: a quarter of the patch.
    """

    def __init__(
        self,
        reader: ShardReader,
        size: int,
        batch: int,
        prompts: int,
        seed: int,
        textures: TextureBank | None = None,
        photographs: int = 0,
        cell: int = 2,
    ) -> None:
        self.cell = cell
        self.reader, self.size, self.batch, self.prompts, self.seed = reader, size, batch, prompts, seed
        self.textures, self.photographs = textures, photographs

    def __iter__(self) -> Iterator[Batch]:
        """Draw batches until the consumer stops."""
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        while True:
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Batch:
        box = bool(rng.random() < 0.4)
        images: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        prompts: list[np.ndarray] = []
        while len(images) < self.batch:
            picture, maps = self._view(rng)
            share = _COARSE_BOXES if box else _COARSE_CLICKS
            masks = sample_masks(*maps, rng, self.prompts, coarse_share=share)
            if len(masks) == 0:
                continue
            masks = masks[np.arange(self.prompts) % len(masks)]
            images.append(picture)
            targets.append(masks)
            sample = sample_box if box else sample_click
            prompts.append(np.stack([sample(mask, rng) for mask in masks]))
        if self.textures is not None:
            images += [self._photograph(rng, self.textures) for _ in range(self.photographs)]
        image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        asked = torch.from_numpy(np.stack(prompts)).float() - 0.5  # SAM counts pixels by their centres
        return Batch(
            image=normalize(image),
            target=F.avg_pool2d(torch.from_numpy(np.concatenate(targets)).float()[:, None], self.cell)[:, 0],
            points=None if box else asked[:, :, None],
            boxes=asked if box else None,
        )

    def _photograph(self, rng: np.random.Generator, textures: TextureBank) -> np.ndarray:
        crop = np.rot90(textures.photo(rng, self.size, self.size), int(rng.integers(4)))
        return np.rint(255 * crop).astype(np.uint8)

    def _view(self, rng: np.random.Generator) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Random scene, cropped, scaled to `size`, turned and mirrored."""
        scene = self.reader[int(rng.integers(len(self.reader)))]
        side = scene.image.shape[0]
        crop = int(rng.integers(max(self.size * 5 // 8, side // 4), side + 1))
        top, left = rng.integers(0, side - crop + 1, size=2)
        window = np.s_[top : top + crop, left : left + crop]
        image = torch.from_numpy(scene.image[window].copy()).permute(2, 0, 1)[None].float()
        shape = (self.size, self.size)
        image = F.interpolate(image, size=shape, mode="bilinear", antialias=crop > self.size)
        pixels = (np.arange(self.size) + 0.5) * crop / self.size
        index = np.ix_(pixels.astype(int), pixels.astype(int))
        turn, mirror = int(rng.integers(4)), bool(rng.integers(2))

        def oriented(array: np.ndarray) -> np.ndarray:
            array = np.rot90(array, turn)
            return np.ascontiguousarray(array[:, ::-1] if mirror else array)

        picture = image[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
        ids = (oriented(scene.instances[window][index]), oriented(scene.coarse[window][index]))
        return oriented(picture), ids
