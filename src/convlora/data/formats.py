"""What the format of a file does to its pixels, by its content; its ending may say something else."""

import numpy as np
from PIL import Image

from convlora.data.map_tags import no_data_value, without_data
from convlora.data.tiff import dropped_bands, holds_numbers, true_type, white_is_zero

UPPER_BITS = "upper bits"
#: What is said of parts of an image that are not read, by the code of `check`: found, rule and fix.
NOT_READ = {
    "deep-colour": (
        "16 bits a channel, of which only the upper 8 are read",
        "Colour images have 8 bits a channel; darker ones that use few of the 16 bits become black.",
        "Scale it to 8 bits a channel and save it as PNG, or as GeoTIFF if it is a map (docs/rearrange.md "
        "has a program, which keeps the place).",
    ),
    "dropped-bands": (
        "more bands than are read, and not alpha",
        "Of an image grey, or red, green and blue are read.",
        "If such a band (near infrared, for example) tells more, save it in place of one that is read.",
    ),
    "image-alpha": (
        "an alpha channel that varies, and is not read",
        "Of an image grey, or red, green and blue are read, under transparent pixels too.",
        "If it is a band (some programs mark near infrared so) that tells more, save it in place of one that "
        "is read; if transparent pixels hold no picture, give them 'ignore' (255) in the mask "
        "(docs/rearrange.md has the program), or fill them.",
    ),
}
_CHANNELS = 2, 4, 6  # colour types of PNG with several channels


def lossy_format(image: Image.Image, content: bytes) -> str:
    """Name of a format that changes pixel values, or ''.

    Args:
        image: decoded from `content`.
        content: bytes of the file.
    """
    if image.format in {"JPEG", "MPO", "JPEG2000"}:
        return "JPEG"
    if image.format == "WEBP":
        return "" if b"VP8L" in content[:4096] else "lossy WebP"
    if image.format == "TIFF" and "jpeg" in str(image.info.get("compression", "")):
        return "TIFF with JPEG compression"
    return ""


def varying_alpha(image: Image.Image) -> tuple[int, int] | None:
    """Smallest and largest value of an alpha channel that is not the same everywhere, or None."""
    if image.mode not in {"RGBA", "LA", "PA"}:
        return None
    alpha = np.asarray(image.getchannel("A"))
    low, high = int(alpha.min()), int(alpha.max())
    return (low, high) if low != high else None


def not_read(image: Image.Image, content: bytes) -> list[str]:
    """Keys of `NOT_READ` that an image calls for.

    Args:
        image: decoded picture.
        content: bytes of the file, the first 32 at least.
    """
    found = {
        "deep-colour": depth(image, content) == UPPER_BITS,
        "dropped-bands": dropped_bands(image) > 0,
        "image-alpha": varying_alpha(image) is not None,
    }
    return [code for code, is_so in found.items() if is_so]


def depth(image: Image.Image, content: bytes) -> str:
    """'stretched' for deep grey, 'upper bits' for several channels of 16 bits (Pillow reads 8), else ''."""
    if holds_numbers(image):
        return "stretched"
    if image.format == "PNG" and content[24] == 16 and content[25] in _CHANNELS:
        return UPPER_BITS
    bits = getattr(image, "tag_v2", {}).get(258, ()) if image.format == "TIFF" else ()
    return UPPER_BITS if isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8 else ""


def count_gaps(image: Image.Image) -> tuple[int, int]:
    """Pixels that hold what the file declares as 'no data', and others that are NaN or infinite.

    Where no pixel is a finite number, all are among the latter too. Of 16-bit colour, which Pillow reads in
    8, nothing is said.
    """
    empty = _no_data_pixels(image)
    odd = 0
    if image.mode.startswith("F"):
        lost = ~np.isfinite(np.asarray(image))
        odd = int(np.count_nonzero(lost))
        if empty is not None and odd < lost.size:
            odd = int(np.count_nonzero(lost & ~empty))
    return (0 if empty is None else int(np.count_nonzero(empty))), odd


def _no_data_pixels(image: Image.Image) -> np.ndarray | None:
    if no_data_value(image) is None or depth(image, b"") == UPPER_BITS:
        return None
    values = np.asarray(image)
    if holds_numbers(image):
        return without_data(true_type(values, image), image)
    if white_is_zero(image):  # turned round by Pillow
        return None
    colours = 1 if image.mode in {"LA", "PA"} else 3
    return without_data(values if values.ndim == 2 else values[..., :colours], image)
