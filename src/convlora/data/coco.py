"""COCO annotation files: where they and their images are, and what all their splits share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from convlora.data.classes import check_names
from convlora.data.coco_file import CocoFile
from convlora.data.images import is_image
from convlora.data.layout import SPLITS, Folder, Pair, unique_stems
from convlora.data.report import Problem
from convlora.data.source import Source, is_there, warning, with_background
from convlora.errors import DataError

ROBOFLOW = "_annotations.coco.json"
_RULE = (
    "COCO data is DATA/{train,val,test}/_annotations.coco.json beside the images, or "
    "DATA/annotations/instances_{train,val,test}.json with images in DATA/{train,val,test}, "
    "DATA/images/{train,val,test} or DATA/images, or one json that is given as DATA"
)

#: Split -> (annotation file, folders where its images may be).
Files = Mapping[str, tuple[Path, Sequence[Path]]]


def find_coco(root: Path) -> Files:
    """Annotation files in a data folder by split; empty where it has none.

    Raises:
        DataError: two files are of one split, or the names of all of them say no split.
    """
    found: dict[str, tuple[Path, Sequence[Path]]] = {}
    for split, names in SPLITS.items():
        for name in names:
            if (root / name / ROBOFLOW).is_file():
                _add(found, split, root / name / ROBOFLOW, [root / name, root / name / "images"])
    candidates = sorted((root / "annotations").glob("*.json"))
    for file in candidates:
        match = re.fullmatch(r"(?:instances_)?([a-z]+)(\d*)", file.stem.lower())
        said = [split for split, names in SPLITS.items() if match and match[1] in names]
        if match and said:
            split = said[0]
            tried = dict.fromkeys((match[1] + match[2], *SPLITS[split]))
            places = [place / name for place in (root, root / "images") for name in tried]
            _add(found, split, file, [*places, root / "images"])
    if candidates and not found:
        listed = ", ".join(file.name for file in candidates[:8])
        raise DataError(f"{root / 'annotations'} holds {listed}; no name says a split. {_RULE}.")
    return found


def one_file(file: Path) -> Files:
    """A single annotation file, without splits."""
    here = file.parent
    return {"all": (file, [here / "images", here, here.parent / "images", here.parent])}


def read_coco(base: Path, files: Files) -> Source:
    """Read annotation files as one data set.

    Id 0 is the background, then come the categories, sorted by their ids. A category that others name as
    their supercategory (Roboflow's placeholder with id 0) is left out if no annotation is of it.

    Raises:
        DataError: a file is not COCO json, or the files do not have the same categories.
    """
    opened = {split: CocoFile(file) for split, (file, _) in files.items()}
    first = next(iter(opened.values()))
    for other in opened.values():
        if other.names != first.names:
            raise DataError(
                f"{first.file} and {other.file} have different categories: {_difference(first, other)}. "
                "All splits must have the same categories with the same ids."
            )
    used = {category for content in opened.values() for category in content.used}
    kept = [i for i in sorted(first.names) if i in used or not first.is_placeholder(i)]
    classes = check_names(with_background([first.names[i] for i in kept], first.file), first.file)
    values = {category: value for value, category in enumerate(kept, start=1)}
    folders, problems = [], []
    for split, content in opened.items():
        places = files[split][1]
        folder = _folder(split, content, places, values)
        folders.append(folder)
        problems += content.problems
    problems += _unlisted(folders, [place for _, places in files.values() for place in places])
    count = f"{len(kept)} categor{'y' if len(kept) == 1 else 'ies'}"
    dropped = [first.names[i] for i in sorted(first.names) if i not in kept]
    without = f" (without the placeholder '{dropped[0]}')" if dropped else ""
    return Source(f"COCO json, {count}{without}", base, folders, classes, shapes=True, problems=problems)


def _add(
    found: dict[str, tuple[Path, Sequence[Path]]], split: str, file: Path, places: Sequence[Path]
) -> None:
    if split in found:
        raise DataError(
            f"{found[split][0]} and {file} are both of the split '{split}'. Move one away. {_RULE}."
        )
    found[split] = (file, places)


def _difference(first: CocoFile, other: CocoFile) -> str:
    odd = sorted(set(first.names.items()) ^ set(other.names.items()))
    return ", ".join(
        f"{i} '{name}' only in {(first if first.names.get(i) == name else other).file.name}"
        for i, name in odd[:4]
    )


def _folder(split: str, content: CocoFile, places: Sequence[Path], values: Mapping[int, int]) -> Folder:
    labels = content.labels(values)
    found: list[tuple[str, Path]] = []
    for name in labels:
        path = next((place / name for place in places if is_there(place / name)), None)
        if path is None:
            content.missing(name, places)
        else:
            found.append((name, path))
    stems = unique_stems([Path(name) for name, _ in found])
    pairs = [Pair(stem, path, labels[name]) for stem, (name, path) in zip(stems, found, strict=True)]
    return Folder.of_pairs(split, sorted(pairs, key=lambda pair: pair.stem))


def _unlisted(folders: Iterable[Folder], places: Iterable[Path]) -> list[Problem]:
    """Images that no annotation file lists, in folders where listed ones are."""
    used = {path for folder in folders for path in folder.images}
    inside = {path.parent for path in used} & set(places)
    lost = sorted(p for place in inside for p in place.iterdir() if is_image(p) and p not in used)
    if not lost:
        return []
    found = f"{len(lost)} images are in no annotation file, first {lost[0].name}"
    rule = "Only images that the json lists are used; one without annotations is an empty mask."
    return [warning("unlisted-images", lost[0].parent, found, rule, "Add them to the json, or ignore this.")]
