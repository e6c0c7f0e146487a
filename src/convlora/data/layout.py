"""Where images and masks are, and what the classes are called. Pairs are made by stem, never by position."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from convlora.data.images import is_image
from convlora.data.masks import MaskEncoding
from convlora.errors import DataError

#: Names that a split's folder may have.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LAYOUT_HELP = (
    "A data folder holds {train,val,test}/{images,masks}/NAME.png, or {images,masks}/NAME.png without "
    "splits; an image and its mask have the same NAME"
)


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Folder:
    """Files of one split, before they are paired."""

    split: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set that has passed the checks."""

    root: Path
    splits: dict[str, list[Pair]]
    classes: tuple[str, ...]
    encoding: MaskEncoding = MaskEncoding.IDS
    fingerprint: str = ""
    shares: dict[str, float] = field(default_factory=dict)  # of the labelled training pixels, by class


def find_folders(root: Path) -> list[Folder]:
    """List the files of every split; without split folders there is one, called 'all'.

    Raises:
        DataError: the folder does not exist or has another layout.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder that exists. {LAYOUT_HELP}.")
    found = [
        _list_files(root / name, split)
        for split, names in SPLITS.items()
        for name in names
        if (root / name).is_dir()
    ]
    if not found and (root / "images").is_dir():
        _refuse_swapped(root)
        found = [_list_files(root, "all")]
    if not found:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{root} holds {inside}. {LAYOUT_HELP}.")
    return found


def pair_by_stem(folder: Folder) -> list[Pair]:
    """Images and masks with the same stem, sorted; what has no partner is left out."""
    masks = {path.stem: path for path in folder.masks}
    return [
        Pair(path.stem, path, masks[path.stem])
        for path in sorted(folder.images, key=lambda p: p.stem)
        if path.stem in masks
    ]


def split_pairs(pairs: Sequence[Pair], seed: int) -> dict[str, list[Pair]]:
    """Seeded split of pairs without one: 70 % train, 15 % val, 15 % test, at least one each.

    Raises:
        DataError: there are fewer than three.
    """
    if len(pairs) < 3:
        raise DataError(
            f"There are {len(pairs)} pairs of image and mask and no split folders; at least 3 are needed, "
            "one each for training, validation and test."
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    held = max(1, round(0.15 * len(pairs)))
    parts = {"train": order[2 * held :], "val": order[:held], "test": order[held : 2 * held]}
    return {split: [pairs[i] for i in sorted(indices)] for split, indices in parts.items()}


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """Names from classes.txt (a line each, id 0 first) or data.yaml (`names`), or None.

    Raises:
        DataError: the file is not in that form.
    """
    if (root / "classes.txt").is_file():
        return check_names(_names_in_lines(root / "classes.txt"), root / "classes.txt")
    for file in (root / "data.yaml", root / "data.yml"):
        if file.is_file():
            return check_names(_names_in_yaml(file), file)
    return None


def check_names(names: Iterable[object], source: Path | str) -> tuple[str, ...]:
    """Check that there are 2 to 255 different names.

    Raises:
        DataError: there are not.
    """
    listed = tuple(str(name).strip() for name in names)
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise DataError(f"{source} names the class '{twice[0]}' more than once; names must differ.")
    if not 2 <= len(listed) <= 255:
        raise DataError(
            f"{source} names {len(listed)} classes; there must be 2 to 255, id 0 (often 'background') first."
        )
    return listed


def fingerprint(splits: Mapping[str, Iterable[Pair]], digests: Mapping[Path, str]) -> str:
    """Hash of splits, stems and contents; it changes with any label, not with the place of the folder.

    Args:
        splits: pairs of each split.
        digests: hash of the bytes of every file.
    """
    total = hashlib.sha256()
    for split in sorted(splits):
        for pair in splits[split]:
            line = f"{split}\0{pair.stem}\0{digests[pair.image]}\0{digests[pair.mask]}\n"
            total.update(line.encode())
    return total.hexdigest()[:16]


def _list_files(folder: Path, split: str) -> Folder:
    images, masks = folder / "images", folder / "masks"
    missing = [path.name for path in (images, masks) if not path.is_dir()]
    if missing:
        raise DataError(f"{folder} has no folder '{missing[0]}'. {LAYOUT_HELP}.")
    files = [sorted(p for p in path.iterdir() if not p.name.startswith(".")) for path in (images, masks)]
    strays = tuple(p for group in files for p in group if not (p.is_file() and is_image(p)))
    kept = [tuple(p for p in group if p not in strays) for group in files]
    return Folder(split, kept[0], kept[1], strays)


def _refuse_swapped(root: Path) -> None:
    inside = {p.name for p in (root / "images").iterdir() if p.is_dir()}
    swapped = sorted(inside & {name for names in SPLITS.values() for name in names})
    if swapped:
        name = swapped[0]
        raise DataError(
            f"{root} holds images/{name}; the split comes first here. "
            f"Move images/{name} to {name}/images and masks/{name} to {name}/masks."
        )


def _names_in_lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    if "" in lines and any(lines):
        raise DataError(
            f"{file}: line {lines.index('') + 1} is empty, and the line's place is the class's id. "
            "Name the class, or delete the line if no mask uses the id."
        )
    return [line for line in lines if line]


def _names_in_yaml(file: Path) -> list[object]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid YAML: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        return names
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        return [names[i] for i in range(len(names))]
    raise DataError(f"{file} must hold 'names': a list, or ids 0, 1, 2, ... with a name each.")
