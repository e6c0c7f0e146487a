"""Read and write masks: single-channel class ids, 255 is 'ignore'."""

from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from convlora.data.images import FileError, upright
from convlora.data.tiff import holds_numbers, true_type, white_is_zero

IGNORE = 255
_NO_DATA = {-1, -128, -999, -9999, -32768, 32767, 65535}  # as maps mark it; other numbers may count objects


#: Told where the values of a mask may number its objects.
OBJECTS = (
    " If the numbers count objects (instances), save the class of each instead, for one class `mask > 0` "
    "as 0 and 1."
)


class MaskEncoding(StrEnum):
    """How the values of all masks of a data set are to be read."""

    IDS = "ids"  # class ids, 255 is ignored
    BINARY_255 = "binary255"  # 0 is background, 255 is foreground, nothing is ignored


def values_of(image: Image.Image, path: Path) -> np.ndarray:
    """The stored values of a mask that `open_image` has decoded, not interpreted.

    Palette images give their indices, not colours; 1-bit images 0 and 1; RGB and RGBA only where the colour
    channels are equal. A TIFF that says that 0 is white gives what is stored, not what a viewer shows; where
    it has 1 bit it is refused. EXIF orientation is applied, as it is to images.

    Args:
        image: the mask.
        path: named in the error.

    Returns:
        (H, W) uint8.

    Raises:
        FileError: it holds colours, fractions or values above 255.
    """
    numbers, reverse, stored = holds_numbers(image), white_is_zero(image), image
    image = upright(image)
    if numbers:
        return _narrow(true_type(np.asarray(image), stored), path)
    if image.mode == "L" and reverse:
        return 255 - np.asarray(image)
    if image.mode in {"P", "L"}:
        return np.array(image)
    if image.mode == "1":
        values = np.asarray(image).astype(np.uint8)
        return _refuse_reversed(values, path) if reverse else values
    if image.mode in {"LA", "PA"}:
        return np.asarray(image)[..., 0]
    return _grey(np.asarray(image.convert("RGB")), path)


def decode(values: np.ndarray, encoding: MaskEncoding, path: Path) -> np.ndarray:
    """Interpret the values (H, W) uint8 of a mask as class ids; `path` is named in the error.

    Raises:
        FileError: a binary mask holds another value than 0 and 255.
    """
    if encoding is MaskEncoding.IDS:
        return values
    others = values[(values != 0) & (values != 255)]
    if others.size:
        found = f"holds the value {others[0]} in a set of masks with 0 and 255"
        raise FileError.about(path, found, "Save it with 0 and 255 only.", "unknown-ids")
    return (values == 255).astype(np.uint8)


def index_colours(image: Image.Image) -> dict[int, tuple[int, int, int]]:
    """Index -> RGB of an image's palette; empty without one, and for greys in order, which are numbers."""
    if image.mode not in {"P", "PA"}:
        return {}
    levels = image.getpalette("RGB") or []
    colours = np.array(levels[: len(levels) // 3 * 3], np.uint8).reshape(-1, 3)
    if len(colours) > 1 and (colours == np.arange(len(colours))[:, None]).all():
        return {}
    return {index: (red, green, blue) for index, (red, green, blue) in enumerate(colours.tolist())}


def save_mask(path: Path, ids: np.ndarray) -> None:
    """Write class ids (H, W) uint8 as a palette PNG: any viewer shows colours, a program reads the ids."""
    image = Image.fromarray(ids)
    image.putpalette([value for colour in colours() for value in colour])
    image.save(path, format="PNG")


def _refuse_reversed(shown: np.ndarray, path: Path) -> NoReturn:
    """Some programs store the mask and add the tag, others also turn the bits round: no tag tells which."""
    white = np.count_nonzero(shown)
    found = (
        "is a 1-bit mask whose TIFF tag says that 0 is white (PhotometricInterpretation 0, WhiteIsZero): "
        f"{shown.size - white} pixels are stored as 1, but a viewer shows the other {white} white, and "
        "programs differ in which of them are meant (tifffile stores True as 1, ImageMagick white as 0)"
    )
    fix = (
        "Save it as an 8-bit PNG with 0 and 255, 255 for foreground; with tifffile, "
        "tifffile.imwrite(NAME, mask.astype('uint8'))."
    )
    raise FileError.about(path, found, fix, "white-is-zero")


def _narrow(values: np.ndarray, path: Path) -> np.ndarray:
    fix = "Save the ids as an 8-bit PNG."
    if np.isnan(values).any():
        raise FileError.about(path, "is a mask with NaN; a mask holds whole class ids", fix, "unknown-ids")
    fractions = values[values != np.round(values)]
    if fractions.size:
        found = f"is a mask with fractions, such as {fractions[0]:g}; a mask holds whole class ids"
        raise FileError.about(path, found, f"Threshold it. {fix}", "unknown-ids")
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        rule = "class ids are 0 to 254 and 255 is 'ignore'"
        found = f"is a mask with values from {low:g} to {high:g}; {rule}"
        if high == 65535 and ((values == 0) | (values == 65535)).all():
            fix = "Save it as an 8-bit PNG with 0 and 255."
        elif len(odd := np.unique(values[(values < 0) | (values > IGNORE)])) == 1 and odd[0] in _NO_DATA:
            fix = f"{fix[:-1]}, with 255 in place of {odd[0]:g} if that is 'no data'."
        else:
            fix += OBJECTS
        raise FileError.about(path, found, fix, "unknown-ids")
    return values.astype(np.uint8)


def _grey(rgb: np.ndarray, path: Path) -> np.ndarray:
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0]
    colours, counts = np.unique(rgb.reshape(-1, 3), axis=0, return_counts=True)
    order = np.argsort(-counts)[:8]
    listed = ", ".join(f"rgb({', '.join(map(str, colours[i]))}) x {counts[i]}" for i in order)
    more = f" and {len(colours) - 8} more" if len(colours) > 8 else ""
    found = f"is a colour mask with {len(colours)} colours: {listed}{more}; a mask holds one channel of ids"
    fix = "Give every colour an id and save the ids as an 8-bit PNG."
    raise FileError.about(path, found, fix, "colour-mask")


def colours() -> list[tuple[int, int, int]]:
    """RGB of the ids 0 to 255: black, then the bit-interleaved colours of the Pascal VOC masks."""
    found = []
    for label in range(256):
        colour, bits = [0, 0, 0], label
        for shift in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= ((bits >> channel) & 1) << shift
            bits >>= 3
        found.append((colour[0], colour[1], colour[2]))
    return found
