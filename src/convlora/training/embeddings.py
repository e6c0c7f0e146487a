"""Embeddings of an encoder that stays as it is: computed once, kept on disk, the same bits as without."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convlora._version import __version__
from convlora.data.dataset import SegmentationDataset, labels_kept
from convlora.data.images import read_image
from convlora.data.transforms import Geometry
from convlora.embedding_store import EmbeddingStore, hash_tensor
from convlora.inference.device import advised_half, autocast_dtype
from convlora.inference.predictor import Prediction, Predictor, is_out_of_memory
from convlora.inference.tiled import check_finite
from convlora.model import Segmenter
from convlora.training.out_of_memory import cannot_halve

#: Raise it when the encoder's arithmetic changes: what was kept before is then left aside.
_FORMAT = 1


class Embeddings:
    """Embeddings by the pixels they were computed from.

    The key is a hash of the normalised pixels (so of the image's content, its size, how it was resized, and
    the flip), the backbone's fingerprint, the dtype of autocast, the kind of device, and the versions of
    this package and of torch: whatever the bits of an embedding hang on, but for the number of threads.

    Args:
        segmenter: its encoder is untouched by training.
        device: where it computes.
        precision: auto, fp32, bf16 or fp16.
        store: keeps them.
    """

    def __init__(
        self, segmenter: Segmenter, device: torch.device, precision: str, store: EmbeddingStore
    ) -> None:
        self.segmenter, self.device, self.precision, self.store = segmenter, device, precision, store
        self.dtype = autocast_dtype(precision, device)
        fingerprint = segmenter.config.backbone_fingerprint
        versions = (_FORMAT, __version__, torch.__version__)
        self.identity = "|".join(map(str, (*versions, device.type, self.dtype, fingerprint)))
        self.keys: dict[Hashable, str] = {}
        self.geometries: dict[Path, Geometry] = {}
        self.computed = self.bytes = 0

    def get(self, name: Hashable, pixels: Callable[[], Tensor]) -> Tensor:
        """One embedding.

        Args:
            name: of the pixels, in this run.
            pixels: gives the encoder's input, (3, S, S) normalised; called when `name` is new, or its file
                is gone or damaged.

        Returns:
            (h, w, dim) on the CPU, in the dtype in which the encoder gives it; not to be written to.

        Raises:
            ConfigError: the device has not the memory for one image.
        """
        known = self.keys.get(name)
        found = self.store.read(known) if known else None
        if found is not None:
            return found
        image = pixels()
        key = hash_tensor(image, self.identity)
        found = self.store.read(key, check=True)
        if found is None:
            found = self._compute(image)
            self.store.write(key, found)
        if known is None:
            self.keys[name] = key
            self.bytes += found.numel() * found.element_size()
        return found

    def _compute(self, image: Tensor) -> Tensor:
        self.computed += 1
        try:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                # contiguous, as a batch is: another layout takes a convolution that rounds otherwise
                embedding = self.segmenter.embed(image[None].contiguous().to(self.device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        else:
            return embedding[0].permute(1, 2, 0).contiguous().cpu()
        raise cannot_halve(1, 1, reason, advised_half(self.dtype, self.device), backward=False)


class EmbeddedImages:
    """Training examples whose image is an embedding; decoded masks are kept as `SegmentationDataset` does.

    Args:
        images: the training images, unchanged or flipped.
        embeddings: of them.
    """

    def __init__(self, images: SegmentationDataset, embeddings: Embeddings) -> None:
        self.images, self.embeddings = images, embeddings
        images.room = 1  # an image is needed once: in both forms, one after the other
        self.labels: dict[int, Tensor] = {}
        self.room = labels_kept(images.image_size)

    def __len__(self) -> int:
        return len(self.images)

    def get(self, index: int, epoch: int) -> dict[str, Tensor]:
        """As `SegmentationDataset.get`; 'embedding' (h, w, dim) stands for 'image', and 'mask' is uint8."""
        flipped = self.images.is_flipped(index, epoch)
        labels = self._labels(index)
        return {
            "embedding": self.embedding(index, epoch, flipped),
            "mask": labels.flip(-1) if flipped else labels,
            "index": torch.tensor(index),
        }

    def embedding(self, index: int, epoch: int, flipped: bool) -> Tensor:
        """Embedding (h, w, dim) of an image as it is in an epoch; `flipped` must say how."""

        def pixels() -> Tensor:
            if index not in self.images.kept:
                self.images.kept.clear()
            return self.images.get(index, epoch)["image"]

        return self.embeddings.get((index, flipped), pixels)

    def _labels(self, index: int) -> Tensor:
        if index in self.labels:
            return self.labels[index]
        labels = self.images.labels(index)
        if len(self.labels) < self.room:
            self.labels[index] = labels
        return labels

    def variants(self, orders: Iterable[tuple[int, Sequence[int]]]) -> list[tuple[int, int, bool]]:
        """The different inputs of the encoder in some epochs.

        Args:
            orders: an epoch and the images that it shows, for each epoch.

        Returns:
            Image, an epoch that shows it so, and whether it is flipped; in the order of the images.
        """
        found: dict[tuple[int, bool], int] = {}
        most = len(self) * (2 if self.images.augmenter.config.horizontal_flip else 1)
        for epoch, order in orders:
            for index in order:
                if (index, True) in found and (index, False) in found:
                    continue
                found.setdefault((index, self.images.is_flipped(index, epoch)), epoch)
            if len(found) == most:
                break
        return [(index, epoch, flipped) for (index, flipped), epoch in sorted(found.items())]


class EmbeddedPredictor(Predictor):
    """Predicts from kept embeddings; an image that was met before is not even read.

    Args:
        embeddings: of the images; their model, device and precision are the predictor's.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__(embeddings.segmenter, embeddings.device, embeddings.precision)
        self.embeddings = embeddings

    @torch.no_grad()
    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """As `Predictor.predict`; only the files' embeddings are kept."""
        if not isinstance(image, Path):
            return super().predict(image)
        geometry, embedding = self.look_up(image)
        with self.memory_errors(image, geometry.native):
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                output = self.segmenter(embedding[None].to(self.device), embedded=True)
            prediction = self.finish(output, geometry)
        check_finite(prediction.probabilities)
        return prediction

    def read(self, image: Path) -> Path:
        """Nothing of the file: its embedding is kept."""
        return image

    def look_up(self, image: Path) -> tuple[Geometry, Tensor]:
        """How an image is brought to the square, and its embedding (h, w, dim)."""
        known = self.embeddings.geometries

        def pixels() -> Tensor:
            known[image], pixels = self.prepare(read_image(image))
            return pixels

        embedding = self.embeddings.get(image, pixels)
        return known[image], embedding
