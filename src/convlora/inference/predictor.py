"""Image in, class map at native size out."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convlora.data.images import read_pixels, to_float
from convlora.data.transforms import Geometry, apply_image, fit_geometry, invert, normalize
from convlora.errors import ConfigError, DataError
from convlora.head import HeadOutput, class_ids
from convlora.inference.engine import choose_computing
from convlora.inference.inputs import take_image
from convlora.inference.notes import is_large, size_note, tile_note, unread_note
from convlora.inference.tiled import Collected, Receive, check_finite, forget, predict_rows
from convlora.inference.tiles import choose_tiles
from convlora.model import SegmentationModel


class Prediction:
    """Result for one image.

    Attributes:
        ids: (H, W) uint8, class ids.

    Args:
        ids: see above.
        probabilities: see there; or what computes them when they are first asked for.
    """

    def __init__(self, ids: np.ndarray, probabilities: Tensor | Callable[[], Tensor]) -> None:
        self.ids = ids
        self._probabilities = probabilities

    @property
    def probabilities(self) -> Tensor:
        """(K, H, W) float32 on the CPU, sums to one over the classes.

        Of an image in tiles, where they would take more than 256 MiB, they are computed when they are first
        asked for, by predicting the tiles again.
        """
        if not isinstance(self._probabilities, Tensor):
            self._probabilities = self._probabilities()
        return self._probabilities


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a GPU or on the CPU, where it raises a plain RuntimeError."""
    text = str(error).lower()
    allocator = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    # a library of the GPU that finds no room for its own workspace, as in a thread's first product
    library = "cublas_status_alloc_failed" in text or "cudnn_status_alloc_failed" in text
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and (allocator or library))


#: Bytes of probabilities of an image in tiles that are kept although nobody has asked for them.
_KEPT = 2**28


