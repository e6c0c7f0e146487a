"""Read any common picture as RGB."""

import re
import shlex
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from convlora.data.map_tags import without_data
from convlora.data.tiff import (
    count_pages,
    holds_numbers,
    misread,
    true_type,
    undecoded,
    unread_type,
    white_is_zero,
)
from convlora.errors import DataError

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"})

#: Of images in which nearly all pixels are the same.
_LEAST_SPAN = 1e-6

#: World files, coordinate systems, statistics and overviews.
_BESIDE_MAPS = (".tfw", ".tifw", ".jgw", ".jpgw", ".pgw", ".pngw", ".bpw", ".wld", ".prj", ".aux.xml", ".ovr")

#: Rows that are converted at once.
_BAND = 256

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Starts of files that are often found under the name of a picture.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS (get the file with `git lfs pull`)",
    b"<!doctype html": "a web page, as a failed download leaves it",
    b"<html": "a web page, as a failed download leaves it",
    b"<svg": "a vector drawing (SVG)",
    b"<?xml": "XML",
    b"%pdf": "a PDF",
    b"pk\x03\x04": "a ZIP archive",
}

_JPEG_2000 = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"

#: Pages keep their type, 16-bit ones too; `NAME_000.tif` is the first.
_SPLIT_STACK = (
    'Save the {pages} one by one and remove the file, for images and masks alike: python -c "import sys; '
    "from PIL import Image, ImageSequence as S; [p.save(sys.argv[1].rsplit('.', 1)[0] + f'_{{i:03}}.tif') "
    'for i, p in enumerate(S.Iterator(Image.open(sys.argv[1])))]" {file}'
)


