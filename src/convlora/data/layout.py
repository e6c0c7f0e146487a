"""Where images and masks are, in folders. Pairs are made by stem, never by position."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from convlora.data.groups import Grouping, place_groups
from convlora.data.hints import meant_folder
from convlora.data.images import holds_images, is_image
from convlora.data.labels import Label, MaskFile
from convlora.data.loose import loose_images, other_layout
from convlora.data.masks import MaskEncoding
from convlora.errors import DataError

#: Names that a split's folder may have.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: Names that the folder of the masks may have; 'masks' comes first, of the others there must be one only.
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "gt", "ground_truth")
#: What is said of splits that `split_pairs` has made.
BY_SEED = (
    "made here by seed {seed}, image by image: scores are too good if some are tiles of one scene or slices "
    "of one volume; make splits of your own then, or by convlora convert --group-by"
)
LAYOUT_HELP = (
    "A data folder holds {train,val,test}/{images,masks}/NAME.png, "
    "or {images,masks}/{train,val,test}/NAME.png, or {images,masks}/NAME.png without splits; "
    "an image and its mask have the same NAME. "
    "Also read: a table data.csv, COCO json, YOLO polygons with data.yaml (see docs/data.md)"
)


@dataclass(frozen=True)
class Pair:
    """An image and its label.

    Args:
        stem: name of the pair; it differs from that of every other pair of the split.
        image: file.
        mask: where the label comes from.
    """

    stem: str
    image: Path
    mask: Label


@dataclass(frozen=True)
class Folder:
    """Files of one split, before they are paired; or with the pairs that a table or a json says.

    A `fault` tells what is wrong with the `place` of the split, so that nothing in it can be paired.
    """

    split: str
    images: tuple[Path, ...]
    masks: tuple[Label, ...]
    others: tuple[Path, ...] = ()
    pairs: tuple[Pair, ...] | None = None
    place: Path | None = None
    fault: str = ""

    @classmethod
    def of_pairs(cls, split: str, pairs: Iterable[Pair]) -> "Folder":
        """A split whose pairs are known."""
        listed = tuple(pairs)
        return cls(split, tuple(p.image for p in listed), tuple(p.mask for p in listed), pairs=listed)


@dataclass(frozen=True)
class DataSet:
    """A data set that has passed the checks."""

    root: Path
    splits: dict[str, list[Pair]]
    classes: tuple[str, ...]
    encoding: MaskEncoding = MaskEncoding.IDS
    fingerprint: str = ""
    shares: dict[str, float] = field(default_factory=dict)  # of the labelled training pixels, by class
    digests: dict[Path, str] = field(default_factory=dict)  # hash of the bytes of each image
    by_seed: bool = False  # whether the splits were made by a seed just now
    unused: tuple[Pair, ...] = ()  # training images that the run leaves out
    largest: tuple[int, int] | None = None  # (H, W) of the largest training image


def find_folders(root: Path) -> list[Folder]:
    """List the files of every split; without split folders there is one, called 'all'.

    Raises:
        DataError: the folder does not exist or has another layout.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder that exists. {LAYOUT_HELP}.")
    found = [_split_files(root / name, split) for split, name in _split_folders(root)]
    if not found and (root / "images").is_dir():
        masks = _mask_folder(root)
        found = _splits_inside(root / "images", masks) or [_list_files(root / "images", masks, "all")]
    if not found:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        meant = meant_folder(root, "images"), meant_folder(root, "masks"), loose_images(root)
        hints = [*filter(None, (*meant, other_layout(root)))]
        raise DataError(" ".join((f"{root} holds {inside}.", *hints, f"{LAYOUT_HELP}.")))
    return found


def pair_by_stem(folder: Folder) -> list[Pair]:
    """Images and masks with the same stem, sorted; what has no partner is left out."""
    if folder.pairs is not None:
        return list(folder.pairs)
    masks = {mask.stem: mask for mask in folder.masks}
    return [
        Pair(path.stem, path, masks[path.stem])
        for path in sorted(folder.images, key=lambda p: p.stem)
        if path.stem in masks
    ]


