"""Read any common picture as RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from convlora.errors import DataError

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"})


def is_image(path: Path) -> bool:
    """Whether the file name ends like an image's."""
    return path.suffix.lower().lstrip(".") in EXTENSIONS


def open_image(path: Path) -> Image.Image:
    """Open and decode one picture; EXIF orientation is not applied yet.

    Raises:
        DataError: the file is missing, empty, cut off, of an unknown format, or has several frames.
    """
    try:
        with path.open("rb") as file:
            image: Image.Image = Image.open(file)
            frames = getattr(image, "n_frames", 1)
            image.load()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        size = path.stat().st_size if path.exists() else 0
        found = "the file is empty (0 bytes)" if size == 0 else str(error)
        raise DataError(f"{path} cannot be read as an image: {found}. Replace or remove the file.") from error
    if frames > 1:
        raise DataError(
            f"{path} holds {frames} frames; one file must be one picture. Save the frames one by one."
        )
    return image


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB.

    8-bit grey, RGB, RGBA (the alpha channel is dropped), palette (through its colours), CMYK and 1-bit are
    read as Pillow converts them. 16-bit and float grey are stretched between their 0.1 and 99.9 percentile,
    because cameras rarely use the range of the type. EXIF orientation is applied.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        DataError: see `open_image`.
    """
    image = open_image(path)
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(ImageOps.exif_transpose(image), dtype=np.float32)
        return np.repeat(_stretch(grey)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    rgb = ImageOps.exif_transpose(image.convert("RGB"))
    return np.asarray(rgb, dtype=np.float32) / 255


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) as shown, EXIF orientation applied."""
    width, height = image.size
    turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}
    return (width, height) if turned else (height, width)


def _stretch(grey: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(finite, (0.1, 99.9))
    return np.clip((finite - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
