"""Checks of names: which image belongs to which mask, and what to rename where they have no partner."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from convlora.data.labels import Label
from convlora.data.layout import Folder
from convlora.data.report import Problem

_RULE = "An image and its mask have the same name but for the ending."
#: What exports put before or after the name of an image, or of its mask.
_WORDS = (
    "mask|masks|gt|groundtruth|ground_truth|label|labels|labelids|labeltrainids|seg|segm|segmentation|"
    "annotation|ann|anno|matte|target|truth|manual1|image|images|img|im|rgb|photo|sat|leftimg8bit|gtfine|gtcoarse|"
    "png|jpg|jpeg|bmp|tif|tiff|webp"
)
#: The same without a sign between, at a number: mask00, 00mask.
_JOINED = re.compile(rf"^({_WORDS})(?=\d)|(?<=\d)({_WORDS})$")
_AFFIX = re.compile(rf"[ ._-]+({_WORDS})$|^({_WORDS})[ ._-]+")

_File = TypeVar("_File", bound=Path | Label)


def check_pairing(folder: Folder) -> Iterator[Problem]:
    """Files without a partner, with two, or with names that a file system may mix up."""
    images, masks = _by_stem(folder.images), _by_stem(folder.masks)
    renamed = _find_pattern(images, masks)
    for image, mask in renamed:
        same = _plain(image.stem) == _plain(mask.stem)
        found = f"its name is not that of an image, but close to {image.name}"
        if same:
            found = f"its name and {image.name} look the same, but differ in blanks or in Unicode form"
        fix = f"Rename it to {image.stem}{mask.suffix.lower()}."
        yield Problem("error", "name-pattern", str(mask), found, _RULE, fix)
    known = {image.stem for image, _ in renamed}, {mask.stem for _, mask in renamed}
    yield from _check_kind("image", "mask", folder.split, images, masks.keys() | known[0])
    yield from _check_kind("mask", "image", folder.split, masks, images.keys() | known[1])


def _check_kind(
    kind: str, other: str, split: str, groups: dict[str, list[_File]], partners: set[str]
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
    """Images and masks without partner whose names are the same once words such as 'mask' are cut off."""
    lonely: dict[str, list[Path]] = defaultdict(list)
    for stem in images.keys() - masks.keys():
        lonely[_core(stem)].append(images[stem][0])
    found: dict[str, list[Label]] = defaultdict(list)
    for stem in masks.keys() - images.keys():
        found[_core(stem)].append(masks[stem][0])
    sure = (core for core in found if len(found[core]) == 1 and len(lonely.get(core, ())) == 1)
    pairs = [(lonely[core][0], found[core][0]) for core in sure]
    return sorted(pairs, key=lambda pair: pair[1].name)


def _plain(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).strip()


def _core(stem: str) -> str:
    before, core = "", unicodedata.normalize("NFC", stem).lower().strip()
    while core != before:
        before, core = core, _JOINED.sub("", _AFFIX.sub("", core))
    return core


def _by_stem(paths: Iterable[_File] | Sequence[_File]) -> dict[str, list[_File]]:
    groups: dict[str, list[_File]] = defaultdict(list)
    for path in paths:
        groups[path.stem].append(path)
    return groups