def split_pairs(pairs: Sequence[Pair], seed: int, group: Grouping | None = None) -> dict[str, list[Pair]]:
    """Seeded split of pairs without one: 70 % train, 15 % val, 15 % test, at least one each.

    Args:
        pairs: images with labels.
        seed: of the draw.
        group: of an image; those of one group go into one split, and the shares are met as nearly as the
            groups allow. By default each image is drawn by itself.

    Raises:
        DataError: there are fewer than three pairs, or groups.
    """
    if len(pairs) < 3:
        raise DataError(
            f"There are {len(pairs)} pairs of image and mask and no split folders; at least 3 are needed, "
            "one each for training, validation and test."
        )
    rng, held = np.random.default_rng(seed), max(1, round(0.15 * len(pairs)))
    if group is not None:
        sizes = {"train": len(pairs) - 2 * held, "val": held, "test": held}
        groups = [group(pair.image) for pair in pairs]
        place = place_groups(groups, sizes, rng)
        return {s: [p for p, name in zip(pairs, groups, strict=True) if place[name] == s] for s in sizes}
    order = rng.permutation(len(pairs))
    parts = {"train": order[2 * held :], "val": order[:held], "test": order[held : 2 * held]}
    return {split: [pairs[i] for i in sorted(indices)] for split, indices in parts.items()}


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Names for images that may lie in different folders: the stem, with as many folders before it as needed.

    `a/1.png` and `b/1.png` become `a__1` and `b__1`; `1.jpg` and `1.png` become `1_jpg` and `1_png`. No two
    names are the same, nor do they differ in case only.

    Raises:
        DataError: that does not tell them apart.
    """
    parts = [(*(p for p in path.parent.parts if p not in {path.anchor, ".."}), path.stem) for path in paths]
    depths = [1] * len(paths)
    for _ in range(max(map(len, parts), default=0)):
        names = ["__".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        doubles = _doubles(names)
        if not doubles:
            return names
        for i in doubles:
            depths[i] += 1
    names = ["__".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
    for i in _doubles(names):
        names[i] += paths[i].suffix.replace(".", "_")
    if doubles := _doubles(names):
        raise DataError(
            f"{paths[doubles[0]]} and another image would both be called {names[doubles[0]]}. Rename one."
        )
    return names


def fingerprint(
    splits: Mapping[str, Iterable[Pair]], images: Mapping[Path, str], labels: Mapping[Label, str]
) -> str:
    """Hash of splits, stems and contents; it changes with any label, not with the place of the folder.

    Args:
        splits: pairs of each split.
        images: hash of every image.
        labels: hash of every label.
    """
    total = hashlib.sha256()
    for split in sorted(splits):
        for pair in splits[split]:
            line = f"{split}\0{pair.stem}\0{images[pair.image]}\0{labels[pair.mask]}\n"
            total.update(line.encode("utf-8", "surrogateescape"))  # names that are no UTF-8
    return total.hexdigest()[:16]


def _doubles(names: Sequence[str]) -> list[int]:
    counts = Counter(name.lower() for name in names)
    return [i for i, name in enumerate(names) if counts[name.lower()] > 1]


def _split_folders(root: Path) -> list[tuple[str, str]]:
    """Split and name of its folder, for those that are in `root`."""
    return [(split, name) for split, names in SPLITS.items() for name in names if (root / name).is_dir()]


def _split_files(folder: Path, split: str) -> Folder:
    """Files of a split's folder; where images or masks are missing, the others are looked at nevertheless."""
    try:
        return _list_files(folder / "images", _mask_folder(folder), split)
    except DataError as error:
        return _without_pairs(_list_files(folder / "images", folder / MASK_FOLDERS[0], split), folder, error)


def _without_pairs(folder: Folder, place: Path, error: DataError) -> Folder:
    return replace(folder, pairs=(), place=place, fault=str(error))


def _mask_folder(folder: Path) -> Path:
    """Folder of the masks beside `folder/images`."""
    if not (folder / "images").is_dir():
        if (folder / "images").exists():
            raise DataError(f"{folder / 'images'} is a file, not a folder. {LAYOUT_HELP}.")
        hint = meant_folder(folder, "images") or loose_images(folder, split=True)
        raise DataError(
            " ".join(filter(None, (f"{folder} has no folder 'images'.", hint, f"{LAYOUT_HELP}.")))
        )
    if (folder / MASK_FOLDERS[0]).is_dir():
        return folder / MASK_FOLDERS[0]
    found = [name for name in MASK_FOLDERS[1:] if holds_images(folder / name)]
    if len(found) > 1:
        raise DataError(
            f"{folder} holds {' and '.join(found)}, and any of them could be the masks. Name the folder of "
            f"the masks 'masks'. {LAYOUT_HELP}."
        )
    if not found:
        yolo = any(True for _ in (folder / "labels").glob("**/*.txt"))
        hint = "Its labels/ holds text: for YOLO polygons, write data.yaml with the 'names'." if yolo else ""
        hint = hint or meant_folder(folder, "masks")
        what = (
            "has no folder 'masks'"
            if not (folder / "masks").exists()
            else "holds a file 'masks', not a folder"
        )
        raise DataError(" ".join(filter(None, (f"{folder} {what}.", hint, f"{LAYOUT_HELP}."))))
    return folder / found[0]


def _splits_inside(images: Path, masks: Path) -> list[Folder]:
    """The layout {images,masks}/{train,val,test}."""
    inside = _split_folders(images)
    if not inside and not _split_folders(masks):
        return []
    for here in (images, masks):
        loose = [path.name for path in here.iterdir() if path.is_file() and is_image(path)]
        if loose:
            raise DataError(
                f"{here} holds folders of splits, but also {len(loose)} images of its own, such as {loose[0]}"
                ". Put every image into a split's folder."
            )
    folders = []
    names = [(s, name) for s, group in SPLITS.items() for name in group]
    for split, name in names:
        here, there = images / name, masks / name
        if not here.is_dir() and not there.is_dir():
            continue
        folder = _list_files(here, there, split)
        if not (here.is_dir() and there.is_dir()):
            has, lacks = (images, masks) if here.is_dir() else (masks, images)
            error = DataError(
                f"{has} has a folder '{name}', but {lacks} has none. {images.name} and {masks.name} must "
                "have the same folders of splits."
            )
            folder = _without_pairs(folder, has / name, error)
        folders.append(folder)
    return folders


def _list_files(images: Path, masks: Path, split: str) -> Folder:
    files = [
        sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
        for path in (images, masks)
    ]
    strays = {p for group in files for p in group if not (p.is_file() and is_image(p))}
    kept = [tuple(p for p in group if p not in strays) for group in files]
    return Folder(split, kept[0], tuple(MaskFile(p) for p in kept[1]), tuple(sorted(strays)))
