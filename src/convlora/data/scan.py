"""Facts about every file, gathered once and in parallel; the checks look at these."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import cpu_count
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from convlora.data.complaints import listening, of_file
from convlora.data.formats import count_gaps, depth, lossy_format, varying_alpha
from convlora.data.images import FileError, displayed_size, open_image, orientation
from convlora.data.labels import Label, MaskFile
from convlora.data.map_tags import Place, place_of
from convlora.data.masks import index_colours
from convlora.data.progress import ShowProgress, no_progress
from convlora.data.tiff import dropped_bands, white_is_zero

_SAMPLES = 32  # rows and columns of the pixels by which copies are looked for
_USUAL = (0, 1, 255, 2, 3)  # values of masks that are counted first
_Item = TypeVar("_Item")
_Facts = TypeVar("_Facts")


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image."""

    path: Path
    size: tuple[int, int] | None  # (H, W) as shown; None where it cannot be read
    digest: str = ""  # of the bytes
    turned: int = 1  # EXIF orientation
    error: FileError | None = None
    sample: str = ""  # hash of some pixels: equal in copies, whatever their format
    blank: bool = False  # whether all pixels have one colour
    deep: str = ""  # what is to be known of more than 8 bits: 'stretched', 'upper bits', or ''
    odd: int = 0  # pixels that are NaN or infinite
    empty: int = 0  # pixels that hold what the file declares as 'no data'
    place: Place | None = None  # on a map
    told: tuple[Warning, ...] = ()  # by the decoder
    dropped: int = 0  # bands that are not read, but for alpha
    alpha: tuple[int, int] | None = None  # smallest and largest, where it varies


@dataclass(frozen=True)
class MaskFacts:
    """What is known of a mask."""

    label: Label
    size: tuple[int, int] | None
    counts: dict[int, int] = field(default_factory=dict)  # value -> pixels
    digest: str = ""
    turned: int = 1
    error: FileError | None = None
    lossy: str = ""  # format that changes the values of a mask, such as JPEG, or ''
    alpha: tuple[int, int] | None = None  # smallest and largest, where it varies
    told: tuple[Warning, ...] = ()
    deep: str = ""  # see `ImageFacts`
    dropped: int = 0  # see `ImageFacts`
    place: Place | None = None  # on a map
    reverse: bool = False  # whether a viewer shows 0 white, which counts for colours only
    colours: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # of the values of an indexed mask


def scan_image(path: Path) -> ImageFacts:
    """Read one image once: decode it, hash its bytes and some of its pixels."""
    with of_file() as told:
        try:
            content = _read(path)
            image = open_image(path, content)
        except FileError as error:
            return ImageFacts(path, None, error=error)
        digest = hashlib.sha256(content).hexdigest()
        few = _as_shown(image.resize((_SAMPLES, _SAMPLES), Image.Resampling.NEAREST))
        blank = _is_flat(few) and _is_flat(_as_shown(image))
        sample = hashlib.sha256(f"{image.size} {few.mode}".encode() + few.tobytes()).hexdigest()
        size, turned = displayed_size(image), orientation(image)
        empty, odd = count_gaps(image)
    return ImageFacts(
        path,
        size,
        digest,
        turned,
        sample=sample,
        blank=blank,
        deep=depth(image, content),
        odd=odd,
        empty=empty,
        place=place_of(image),
        told=tuple(told),
        dropped=dropped_bands(image),
        alpha=varying_alpha(image),
    )


def hash_pixels(path: Path) -> str:
    """Hash of all pixels: the same for copies in any lossless format; '' if it cannot be read."""
    try:
        with listening():
            image = _as_shown(open_image(path))
    except FileError:
        return ""
    return hashlib.sha256(f"{image.size} {image.mode}".encode() + image.tobytes()).hexdigest()