class Predictor:
    """Segments images of any size with a fine-tuned model.

    An image is scaled to the model's input, or, if it is larger than `tile`, cut into tiles that are.

    Args:
        segmenter: the model; it is moved to `device`, put in evaluation mode, and with the engine torch its
            frozen weights are rounded to `precision` for good.
        device: where to compute; by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16.
        engine: torch, or openvino: see `choose_computing`.
        tile: side of a tile in pixels of the image, 32 or more; by default images are not cut.
        tile_overlap: pixels over which tiles fade into each other, by default a quarter of `tile`.

    Raises:
        ConfigError: there is no such device, precision, engine or tile (`choose_tiles`), or the model was
            used with another precision before.
        MissingExtraError: OpenVINO is asked for and not installed.
    """

    def __init__(
        self,
        segmenter: SegmentationModel,
        device: str | torch.device | None = None,
        precision: str = "auto",
        engine: str = "torch",
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> None:
        computing = choose_computing(engine, device, precision)
        self.device = computing.device
        self.segmenter = segmenter.to(self.device).eval()
        self.dtype = computing.dtype
        self.engine = computing.build(self.segmenter)
        self.tiles = choose_tiles(tile, tile_overlap)

    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """Segment one image.

        Of a file it warns of what is not read (16-bit colour, bands, an alpha channel that varies) and where
        all looks much smaller to the model than in its training, as the command line does.

        Args:
            image: path of a picture, or (H, W, 3) RGB: uint8, or float in [0, 1].

        Raises:
            DataError: the file cannot be read, the array has another shape, type or range, or the image is
                too large for the memory.
            ConfigError: the model gives values that are not finite.
            DisagreementError: OpenVINO does not compute what PyTorch does.
        """
        pixels, unread = take_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        if not isinstance(image, np.ndarray):
            self._warn(Path(image), size, unread)
        if self.cuts(size):
            return self._segment_tiles(image, pixels)
        with self.memory_errors(image, size):
            prediction = self._segment(to_float(pixels))
        check_finite(prediction.probabilities)
        return prediction

    def read(self, image: Path) -> Path | np.ndarray:
        """What `predict` needs of a file, so that another thread can read it before: its pixels."""
        return read_pixels(image)

    def cuts(self, size: tuple[int, int]) -> bool:
        """Whether an image of (H, W) pixels is cut into tiles: there are some, and it is larger than one."""
        return self.tiles is not None and self.tiles.cut(size)

    def predict_rows(self, image: str | Path | np.ndarray, receive: Receive) -> np.ndarray:
        """Segment one image in tiles and hand its probabilities over in rows, without holding them.

        Args:
            image: as in `predict`.
            receive: is called with the first of some rows and their probabilities (K, rows, W) float32, each
                row once, from top to bottom.

        Returns:
            (H, W) uint8 class ids.

        Raises:
            DataError, ConfigError: see `predict`; or there are no tiles.
        """
        if self.tiles is None:
            raise ConfigError("There are no tiles to predict in rows. Give the predictor a tile.")
        pixels, unread = take_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        if not isinstance(image, np.ndarray):
            self._warn(Path(image), size, unread)
        with self.memory_errors(image, size):
            return predict_rows(pixels, self.tiles, self.segmenter.head, self._scores, receive)

    def prepare(self, image: np.ndarray) -> tuple[Geometry, Tensor]:
        """How an image (H, W, 3) in [0, 1] is brought to the square, and the encoder's input (3, S, S)."""
        config = self.segmenter.config
        geometry = fit_geometry((image.shape[0], image.shape[1]), config.image_size, config.resize)
        pixels = apply_image(torch.from_numpy(image).permute(2, 0, 1).float(), geometry)
        return geometry, normalize(pixels).contiguous()

    def finish(self, output: HeadOutput, geometry: Geometry) -> Prediction:
        """What the model gave for one image, at the image's own size."""
        head = self.segmenter.head
        probabilities = head.probabilities(self._at_native_size(output, geometry)[None])[0].cpu()
        return Prediction(class_ids(probabilities).numpy(), probabilities)

    @contextmanager
    def memory_errors(self, image: str | Path | np.ndarray, size: tuple[int, int]) -> Iterator[None]:
        """Tell what to do where memory runs out for an image of (H, W) pixels."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            name = image if isinstance(image, str | Path) else "The image"
            cut = "Cut it into tiles with --tile (Python: tile=)"
            raise DataError(
                f"{name} of {size[0]} x {size[1]} pixels does not fit into the memory of "
                f"{self.device}. {'Use smaller tiles' if self.cuts(size) else cut}, or make it smaller."
            ) from error

    def _warn(self, image: Path, size: tuple[int, int], unread: list[str]) -> None:
        """Tell the caller's caller of a file of (H, W) pixels what `run_jobs` prints."""
        notes = [unread_note(code, [image]) for code in unread]
        known = self.segmenter.largest_image
        if known is not None and not self.cuts(size) and is_large(max(size), known):
            notes.append(size_note([image], size, known))
        notes.append(tile_note(self.tiles, size, known))
        for note in filter(None, notes):
            warnings.warn(note, stacklevel=3)

    @torch.no_grad()
    def _segment(self, image: np.ndarray) -> Prediction:
        geometry, pixels = self.prepare(image)
        return self.finish(self._run(pixels), geometry)

    def _segment_tiles(self, image: str | Path | np.ndarray, pixels: np.ndarray) -> Prediction:
        classes, size = self.segmenter.head.num_classes, (pixels.shape[0], pixels.shape[1])

        def collect() -> tuple[np.ndarray, Tensor]:
            with self.memory_errors(image, size):
                collected = Collected(classes, size)
            return self.predict_rows(pixels, collected), collected.probabilities

        if 4 * classes * size[0] * size[1] <= _KEPT:
            return Prediction(*collect())
        return Prediction(self.predict_rows(pixels, forget), lambda: collect()[1])

    @torch.no_grad()
    def _scores(self, image: np.ndarray) -> Tensor:
        """`SegmentationHead.scores`, (C, H, W) float32, of a picture (H, W, 3) float32 in [0, 1]."""
        geometry, pixels = self.prepare(image)
        return self._at_native_size(self._run(pixels), geometry)

    def _run(self, pixels: Tensor) -> HeadOutput:
        return self.engine.run(pixels[None].to(self.device))

    def _at_native_size(self, output: HeadOutput, geometry: Geometry) -> Tensor:
        return invert(self.segmenter.head.scores(output)[0].float(), geometry)
