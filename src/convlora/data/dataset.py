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


def bytes_kept(images: int, image_size: int) -> int:
    """Bytes that the decoded training images will take in each process."""
    return min(images * 5 * image_size**2, _CACHE_BYTES)


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
        self.room = _CACHE_BYTES // (5 * image_size**2)  # pixels, mask, valid

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
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        image, mask = self.augmenter(pixels.float() / 255, mask, seed, valid)
        return {"image": normalize(image), "mask": mask.long(), "index": torch.tensor(index)}

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