def scan_mask(label: Label) -> MaskFacts:
    """Read one label once, count its values and hash it."""
    facts, digest = MaskFacts(label, None), ""
    with of_file() as told:
        try:
            if isinstance(label, MaskFile):
                content = _read(label.path)
                image = open_image(label.path, content)
                facts = _of_mask_file(label, image, content)
                values = label.interpret(image)
                if label.palette is None:
                    digest = hashlib.sha256(content).hexdigest()
            else:
                values = label.read()
        except FileError as error:
            return replace(facts, error=error)
    height, width = values.shape
    digest, counts = digest or label.digest(values), _count(values)
    colours = {value: facts.colours[value] for value in counts if value in facts.colours}
    known = replace(facts, size=(height, width), counts=counts, colours=colours)
    return replace(known, digest=digest, told=tuple(told))


def _of_mask_file(label: MaskFile, image: Image.Image, content: bytes) -> MaskFacts:
    """What the format of a mask does to its pixels."""
    return MaskFacts(
        label,
        None,
        turned=orientation(image),
        lossy=lossy_format(image, content),
        alpha=varying_alpha(image),
        deep=depth(image, content),
        dropped=dropped_bands(image),
        place=place_of(image),
        reverse=label.palette is None and image.mode not in {"P", "PA"} and white_is_zero(image),
        colours=index_colours(image) if label.palette is None else {},
    )


def scan_all(
    images: Iterable[Path],
    masks: Iterable[Label],
    workers: int | None = None,
    progress: ShowProgress = no_progress,
) -> tuple[dict[Path, ImageFacts], dict[Label, MaskFacts]]:
    """Scan all files in threads (Pillow decodes outside the interpreter's lock).

    Args:
        images: image files.
        masks: labels; one that is given twice is scanned once.
        workers: threads; by default as many as processors.
        progress: shows how far it is.
    """
    paths, labels = list(dict.fromkeys(images)), list(dict.fromkeys(masks))
    pool = ThreadPoolExecutor(workers or cpu_count() or 1)
    with listening(), progress(len(paths) + len(labels)) as advance:
        try:
            image_facts = pool.map(_then(scan_image, advance), paths)
            mask_facts = pool.map(_then(scan_mask, advance), labels)
            return {f.path: f for f in image_facts}, {f.label: f for f in mask_facts}
        finally:
            pool.shutdown(cancel_futures=True)  # else Ctrl-C waits for all files


def _then(scan: Callable[[_Item], _Facts], advance: Callable[[], None]) -> Callable[[_Item], _Facts]:
    def scanned(item: _Item) -> _Facts:
        facts = scan(item)
        advance()
        return facts

    return scanned


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileError.about(path, "does not exist", "Check the name.") from error
    except OSError as error:
        found = f"cannot be read: {error.strerror or error}"
        raise FileError.about(
            path, found, "Replace the file, or give yourself the right to read it."
        ) from error


def _count(values: np.ndarray) -> dict[int, int]:
    """Pixels of each value; comparing is faster than a histogram, and most masks hold few values."""
    found, left = {}, values.size
    for value in _USUAL:
        if pixels := int(np.count_nonzero(values == value)):
            found[value] = pixels
            left -= pixels
        if not left:
            return dict(sorted(found.items()))
    counts = Image.fromarray(values).histogram()  # numpy's bincount first makes 64-bit numbers of the pixels
    return {value: pixels for value, pixels in enumerate(counts) if pixels}


def _as_shown(image: Image.Image) -> Image.Image:
    """In a mode that does not tell how the picture was stored; deep grey keeps its values."""
    if image.mode.startswith("I;16"):  # in either order of bytes; of I;16B Pillow knows no extrema
        return image.convert("I")
    if image.mode.startswith(("I", "F")):
        return image
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_flat(image: Image.Image) -> bool:
    extremes = np.asarray(image.getextrema()).reshape(-1, 2)
    return bool((extremes[:, 0] == extremes[:, 1]).all())
