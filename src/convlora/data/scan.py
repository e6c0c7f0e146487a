"""Facts about every file, gathered once and in parallel; the checks look at these."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import cpu_count
from pathlib import Path

import numpy as np

from convlora.data.images import FileError, displayed_size, open_image, orientation
from convlora.data.labels import Label


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image."""

    path: Path
    size: tuple[int, int] | None  # (H, W) as shown; None where it cannot be read
    digest: str = ""
    turned: int = 1  # EXIF orientation
    error: FileError | None = None


@dataclass(frozen=True)
class MaskFacts:
    """What is known of a mask."""

    path: Label
    size: tuple[int, int] | None
    counts: dict[int, int] = field(default_factory=dict)  # value -> pixels
    digest: str = ""
    turned: int = 1
    error: FileError | None = None


def scan_image(path: Path) -> ImageFacts:
    """Decode one image and hash its bytes."""
    try:
        image = open_image(path)
    except FileError as error:
        return ImageFacts(path, None, error=error)
    return ImageFacts(path, displayed_size(image), _digest(path), orientation(image))


def scan_mask(label: Label) -> MaskFacts:
    """Read one label, count its values and hash it."""
    try:
        turned = label.turned()
        values = label.read()
    except FileError as error:
        return MaskFacts(label, None, error=error)
    counts = np.bincount(values.ravel(), minlength=1)
    ids = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    height, width = values.shape
    return MaskFacts(label, (height, width), ids, label.digest(values), turned)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scan_all(
    images: Iterable[Path],
    masks: Iterable[Label],
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
) -> tuple[dict[Path, ImageFacts], dict[Label, MaskFacts]]:
    """Scan all files in threads (Pillow decodes outside the interpreter's lock).

    Args:
        images: image files.
        masks: labels; one that is given twice is scanned once.
        workers: threads; by default as many as processors.
        progress: called after each file.
    """

    def scanned_image(path: Path) -> ImageFacts:
        facts = scan_image(path)
        if progress:
            progress()
        return facts

    def scanned_mask(label: Label) -> MaskFacts:
        facts = scan_mask(label)
        if progress:
            progress()
        return facts

    with ThreadPoolExecutor(workers or cpu_count() or 1) as pool:
        image_facts = pool.map(scanned_image, dict.fromkeys(images))
        mask_facts = pool.map(scanned_mask, dict.fromkeys(masks))
        return {f.path: f for f in image_facts}, {f.path: f for f in mask_facts}
