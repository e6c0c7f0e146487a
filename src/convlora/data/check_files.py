"""Checks of the files: pairs, readability, sizes, copies. Each looks at facts only and yields problems."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convlora.data.labels import Label
from convlora.data.layout import Folder, Pair, pair_by_stem
from convlora.data.report import Problem
from convlora.data.scan import ImageFacts, MaskFacts


@dataclass(frozen=True)
class Scanned:
    """Everything that the checks look at."""

    folders: list[Folder]
    images: dict[Path, ImageFacts]
    masks: dict[Label, MaskFacts]


def check_files(scanned: Scanned) -> Iterator[Problem]:
    """All that can be said of files without their splits and classes."""
    for folder in scanned.folders:
        if folder.pairs is None:
            yield from _check_pairing(folder)
        for stray in folder.others:
            yield Problem(
                "warning", "stray-file", str(stray), "not an image", "It is not used.", "Move it away."
            )
    yield from _check_readable(scanned)
    yield from _check_sizes(scanned)
    yield from _check_orientation(scanned)
    yield from _check_jpeg_masks(scanned)


def check_copies(
    folders: Iterable[Folder], splits: Mapping[str, Iterable[Pair]], images: Mapping[Path, ImageFacts]
) -> Iterator[Problem]:
    """The same picture in two splits, also where the splits were made here."""
    place = {path: folder.split for folder in folders for path in folder.images}
    place |= {pair.image: split for split, pairs in splits.items() for pair in pairs}
    first: dict[str, Path] = {}
    for path, split in place.items():
        digest = images[path].digest
        known = first.setdefault(digest, path)
        if digest and split != place[known]:
            found = f"in {split}, the same picture as {known} in {place[known]}"
            rule = "No picture may be in two splits: the scores would be too good."
            yield Problem("error", "same-image", str(path), found, rule, "Remove it from one of them.")


def _check_pairing(folder: Folder) -> Iterator[Problem]:
    rule = "An image and its mask have the same name but for the ending."
    groups: dict[str, dict[str, list[Path | Label]]] = {
        "image": _by_stem(folder.images),
        "mask": _by_stem(folder.masks),
    }
    for kind, other in (("image", "mask"), ("mask", "image")):
        for stem, paths in groups[kind].items():
            if len(paths) > 1:
                found = f"{len(paths)} files of one name: {', '.join(p.name for p in paths)}"
                yield Problem("error", "duplicate-stem", str(paths[0]), found, rule, "Keep one of them.")
            if stem not in groups[other]:
                place = f"{folder.split}/{other}s"
                fix = f"Add {stem}.png to {place}, or remove this file."
                yield Problem("error", f"missing-{other}", str(paths[0]), f"no {other} in {place}", rule, fix)
        clashes = _by_stem(folder.images if kind == "image" else folder.masks, lower=True)
        for paths in clashes.values():
            if len({p.stem for p in paths}) > 1:
                found = f"differs only in case from {paths[1].name}"
                fix = "Rename one; some file systems cannot tell them apart."
                yield Problem("error", "case-clash", str(paths[0]), found, rule, fix)


def _by_stem(paths: Iterable[Path | Label], lower: bool = False) -> dict[str, list[Path | Label]]:
    groups: dict[str, list[Path | Label]] = defaultdict(list)
    for path in paths:
        groups[path.stem.lower() if lower else path.stem].append(path)
    return groups


def _check_readable(scanned: Scanned) -> Iterator[Problem]:
    for kind, files in (("image", scanned.images), ("mask", scanned.masks)):
        for facts in files.values():
            if facts.error:
                code = f"unreadable-{kind}" if facts.error.code == "unreadable" else facts.error.code
                rule = f"Every {kind} must be readable."
                yield Problem("error", code, str(facts.path), facts.error.found, rule, facts.error.fix)


def _check_sizes(scanned: Scanned) -> Iterator[Problem]:
    for pair in (pair for folder in scanned.folders for pair in pair_by_stem(folder)):
        image, mask = scanned.images[pair.image].size, scanned.masks[pair.mask].size
        if image and mask and image != mask:
            found = f"{mask[0]} x {mask[1]}, but its image is {image[0]} x {image[1]} (height x width)"
            rule = "An image and its mask have the same size."
            fix = "Export the mask again at the image's size."
            if image == mask[::-1]:
                fix = "One is turned: apply the photograph's EXIF orientation to the mask, or remove it."
            yield Problem("error", "size-mismatch", str(pair.mask), found, rule, fix)


def _check_orientation(scanned: Scanned) -> Iterator[Problem]:
    """A photograph may be turned by its EXIF tag and its mask not, without a change of size."""
    doubtful = []
    for pair in (pair for folder in scanned.folders for pair in pair_by_stem(folder)):
        image, mask = scanned.images[pair.image], scanned.masks[pair.mask]
        if image.turned != mask.turned and image.size == mask.size:
            doubtful.append(pair.image)
    if doubtful:
        found = f"{len(doubtful)} images have another EXIF turn than their masks, first {doubtful[0].name}"
        rule = "Images are used as a viewer shows them."
        fix = "Look at a few pairs: the masks must fit the images as shown."
        yield Problem("warning", "exif-orientation", "images", found, rule, fix)


def _check_jpeg_masks(scanned: Scanned) -> Iterator[Problem]:
    for mask in scanned.masks.values():
        if mask.path.suffix.lower() in {".jpg", ".jpeg"} and not mask.error:
            found = f"JPEG with {len(mask.counts)} different values"
            rule = "JPEG changes the values of a mask."
            fix = "Save masks as PNG, from the original labels."
            severity: Literal["error", "warning"] = "error" if len(mask.counts) > 2 else "warning"
            yield Problem(severity, "jpeg-mask", str(mask.path), found, rule, fix)
