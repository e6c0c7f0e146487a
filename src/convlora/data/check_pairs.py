"""Checks of names: which image belongs to which mask, and what to rename where they have no partner."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from convlora.data.hints import closeness, group, same_numbering
from convlora.data.labels import Label
from convlora.data.layout import Folder
from convlora.data.report import Problem

_RULE = "An image and its mask have the same name but for the ending."
_File = TypeVar("_File", bound=Path | Label)


def check_pairing(folder: Folder) -> Iterator[Problem]:
    """Files without a partner, with two, or with names that a file system may mix up."""
    images, masks = _by_stem(folder.images), _by_stem(folder.masks)
    renamed = _find_pattern(images, masks)
    for image, mask in renamed:
        found = closeness(image.stem, mask.stem).format(image.name)
        fix = f"Rename it to {image.stem}{mask.suffix.lower()}, or pair all in a table (data.csv)."
        yield Problem("error", "name-pattern", str(mask), found, _RULE, fix)
    known = {image.stem for image, _ in renamed}, {mask.stem for _, mask in renamed}
    for image, close in _find_several(images, masks):
        found = f"{len(close)} masks have names close to it: {', '.join(mask.name for mask in close)}"
        name = f"{image.stem}{close[0].suffix.lower()}"
        fix = f"Rename the one that holds class ids to {name}; move the others away."
        yield Problem("error", "name-pattern", str(image), found, _RULE, fix)
        known[0].add(image.stem)
        known[1].update(mask.stem for mask in close)
    yield from _check_kind("mask", folder.split, images, masks.keys() | known[0])
    yield from _check_kind("image", folder.split, masks, images.keys() | known[1])


def _check_kind(
    other: str, split: str, groups: dict[str, list[_File]], partners: set[str]
) -> Iterator[Problem]:
    lower: dict[str, list[_File]] = defaultdict(list)
    for stem, paths in groups.items():
        lower[stem.lower()].append(paths[0])
        if len(paths) > 1:
            found = f"{len(paths)} files of one name: {', '.join(p.name for p in paths)}"
            yield Problem("error", "duplicate-stem", str(paths[0]), found, _RULE, "Keep one of them.")
        if stem not in partners:
            place = f"{other}s" if split == "all" else f"{split}/{other}s"
            fix = f"Add {stem}.png to {place}, or remove this file."
            yield Problem("error", f"missing-{other}", str(paths[0]), f"no {other} in {place}", _RULE, fix)
    for paths in lower.values():
        for path in paths[1:]:
            found = f"differs only in case from {paths[0].name}"
            fix = "Rename one; some file systems cannot tell them apart."
            yield Problem("error", "case-clash", str(path), found, _RULE, fix)


def _find_pattern(images: dict[str, list[Path]], masks: dict[str, list[Label]]) -> list[tuple[Path, Label]]:
    """Images and masks without partner whose names are close, and close to no other."""
    lonely, found = group(images.keys() - masks.keys()), group(masks.keys() - images.keys())
    sure = [key for key in found if len(found[key]) == 1 and len(lonely.get(key, ())) == 1]
    partners = {found[key][0]: lonely[key][0] for key in sure}
    if not partners:
        partners = same_numbering(sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys()))
    pairs = [(images[image][0], masks[mask][0]) for mask, image in partners.items()]
    return sorted(pairs, key=lambda pair: pair[1].name)


def _find_several(
    images: dict[str, list[Path]], masks: dict[str, list[Label]]
) -> Iterator[tuple[Path, list[Label]]]:
    """Images without partner, whose names several masks without one are close to."""
    lonely, found = group(images.keys() - masks.keys()), group(masks.keys() - images.keys())
    for key, stems in sorted(lonely.items()):
        if len(stems) == 1 and len(found.get(key, ())) > 1:
            yield images[stems[0]][0], [masks[stem][0] for stem in sorted(found[key])]


def _by_stem(paths: Iterable[_File] | Sequence[_File]) -> dict[str, list[_File]]:
    groups: dict[str, list[_File]] = defaultdict(list)
    for path in paths:
        groups[path.stem].append(path)
    return groups
