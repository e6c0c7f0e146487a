"""Checks of folders: what lies in them that is not read, and splits under other names."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from convlora.data.images import EXTENSIONS, belongs_to_map, is_image
from convlora.data.layout import MASK_FOLDERS, SPLITS, Folder
from convlora.data.report import Problem
from convlora.data.volumes import FIX, volume_kind
from convlora.errors import DataError

#: Files that systems leave behind; those that begin with a dot are left out when folders are listed.
_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db", "icon\r", "@eadir"}
#: Other names that people give to splits.
OTHER_NAMES = {"dev": "val", "eval": "val", "validate": "val", "tr": "train", "trn": "train", "tst": "test"}
#: Endings of pictures that are not read.
PICTURES = {"gif", "jp2", "heic", "heif", "avif", "dcm", "nii", "gz", "npy", "npz", "mat", "svg", "pgm"}
PICTURES |= {"ppm", "pbm", "exr", "tga", "jxl", "jfif", "raw", "dng", "psd", "mha", "nrrd"}


def check_folders(base: Path, folders: Sequence[Folder]) -> Iterator[Problem]:
    """All that lies there and is not read."""
    for folder in folders:
        if folder.fault:
            yield Problem.of_error("layout", folder.place, DataError(folder.fault))
        for stray in folder.others:
            if stray.name.lower() not in _LITTER and not (stray.is_file() and belongs_to_map(stray)):
                yield _tell_stray(stray, "images" in {stray.parent.name, stray.parent.parent.name})
    yield from _check_splits(base, {image.parent for folder in folders for image in folder.images})
    for name in ("data.csv", "data.yaml", "data.yml", "palette.txt"):
        if (base / name).is_dir():
            found, rule = "a folder, not a file", f"{name} is read as a text file."
            yield Problem(
                "error", "not-a-file", str(base / name), found, rule, "Rename or remove the folder."
            )


def rename_hint(base: Path) -> str:
    """What to rename where the folders of splits have other names; '' where there is nothing to say."""
    renames = [f"Rename {name} to {split}." for name, split in sorted(_misnamed(base).items())]
    return " ".join(renames)


def renames(base: Path) -> dict[str, str]:
    """Split -> name of a folder that seems to be meant for it."""
    return {split: name for name, split in _misnamed(base).items()}


def _tell_stray(path: Path, image: bool) -> Problem:
    kind = "image" if image else "mask"
    if path.is_symlink() and not path.exists():
        found = f"is a link to {path.readlink()}, which does not exist"
        fix = "Replace it by the file, or remove it."
        return Problem(
            "error", f"unreadable-{kind}", str(path), found, f"Every {kind} must be readable.", fix
        )
    if path.is_dir():
        return _tell_folder(path)
    if path.exists() and not path.is_file():
        found, rule = "not a file, but a pipe, a socket or a device", f"Every {kind} is a file."
        return Problem("error", f"unreadable-{kind}", str(path), found, rule, "Replace it by the file.")
    ending = path.suffix.lower().lstrip(".")
    rule = f"Read are {', '.join(sorted(EXTENSIONS))}."
    if what := volume_kind(path):
        return Problem("error", "unread-format", str(path), f"is {what}, which is not read", rule, FIX)
    if ending in PICTURES:
        fix = "Save it as PNG."
        if ending == "jp2":  # maps mostly
            fix = "Save it as a TIFF: gdal_translate -of GTiff OLD.jp2 NEW.tif."
        return Problem("error", "unread-format", str(path), f"files .{ending} are not read", rule, fix)
    return Problem("warning", "stray-file", str(path), "not an image", "It is not used.", "Move it away.")


def _tell_folder(path: Path) -> Problem:
    inside = sum(is_image(p) and not p.name.startswith(".") for p in path.rglob("*"))
    if not inside:
        found, rule = "a folder, not an image", "It is not used."
        return Problem("warning", "stray-file", str(path), found, rule, "Move it away.")
    found = f"a folder with {inside} images that are not read"
    rule = "Images and masks lie in one folder, without folders in it."
    fix = (
        f"Move the images into {path.parent}, under names of their own, or the folder out of the data; or "
        "list all pairs in a table, data.csv."
    )
    return Problem("error", "sub-folder", str(path), found, rule, fix)


def _check_splits(base: Path, read: set[Path]) -> Iterator[Problem]:
    for name_of_split, names in SPLITS.items():
        there = [name for name in names if (base / name / "images").is_dir()]
        if len(there) > 1:
            found = f"both {' and '.join(there)} are folders of the split '{name_of_split}'"
            fix = "Put all pairs into one folder, or move one folder away."
            yield Problem("error", "split-twice", str(base / there[1]), found, "A split has one folder.", fix)
    known = {name for names in SPLITS.values() for name in names} | {"images", *MASK_FOLDERS}
    misnamed = _misnamed(base)
    for path in _folders(base):
        if _is_known(path, known) or not (path / "images").is_dir():
            continue
        if any(place.is_relative_to(path) for place in read):  # a table names its images
            continue
        rule = (
            f"Folders of splits are called {', '.join(name for names in SPLITS.values() for name in names)}."
        )
        split = misnamed.get(path.name)
        fix = f"Rename {path.name} to {split}." if split else "Move it away, or rename it to a split."
        yield Problem("warning", "unused-folder", str(path), "its images are not read", rule, fix)


def _is_known(path: Path, names: set[str]) -> bool:
    """Whether a folder is read; on macOS and Windows 'Train' is 'train'."""
    lower = path.with_name(path.name.lower())
    return path.name in names or (lower.name in names and lower.exists() and lower.samefile(path))


def _misnamed(base: Path) -> dict[str, str]:
    known = {name: split for split, names in SPLITS.items() for name in names}
    found = {}
    for path in _folders(base):
        name = path.name.lower()
        split = known.get(name) or OTHER_NAMES.get(name)
        taken = split and any((base / other).is_dir() for other in SPLITS[split])
        if split and path.name not in known and not taken and (path / "images").is_dir():
            found[path.name] = split
    return found


def _folders(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    return sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
