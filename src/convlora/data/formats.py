"""What the format of a file does to its pixels, by its content; its ending may say something else."""

import numpy as np
from PIL import Image

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


def depth(image: Image.Image, content: bytes) -> str:
    """'stretched' for deep grey, 'upper bits' for several channels of 16 bits (Pillow reads 8), else ''."""
    if image.mode.startswith(("I", "F")):
        return "stretched"
    if image.format == "PNG" and content[24] == 16 and content[25] in _CHANNELS:
        return "upper bits"
    bits = getattr(image, "tag_v2", {}).get(258, ()) if image.format == "TIFF" else ()
    return "upper bits" if isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8 else ""
