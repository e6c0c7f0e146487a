"""TIFFs hold more kinds of numbers than other pictures: what their tags say, and what Pillow makes of it."""

from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _MEANING = 256, 257, 258, 259, 262
_ROLE, _SMALLER, _TRANSPARENCY = 254, 1, 4  # NewSubfileType and its bits
_BANDS, _PLANES, _EXTRA, _KIND = 277, 284, 338, 339
_STRIPS, _TILES = 273, 324  # where they begin
_APART = 2  # each band by itself
_OLD_JPEG = 6  # Pillow takes its pixels for colours, whatever the tag says
_SIGNED = 2
_ALPHA = {1, 2, 999}
_KINDS = {1: "uint", _SIGNED: "int", 3: "float", 5: "complex int", 6: "complex"}
_MEANINGS = {0: "grey", 1: "grey", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # bands of each; all others have one
#: uint32 is read too, but in one order of bytes only.
_READ = "read are one band of uint8, uint16, int8, int16, int32 or float32, and RGB of uint8 or uint16"
_ONE = "Save an image as uint16 or float32, a mask as an 8-bit PNG of class ids."
_SOME = "Save one band, an image as uint16 or float32, a mask as an 8-bit PNG of class ids."
#: Compressions that Pillow knows and its decoder may have been built without.
_OPTIONAL = {34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_COMPRESS = "Save it with Deflate or LZW: gdal_translate -co COMPRESS=DEFLATE OLD.tif NEW.tif."
_MARK = "Mark the three as red, green and blue: gdal_translate -co PHOTOMETRIC=RGB OLD.tif NEW.tif."
_THREE = (
    "Choose three bands, scale them to 8 bits and save them as RGB (docs/rearrange.md has a program, which "
    "keeps the place on the map); a mask has one band, of 8 bits."
)


def white_is_zero(image: Image.Image) -> bool:
    """Whether the file says that its grey 0 is shown white.

    Pillow turns 1-bit and 8-bit values round then, as a viewer does, but not 16-bit and float ones.
    """
    if image.format != "TIFF" or _first(image, _COMPRESSION, 1) == _OLD_JPEG:
        return False
    return _first(image, _MEANING, 0) == 0  # Pillow's reading where there is no tag


def holds_numbers(image: Image.Image) -> bool:
    """Whether the pixels are one channel of numbers that 0 to 255 cannot hold."""
    return image.mode.startswith(("I", "F")) or _is_int8(image)


def true_type(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Decoded values in the file's own type: Pillow has neither uint32 nor int8, and lets them wrap.

    Args:
        values: (H, W), Pillow's.
        image: where they come from, with its tags.
    """
    if _is_int8(image):
        return values.view(np.int8)
    if image.mode == "I" and _first(image, _BITS, 0) == 32 and _first(image, _KIND, 1) == 1:
        return values.view(np.uint32)
    return values


def count_pages(file: IO[bytes]) -> int:
    """Pages of a TIFF that are pictures of their own, not smaller copies of the first or its transparency.

    GeoTIFFs often hold both, as overviews and an internal mask, and Pillow, which takes them for pages, fails
    at the latter. The file is left where it was.
    """
    before = file.tell()
    file.seek(0)
    tags = _head(file)
    pages, seen = 0, set[int]()
    while tags.next and tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        role = tags.get(_ROLE, 0)
        pages += len(seen) == 1 or not role & (_SMALLER | _TRANSPARENCY)
    file.seek(before)
    return pages


def tag_values(image: Image.Image, tag: int) -> tuple[Any, ...]:
    """Values of a tag; other formats have none."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def dropped_bands(image: Image.Image) -> int:
    """Bands beside the colours that are no alpha channel, such as near infrared; Pillow leaves them out."""
    if image.format != "TIFF":
        return 0
    colours = _COLOURS.get(_first(image, _MEANING, 0), 1)
    alpha = sum(kind in _ALPHA for kind in tag_values(image, _EXTRA))
    return max(0, _first(image, _BANDS, 1) - colours - alpha)


def misread(image: Image.Image) -> tuple[str, str] | None:
    """What Pillow would read as other pixels than are there, and what to do; None where all is well.

    Args:
        image: opened; it need not be decoded.
    """
    if image.format != "TIFF":
        return None
    deep = max(tag_values(image, _BITS) or (1,)) > 8 and _first(image, _BANDS, 1) > 1
    if deep and _first(image, _PLANES, 1) == _APART and _first(image, _COMPRESSION, 1) == 1:
        found = "is an uncompressed TIFF of more than 8 bits with each band by itself, which is not read"
        fix = "; with tifffile, write an array (height, width, 3)."
        return found, _COMPRESS.removesuffix(".") + fix
    if 0 in tag_values(image, _STRIPS) or 0 in tag_values(image, _TILES):
        found = "is a sparse TIFF: it leaves out tiles or strips without data, which is not read"
        return found, "Save it whole: gdal_translate -co COMPRESS=DEFLATE OLD.tif NEW.tif."
    return None


def undecoded(path: Path) -> tuple[str, str] | None:
    """What to say of a TIFF that was recognised and not decoded; None where its tags do not tell."""
    try:
        name = _OPTIONAL.get(_tags(path).get(_COMPRESSION, 1))
    except Exception:  # damaged tags, or no TIFF
        return None
    if name is None:
        return None
    return f"is a TIFF with {name} compression, which cannot be read here, or is damaged", _COMPRESS


def unread_type(path: Path) -> tuple[str, str] | None:
    """What a TIFF holds that Pillow does not know, and what to do; None where its tags do not tell."""
    try:
        tags = _tags(path)
        if not all(isinstance(tags.get(tag), int) for tag in (_WIDTH, _LENGTH)):
            return None
        compression = tags.get(_COMPRESSION, 1)
        if compression not in COMPRESSION_INFO:
            found = f"is a TIFF whose compression (number {compression}) is not read"
            return found, _COMPRESS
        bands = int(tags.get(_BANDS, 1))
        kinds = dict.fromkeys(zip(_pad(tags.get(_KIND, 1)), _pad(tags.get(_BITS, 1)), strict=False))
        types = " and ".join(f"{_KINDS.get(kind, 'unknown ')}{bits}" for kind, bits in kinds)
        meaning = _MEANINGS.get(tags.get(_MEANING, 0), f"PhotometricInterpretation {tags.get(_MEANING)}")
    except Exception:  # Pillow raises anything at damaged tags; the file is refused anyway, in general words
        return None
    named = "one band" if bands == 1 else f"{bands} bands"
    fix = _ONE if bands == 1 else _SOME if bands == 2 else _THREE
    if bands == 3 and [*kinds] == [(1, 8)]:
        fix = _MARK
    return f"is a TIFF with {named} of {types}, marked as {meaning}; {_READ}", fix


def _tags(path: Path) -> ImageFileDirectory_v2:
    with path.open("rb") as file:
        tags = _head(file)
        file.seek(tags.next)
        tags.load(file)
    return tags


def _head(file: IO[bytes]) -> ImageFileDirectory_v2:
    """No tags yet; `next` is where the first are."""
    head = file.read(8)
    if 43 in head[2:4]:  # BigTIFF
        head += file.read(8)
    return ImageFileDirectory_v2(head)


def _is_int8(image: Image.Image) -> bool:
    return image.mode == "L" and image.format == "TIFF" and _first(image, _KIND, 1) == _SIGNED


def _first(image: Image.Image, tag: int, default: int) -> int:
    value: int = next(iter(tag_values(image, tag)), default)
    return value


def _pad(values: int | tuple[int, ...]) -> tuple[int, ...]:
    """Values of all bands, of which some files give the first only."""
    some = values if isinstance(values, tuple) else (values,)
    return some + some[-1:] * 8
