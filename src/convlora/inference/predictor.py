"""Image in, class map at native size out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convlora.data.images import read_image
from convlora.data.transforms import apply_image, fit_geometry, invert, normalize
from convlora.errors import DataError
from convlora.model import Segmenter


@dataclass(frozen=True)
class Prediction:
    """Result for one image."""

    ids: np.ndarray  # (H, W) uint8, class ids
    probabilities: Tensor  # (K, H, W) float32 on the CPU, sums to one over the classes


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Dtype for autocast; None means fp32.

    `auto` takes bf16 where the device computes in it natively (CPUs with AVX512-BF16 or AMX, GPUs from
    Ampere on), fp16 on older NVIDIA GPUs, and fp32 elsewhere.
    """
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        elif device.type == "cpu":
            precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
        else:
            precision = "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _as_picture(image: str | Path | np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) float32 in [0, 1]."""
    if not isinstance(image, np.ndarray):
        return read_image(Path(image))
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"The image has the shape {image.shape}; it must be (height, width, 3), RGB. Repeat a grey image "
            "three times: np.repeat(grey[..., None], 3, axis=2)."
        )
    return image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)


class Predictor:
    """Segments images of any size with a fine-tuned model.

    Args:
        segmenter: the model; it is moved to `device` and put in evaluation mode.
        device: where to compute; by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16.
    """

    def __init__(
        self, segmenter: Segmenter, device: str | torch.device | None = None, precision: str = "auto"
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.segmenter = segmenter.to(self.device).eval()
        self.dtype = autocast_dtype(precision, self.device)

    @torch.no_grad()
    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """Segment one image.

        Args:
            image: path of a picture, or (H, W, 3) RGB: uint8, or float in [0, 1].

        Raises:
            DataError: the file cannot be read, or the array has another shape.
        """
        image = _as_picture(image)
        config = self.segmenter.config
        geometry = fit_geometry((image.shape[0], image.shape[1]), config.image_size, config.resize)
        pixels = normalize(apply_image(torch.from_numpy(image).permute(2, 0, 1).float(), geometry))
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            output = self.segmenter(pixels[None].to(self.device))
        head = self.segmenter.head
        native = invert(head.scores(output)[0].float(), geometry)
        probabilities = head.probabilities(native[None])[0].cpu()
        return Prediction(probabilities.argmax(dim=0).to(torch.uint8).numpy(), probabilities)
