"""Checks of the files: pairs, readability, sizes, copies. Each looks at facts only and yields problems."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convlora.data.check_formats import check_formats
from convlora.data.check_maps import check_maps
from convlora.data.check_pairs import check_pairing
from convlora.data.labels import Label
from convlora.data.layout import Folder, Pair, pair_by_stem
from convlora.data.report import Problem
from convlora.data.scan import ImageFacts, MaskFacts, hash_pixels

_SMALL = 8  # pixels
_LONG = 10  # times as long as wide
_QUARTER = 5  # EXIF orientations from here on swap height and width


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
            yield from check_pairing(folder)
    yield from _check_readable(scanned)
    yield from _check_sizes(scanned)
    yield from _check_orientation(scanned)
    yield from check_formats(scanned.images, scanned.masks)
    yield from check_maps(scanned.folders, scanned.images, scanned.masks)
    yield from _check_pictures(scanned)
    yield from _check_same_masks(scanned)


def check_copies(
    folders: Iterable[Folder], splits: Mapping[str, Iterable[Pair]], images: Mapping[Path, ImageFacts]
) -> Iterator[Problem]:
    """The same picture in two splits, also where the splits were made here, or twice in one.

    Pictures are compared by their pixels, so that a copy in another lossless format is found.
    """
    yield from _check_used_twice(folders)
    place = {path: folder.split for folder in folders for path in folder.images}
    place |= {pair.image: split for split, pairs in splits.items() for pair in pairs}
    first: dict[str, Path] = {}
    for path, digest in _same_pixels(place, images):
        known = first.setdefault(digest, path)
        if known == path:
            continue
        if place[path] != place[known]:
            found = f"in {place[path]}, the same picture as {known} in {place[known]}"
            rule = "No picture may be in two splits: the scores would be too good."
            yield Problem("error", "same-image", str(path), found, rule, "Remove it from one of them.")
        else:
            found = f"the same picture as {known}"
            rule = "It counts twice."
            fix = "Remove one of them; if their masks differ, the one with the wrong mask."
            yield Problem("warning", "repeated-image", str(path), found, rule, fix)


def _check_used_twice(folders: Iterable[Folder]) -> Iterator[Problem]:
    """One file in two splits, as a data.yaml or two jsons may name it."""
    first: dict[Path, str] = {}
    for folder in folders:
        for path in folder.images:
            known = first.setdefault(path, folder.split)
            if known != folder.split:
                found = f"the file is in {known} and in {folder.split}"
                rule = "No picture may be in two splits: the scores would be too good."
                yield Problem("error", "same-image", str(path), found, rule, "Remove it from one of them.")


def _same_pixels(paths: Iterable[Path], images: Mapping[Path, ImageFacts]) -> Iterator[tuple[Path, str]]:
    """Files that may have a copy, with a hash that copies share; all pixels are hashed for few files only."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if images[path].sample:
            groups[images[path].sample].append(path)
    for group in groups.values():
        if len(group) < 2:
            continue
        exact = len({images[path].digest for path in group}) == 1
        for path in group:
            yield path, images[path].digest if exact else hash_pixels(path)


def _check_readable(scanned: Scanned) -> Iterator[Problem]:
    for kind, files in (("image", scanned.images), ("mask", scanned.masks)):
        for place, facts in files.items():
            lossy = isinstance(facts, MaskFacts) and facts.lossy  # its colours come from the format
            if facts.error and not (lossy and facts.error.code == "colour-mask"):
                code = f"unreadable-{kind}" if facts.error.code == "unreadable" else facts.error.code
                rule = f"Every {kind} must be readable."
                yield Problem("error", code, str(place), facts.error.found, rule, facts.error.fix)


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
    for pair in (pair for folder in scanned.folders for pair in pair_by_stem(folder)):
        image, mask = scanned.images[pair.image], scanned.masks[pair.mask]
        if (
            image.size
            and image.turned != mask.turned
            and image.size == mask.size
            and not _is_proof(image, mask)
        ):
            found = "its EXIF tag turns it, but not its mask in the same way"
            rule = "Images are used as a viewer shows them."
            fix = "Look at the pair: the mask must fit the image as shown."
            yield Problem("warning", "exif-orientation", str(pair.image), found, rule, fix)


def _is_proof(image: ImageFacts, mask: MaskFacts) -> bool:
    """Whether one is turned by a quarter, and fits the other, which has no tag, in this way only."""
    quarter, straight = max(image.turned, mask.turned), min(image.turned, mask.turned)
    return quarter >= _QUARTER and straight == 1 and image.size is not None and image.size[0] != image.size[1]


def _check_pictures(scanned: Scanned) -> Iterator[Problem]:
    """Images that hold next to nothing."""
    for image in scanned.images.values():
        if image.size is None:
            continue
        shown = f"{image.size[0]} x {image.size[1]} (height x width)"
        if min(image.size) < _SMALL:
            rule = f"Nothing can be seen below {_SMALL} pixels."
            fix = "Remove it, or export it larger."
            yield Problem("warning", "tiny-image", str(image.path), f"only {shown}", rule, fix)
        elif max(image.size) > _LONG * min(image.size):
            rule = "The longest side is scaled to the model's input, so that little is left of the other."
            yield Problem("warning", "elongated-image", str(image.path), shown, rule, "Cut it into tiles.")
        if image.blank and min(image.size) >= _SMALL:
            rule = "Nothing can be learnt from it."
            fix = "Look at the file: the export may have failed. Remove it if so."
            yield Problem("warning", "blank-image", str(image.path), "all pixels are the same", rule, fix)


def _check_same_masks(scanned: Scanned) -> Iterator[Problem]:
    """One mask for all images is an export that went wrong, unless nothing is in any of them."""
    masks = [mask for mask in scanned.masks.values() if not mask.error]
    kinds = Counter((mask.size, mask.digest) for mask in masks)
    if len(masks) > 2 and len(kinds) == 1 and len(masks[0].counts) > 1:
        rule = "Masks differ as images do."
        fix = "Look at a few, and export them again."
        found = f"all {len(masks)} masks are the same"
        yield Problem("warning", "same-masks", str(masks[0].label), found, rule, fix)