class FileError(DataError):
    """A file that cannot be used: the message, and its parts for a report.

    Args:
        message: all of it; alone, it is enough to rebuild the error in another process.
        code: kind of problem.
        found: what is wrong.
        fix: what to do.
    """

    def __init__(self, message: str, code: str = "unreadable", found: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.code, self.found, self.fix = code, found or message, fix

    @classmethod
    def about(cls, path: Path, found: str, fix: str, code: str = "unreadable") -> "FileError":
        """Build the message from the file and what is wrong with it."""
        return cls(f"{path} {found}. {fix}", code, found, fix)


def is_image(path: Path) -> bool:
    """Whether the file name ends like an image's."""
    return path.suffix.lower().lstrip(".") in EXTENSIONS


def belongs_to_map(path: Path) -> bool:
    """Whether the file name ends like those that lie beside an image on a map: world files and the like."""
    return path.name.lower().endswith(_BESIDE_MAPS)


def holds_images(folder: Path) -> bool:
    """Whether a folder, or one in it, holds files whose names end like an image's."""
    return any(is_image(path) for pattern in ("*", "*/*") for path in folder.glob(pattern))


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """Open and decode one picture; EXIF orientation is not applied yet.

    Of a phone's JPEG with several pictures (format MPO), the first, which is the photograph, is taken, and of
    a TIFF that holds smaller copies of it (overviews) or its transparency the picture itself.

    Args:
        path: file.
        content: its bytes, where they have been read already.

    Raises:
        FileError: the file is missing, empty, cut off, of an unknown format, or has several frames.
    """
    try:
        with path.open("rb") if content is None else BytesIO(content) as file:
            image: Image.Image = Image.open(file)
            if wrong := misread(image):
                raise FileError.about(path, *wrong)
            frames = _count_frames(image, file)
            image.load()
    except FileNotFoundError as error:
        raise FileError.about(path, "does not exist", "Check the name.") from error
    except FileError:
        raise
    except Image.DecompressionBombError as error:
        found = f"has more pixels than can be read safely ({error})"
        fix = (
            "Cut it into tiles in files of their own (docs/rearrange.md has the program): a file is read "
            "whole, also where --tile is given."
        )
        raise FileError.about(path, found, fix) from error
    except (
        Exception
    ) as error:  # damaged files make decoders raise almost anything: struct, zlib, index errors
        unread = (unread_type if isinstance(error, UnidentifiedImageError) else undecoded)(path)
        if unread is not None:
            raise FileError.about(path, *unread) from error
        found = f"cannot be read as an image: {_reason(path, error)}"
        raise FileError.about(path, found, _fix(path)) from error
    if frames > 1:
        pages = "pages" if image.format == "TIFF" else "frames"
        found = f"holds {frames} {pages}; one file must be one picture"
        raise FileError.about(path, found, _SPLIT_STACK.format(pages=pages, file=shlex.quote(str(path))))
    return image


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB.

    8-bit grey, RGB, RGBA (the alpha channel is dropped), palette (through its colours), CMYK and 1-bit are
    read as Pillow converts them. 16-bit and float grey are stretched between their 0.1 and 99.9 percentile,
    because cameras rarely use the range of the type; NaN and infinite pixels, and those that hold what the
    file declares as 'no data', become black, and count in no percentile. Of 16-bit colour the upper 8 bits
    are read. EXIF orientation is applied.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        FileError: see `open_image`.
    """
    return to_float(read_pixels(path))


def read_pixels(path: Path) -> np.ndarray:
    """`read_image` in a quarter of the memory where 8 bits are all there is.

    Returns:
        (H, W, 3) uint8, or float32 in [0, 1] of 16-bit and float grey; `to_float` makes both the latter.

    Raises:
        FileError: see `open_image`.
    """
    return pixels_of(open_image(path))


def pixels_of(image: Image.Image) -> np.ndarray:
    """`read_pixels` of a picture that is decoded already."""
    if holds_numbers(image):
        values = true_type(np.asarray(upright(image)), image)
        grey = values.astype(np.float32)
        if (empty := without_data(values, image)) is not None:
            grey[empty] = np.nan
        if white_is_zero(image):  # as a viewer shows it; 8 bits Pillow has turned round itself
            grey = -grey
        return stretch_grey(grey)
    image = upright(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # in bands, because each conversion is a copy, and that into an array two
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        if band.mode == "P" and "transparency" in image.info:
            band = band.convert("RGBA")
        pixels[top : top + _BAND] = np.asarray(band.convert("RGB"))
    return pixels


def stretch_grey(grey: np.ndarray) -> np.ndarray:
    """Stretch an array as files of 16-bit and float grey are when they are read.

    Args:
        grey: (H, W), whole numbers or floats; NaN and infinite ones become black.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        DataError: the array has another shape or type.
    """
    if grey.ndim != 2 or not grey.size or grey.dtype.kind not in "iuf":
        found = f"The array has the shape {grey.shape} and holds {grey.dtype}"
        raise DataError(f"{found}; it must be (height, width) and hold numbers. Give one band.")
    return np.repeat(_stretch(grey.astype(np.float32, copy=False))[..., None], 3, axis=2)


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Pixels of `read_pixels` as float32 in [0, 1]."""
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (as stored) to 8; 5 to 8 swap height and width."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata, which viewers ignore too
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; Pillow's own function fails where the metadata is damaged."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) as shown, EXIF orientation applied."""
    width, height = image.size
    return (width, height) if orientation(image) in {5, 6, 7, 8} else (height, width)


def _count_frames(image: Image.Image, file: IO[bytes]) -> int:
    """Pictures in a file, but for previews and smaller copies of the first."""
    if image.format == "TIFF":
        return count_pages(file)
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _stretch(grey: np.ndarray) -> np.ndarray:
    finite = np.isfinite(grey)
    low, span = _black_and_span(grey[finite]) if finite.any() else (0.0, 0.0)
    filled = np.where(finite, grey, low)
    return np.clip((filled - low) / (span or 1), 0, 1).astype(np.float32)


def _black_and_span(values: np.ndarray) -> tuple[float, float]:
    """What is shown black, and how much more is white; 0 where all are the same.

    Where nearly all are the same, what is brighter is white; the percentiles tell no more of it.
    """
    low, high = np.percentile(values, (0.1, 99.9))
    if high > low:
        return low, high - low
    least, most = float(values.min()), float(values.max())
    return (low, _LEAST_SPAN) if most - low >= _LEAST_SPAN else (least, most - least)


def _fix(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        head = b""
    if head.startswith(_JPEG_2000):
        return "Replace it, or save it as a TIFF: gdal_translate -of GTiff OLD.jp2 NEW.tif."
    return "Replace or remove the file."


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file that no decoder takes; decoders tell little, or of objects in memory."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return str(error)
    if not head:
        return "the file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        said = next((what for start, what in _OTHERS.items() if head.lstrip().lower().startswith(start)), "")
        return (
            f"it is {said}, not a picture" if said else "its content is no picture of a format that is read"
        )
    text = re.sub(r"<_io\.\w+[^>]*>", path.name, str(error))
    return text or type(error).__name__
