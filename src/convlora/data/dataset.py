"""Images and masks of a split as tensors of the encoder's input size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from convlora.data.augment import AugmentConfig, Augmenter
from convlora.data.images import read_image
from convlora.data.labels import read_label
from convlora.data.layout import Pair
from convlora.data.masks import MaskEncoding
from convlora.data.transforms import apply_image, apply_mask, fit_geometry, normalize

_CACHE_BYTES = 2 * 2**30


_IMAGE, _LABELS = 5, 1  # bytes a pixel: pixels, mask, valid; the mask alone


def bytes_kept(images: int, image_size: int, embedded: bool = False) -> int:
    """Bytes that the decoded training images, or their masks alone, will take in each process."""
    return min(images * (_LABELS if embedded else _IMAGE) * image_size**2, _CACHE_BYTES)


def labels_kept(image_size: int) -> int:
    """Decoded masks, at most, that are kept in each process where images need not be."""
    return _CACHE_BYTES // (_LABELS * image_size**2)


class SegmentationDataset(Dataset[dict[str, Tensor]]):
    """Training images.

    Decoded and resized images are kept in memory (8 bits a channel) until they fill 2 GiB in each process:
    the same few are read in every epoch.

    Args:
        pairs: images with masks.
        encoding: how mask values are read.
        image_size: side of the encoder's input.
        resize: 'pad' or 'stretch'.
        augment: strengths of augmentation.
        seed: of augmentation.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        encoding: MaskEncoding,
        image_size: int,
        resize: str,
        augment: AugmentConfig,
        seed: int = 0,
    ) -> None:
        self.pairs, self.encoding = list(pairs), encoding
        self.image_size, self.resize, self.seed = image_size, resize, seed
        self.augmenter = Augmenter(augment)
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.room = _CACHE_BYTES // (_IMAGE * image_size**2)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.get(index, epoch=0)

    def get(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One example; the same index and epoch always give the same tensors.

        Returns:
            'image' (3, S, S) float32 normalised, 'mask' (S, S) int64 with 255 ignored, 'index' ().

        Raises:
            DataError: a file cannot be read.
        """
        pixels, mask, valid = self._read(index)
        image, mask = self.augmenter(pixels.float() / 255, mask, self._draw(index, epoch), valid)
        return {"image": normalize(image), "mask": mask.long(), "index": torch.tensor(index)}

    def is_flipped(self, index: int, epoch: int) -> bool:
        """Whether `get` flips the image; see `Augmenter.is_flipped`."""
        return self.augmenter.is_flipped(self._draw(index, epoch))

    def labels(self, index: int) -> Tensor:
        """The mask alone, not augmented: (S, S) uint8 with 255 ignored, also in the padding.

        Raises:
            DataError: the file cannot be read.
        """
        mask = torch.from_numpy(read_label(self.pairs[index].mask, self.encoding))
        return apply_mask(mask, fit_geometry((mask.shape[0], mask.shape[1]), self.image_size, self.resize))

    def _draw(self, index: int, epoch: int) -> int:
        """Seed of one augmentation."""
        return int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if index in self.kept:
            return self.kept[index]
        pair = self.pairs[index]
        image = torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
        mask = torch.from_numpy(read_label(pair.mask, self.encoding))
        geometry = fit_geometry((image.shape[1], image.shape[2]), self.image_size, self.resize)
        pixels = (apply_image(image, geometry) * 255).round().clamp(0, 255).to(torch.uint8)
        valid = torch.zeros(self.image_size, self.image_size, dtype=torch.bool)
        valid[: geometry.resized[0], : geometry.resized[1]] = True
        example = (pixels, apply_mask(mask, geometry), valid)
        if len(self.kept) < self.room:
            self.kept[index] = example
        return example
