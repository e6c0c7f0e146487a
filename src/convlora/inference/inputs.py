"""Images as they are given: a file is read, an array looked at."""

from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.formats import not_read
from convlora.data.images import open_image, pixels_of
from convlora.errors import DataError
from convlora.settings import expand_user

_REPEAT = "np.repeat(grey[..., None], 3, axis=2)"
_AS_FILES = (
    "Grey files of such numbers are stretched between their 0.1 and 99.9 percentile, arrays are not; for the "
    "same pass stretch_grey({}), from convlora.data.images."
)


def take_image(image: str | Path | np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Pixels, and keys of `NOT_READ` for what of a file is not among them.

    Args:
        image: path of a picture, or (H, W, 3) RGB: uint8, or float in [0, 1].

    Returns:
        (H, W, 3), uint8 or float32 in [0, 1]; and the keys.

    Raises:
        DataError: the file cannot be read, or the array has another shape, type or range.
    """
    if not isinstance(image, str | Path):
        return _check_array(image), []
    path = Path(expand_user(str(image)))
    opened = open_image(path)
    return pixels_of(opened), parts_not_read(path, opened)


def parts_not_read(path: Path, image: Image.Image) -> list[str]:
    """Keys of `NOT_READ` that an image calls for; `image` is what `open_image` made of the file."""
    with path.open("rb") as file:
        return not_read(image, file.read(32))


def _check_array(image: object) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"The image is a {type(image).__name__}; give a path or a NumPy array, np.asarray(image)."
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        found = f"The image has the shape {image.shape}; it must be (height, width, 3), RGB."
        raise DataError(f"{found} {_fix_of_shape(image)}")
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        found = f"The image is an array of {image.dtype}; it must be uint8, 0 to 255, or float, 0 to 1."
        raise DataError(f"{found} {_fix_of_type(image)}")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # NaN too
        raise DataError(
            f"The image is an array of {image.dtype} with values from {low:g} to {high:g}; floats "
            "must be from 0 to 1. Divide pixels of 0 to 255 by 255, or pass them as uint8. "
            f"{_AS_FILES.format('image[..., 0]')}"
        )
    return image.astype(np.float32)


def _fix_of_shape(image: np.ndarray) -> str:
    repeat = f"Repeat a grey image three times: {_REPEAT}."
    if image.ndim != 2 or image.dtype.kind not in "iuf" or image.dtype == np.uint8:
        return repeat
    stretch = _AS_FILES.format("image")
    return stretch if image.dtype.kind != "f" else f"{stretch} What is from 0 to 1 as it is: {_REPEAT}."


def _fix_of_type(image: np.ndarray) -> str:
    if image.dtype.kind not in "iu":
        return "Convert it."
    colour = "Of 16-bit colour files the upper 8 bits are read: (image >> 8).astype(np.uint8). "
    return f"{colour if image.dtype == np.uint16 else 'Convert it. '}{_AS_FILES.format('image[..., 0]')}"
