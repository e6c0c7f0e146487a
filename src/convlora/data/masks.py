"""Read and write masks: single-channel class ids, 255 is 'ignore'."""

from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.images import open_image
from convlora.errors import DataError

IGNORE = 255


class MaskEncoding(StrEnum):
    """How the values of all masks of a data set are to be read."""

    IDS = "ids"  # class ids, 255 is ignored
    BINARY_255 = "binary255"  # 0 is background, 255 is foreground, nothing is ignored


def read_values(path: Path) -> np.ndarray:
    """Read the stored values of a mask, not interpreted.

    Palette images give their indices, not colours; 1-bit images 0 and 1; RGB and RGBA only where the colour
    channels are equal.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: the file cannot be read, or holds colours, fractions or values above 255.
    """
    image = open_image(path)
    if image.mode in {"P", "L"}:
        return np.array(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in {"LA", "PA"}:
        return np.asarray(image)[..., 0]
    if image.mode.startswith(("I", "F")):
        return _narrow(np.asarray(image), path)
    return _grey(np.asarray(image.convert("RGB")), path)


def read_mask(path: Path, encoding: MaskEncoding) -> np.ndarray:
    """Read a mask as class ids.

    Returns:
        (H, W) uint8; 255 is 'ignore'.

    Raises:
        DataError: see `read_values`.
    """
    values = read_values(path)
    return (values > 0).astype(np.uint8) if encoding is MaskEncoding.BINARY_255 else values


def save_mask(path: Path, ids: np.ndarray) -> None:
    """Write class ids (H, W) uint8 as a palette PNG: any viewer shows colours, a program reads the ids."""
    image = Image.fromarray(ids)
    image.putpalette(_palette())
    image.save(path, format="PNG")


def _narrow(values: np.ndarray, path: Path) -> np.ndarray:
    fractions = values[values != np.round(values)]
    if fractions.size:
        raise DataError(
            f"{path} is a mask with fractions, such as {fractions[0]:g}; a mask holds whole class ids. "
            "Threshold it and save it as an 8-bit PNG."
        )
    if values.min() < 0 or values.max() > 255:
        raise DataError(
            f"{path} is a mask with values from {values.min():g} to {values.max():g}; class ids are 0 to 254 "
            "and 255 is 'ignore'. Save the ids as an 8-bit PNG."
        )
    return values.astype(np.uint8)


def _grey(rgb: np.ndarray, path: Path) -> np.ndarray:
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0]
    colours, counts = np.unique(rgb.reshape(-1, 3), axis=0, return_counts=True)
    order = np.argsort(-counts)[:8]
    listed = ", ".join(f"rgb({', '.join(map(str, colours[i]))}) x {counts[i]}" for i in order)
    more = f" and {len(colours) - 8} more" if len(colours) > 8 else ""
    raise DataError(
        f"{path} is a colour mask with {len(colours)} colours: {listed}{more}. A mask holds one channel of "
        "class ids. Give every colour an id and save the ids as an 8-bit PNG."
    )


def _palette() -> list[int]:
    """Colours of the ids 0 to 255: black, then the bit-interleaved colours of the Pascal VOC masks."""
    palette = []
    for label in range(256):
        colour, bits = [0, 0, 0], label
        for shift in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= ((bits >> channel) & 1) << shift
            bits >>= 3
        palette += colour
    return palette
