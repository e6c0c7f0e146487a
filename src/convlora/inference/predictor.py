"""Image in, class map at native size out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convlora.data.images import read_image
from convlora.data.transforms import Geometry, apply_image, fit_geometry, invert, normalize
from convlora.errors import ConfigError, DataError
from convlora.head import HeadOutput
from convlora.model import SegmentationModel

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prediction:
    """Result for one image."""

    ids: np.ndarray  # (H, W) uint8, class ids
    probabilities: Tensor  # (K, H, W) float32 on the CPU, sums to one over the classes


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Dtype for autocast; None means fp32.

    `auto` takes bf16 where the device computes in it natively (CPUs with AVX512-BF16 or AMX, GPUs from
    Ampere on), fp16 on older NVIDIA GPUs, and fp32 elsewhere.

    Raises:
        ConfigError: the name is none of these.
    """
    if precision != "auto" and precision not in _DTYPES:
        raise ConfigError(f"precision is {precision!r}; it must be one of auto, {', '.join(_DTYPES)}.")
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        elif device.type == "cpu":
            precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
        else:
            precision = "fp32"
    return _DTYPES[precision]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a GPU or on the CPU, where it raises a plain RuntimeError."""
    text = str(error).lower()
    allocator = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and allocator)


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Device by name; by default a GPU if there is one.

    Raises:
        ConfigError: the name is none, or this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rule = "it must be cpu, cuda, cuda:0, cuda:1, ..., or mps"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device is {name!r}; {rule}.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        found = f"PyTorch finds {there} CUDA GPUs here" if there else "PyTorch finds no CUDA GPU here"
        raise ConfigError(f"device is '{device}', but {found}. Use {'cuda:0' if there else 'cpu'}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is 'mps', but PyTorch finds no Apple GPU here. Use cpu.")
    if device.type not in {"cpu", "cuda", "mps"} and not isinstance(name, torch.device):
        raise ConfigError(f"device is {name!r}; {rule}.")
    return device


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

    Raises:
        ConfigError: there is no such device or precision.
    """

    def __init__(
        self, segmenter: SegmentationModel, device: str | torch.device | None = None, precision: str = "auto"
    ) -> None:
        self.device = choose_device(device)
        self.segmenter = segmenter.to(self.device).eval()
        self.dtype = autocast_dtype(precision, self.device)

    @torch.no_grad()
    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """Segment one image.

        Args:
            image: path of a picture, or (H, W, 3) RGB: uint8, or float in [0, 1].

        Raises:
            DataError: the file cannot be read, the array has another shape, type or range, or the image is
                too large for the memory.
            ConfigError: the model gives values that are not finite.
        """
        picture = _as_picture(image)
        return self.guarded(lambda: self._segment(picture), image, (picture.shape[0], picture.shape[1]))

    def guarded(
        self, segment: Callable[[], Prediction], image: str | Path | np.ndarray, size: tuple[int, int]
    ) -> Prediction:
        """Run `segment` for an image of (H, W) pixels; raises what `predict` says."""
        try:
            prediction = segment()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            name = image if isinstance(image, str | Path) else "The image"
            raise DataError(
                f"{name} of {size[0]} x {size[1]} pixels does not fit into the "
                f"memory of {self.device}. Cut it into tiles, or make it smaller."
            ) from error
        if not bool(prediction.probabilities.isfinite().all()):
            raise ConfigError(
                "The model gives values that are not finite for this image. Use precision fp32; "
                "if that does not help, the model itself is damaged."
            )
        return prediction

    def _segment(self, image: np.ndarray) -> Prediction:
        geometry, pixels = self.prepare(image)
        with self.autocast():
            output = self.segmenter(pixels[None].to(self.device))
        return self.finish(output, geometry)

    def prepare(self, image: np.ndarray) -> tuple[Geometry, Tensor]:
        """How an image (H, W, 3) in [0, 1] is brought to the square, and the encoder's input (3, S, S)."""
        config = self.segmenter.config
        geometry = fit_geometry((image.shape[0], image.shape[1]), config.image_size, config.resize)
        pixels = apply_image(torch.from_numpy(image).permute(2, 0, 1).float(), geometry)
        return geometry, normalize(pixels).contiguous()

    def autocast(self) -> torch.autocast:
        """The precision, as a context."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def finish(self, output: HeadOutput, geometry: Geometry) -> Prediction:
        """What the model gave for one image, at the image's own size."""
        head = self.segmenter.head
        native = invert(head.scores(output)[0].float(), geometry)
        probabilities = head.probabilities(native[None])[0].cpu()
        return Prediction(probabilities.argmax(dim=0).to(torch.uint8).numpy(), probabilities)
