"""Image in, class map at native size out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convlora.data.images import read_image
from convlora.data.transforms import apply_image, fit_geometry, invert, normalize
from convlora.errors import ConfigError, DataError
from convlora.inference.engine import choose_computing
from convlora.model import SegmentationModel


@dataclass(frozen=True)
class Prediction:
    """Result for one image."""

    ids: np.ndarray  # (H, W) uint8, class ids
    probabilities: Tensor  # (K, H, W) float32 on the CPU, sums to one over the classes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a GPU or on the CPU, where it raises a plain RuntimeError."""
    text = str(error).lower()
    allocator = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and allocator)


def _as_picture(image: str | Path | np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) float32 in [0, 1]."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"The image is a {type(image).__name__}; give a path or a NumPy array, np.asarray(image)."
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(
            f"The image has the shape {image.shape}; it must be (height, width, 3), RGB. Repeat a grey image "
            "three times: np.repeat(grey[..., None], 3, axis=2)."
        )
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if image.dtype.kind != "f":
        raise DataError(
            f"The image is an array of {image.dtype}; it must be uint8, 0 to 255, or "
            "float, 0 to 1. Convert it."
        )
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # NaN too
        raise DataError(
            f"The image is an array of {image.dtype} with values from {low:g} to {high:g}; floats "
            "must be from 0 to 1. Divide pixels of 0 to 255 by 255, or pass them as uint8."
        )
    return image.astype(np.float32)


class Predictor:
    """Segments images of any size with a fine-tuned model.

    Args:
        segmenter: the model; it is moved to `device` and put in evaluation mode.
        device: where to compute; by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16.
        engine: torch, or openvino: see `choose_computing`.

    Raises:
        ConfigError: there is no such device, precision or engine.
        MissingExtraError: OpenVINO is asked for and not installed.
    """

    def __init__(
        self,
        segmenter: SegmentationModel,
        device: str | torch.device | None = None,
        precision: str = "auto",
        engine: str = "torch",
    ) -> None:
        computing = choose_computing(engine, device, precision)
        self.device = computing.device
        self.segmenter = segmenter.to(self.device).eval()
        self.engine = computing.build(self.segmenter)

    @torch.no_grad()
    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """Segment one image.

        Args:
            image: path of a picture, or (H, W, 3) RGB: uint8, or float in [0, 1].

        Raises:
            DataError: the file cannot be read, the array has another shape, type or range, or the image is
                too large for the memory.
            ConfigError: the model gives values that are not finite.
            DisagreementError: OpenVINO does not compute what PyTorch does.
        """
        picture = _as_picture(image)
        try:
            prediction = self._segment(picture)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            name = image if isinstance(image, str | Path) else "The image"
            raise DataError(
                f"{name} of {picture.shape[0]} x {picture.shape[1]} pixels does not fit into the "
                f"memory of {self.device}. Cut it into tiles, or make it smaller."
            ) from error
        if not bool(prediction.probabilities.isfinite().all()):
            raise ConfigError(
                "The model gives values that are not finite for this image. Use precision fp32; "
                "if that does not help, the model itself is damaged."
            )
        return prediction

    def _segment(self, image: np.ndarray) -> Prediction:
        config = self.segmenter.config
        geometry = fit_geometry((image.shape[0], image.shape[1]), config.image_size, config.resize)
        pixels = normalize(apply_image(torch.from_numpy(image).permute(2, 0, 1).float(), geometry))
        output = self.engine.run(pixels[None].to(self.device))
        head = self.segmenter.head
        native = invert(head.scores(output)[0].float(), geometry)
        probabilities = head.probabilities(native[None])[0].cpu()
        return Prediction(probabilities.argmax(dim=0).to(torch.uint8).numpy(), probabilities)
