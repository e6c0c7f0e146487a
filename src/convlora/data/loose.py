"""What to do with images that lie loose, or in folders of another order, as data is often delivered."""

import os
from collections.abc import Sequence
from pathlib import Path

from convlora.data.hints import group, means
from convlora.data.images import holds_images, is_image
from convlora.data.volumes import FIX, volume_kind

#: How the ends of the names of masks begin, where images and masks lie in one folder.
_MASK_ENDS = ("mask", "gt", "label", "seg", "ann", "truth", "groundtruth", "ground_truth", "target", "matte")
#: Ends of the name of a folder of masks beside that of a split's images, such as `train_labels`.
_BESIDE = ("_labels", "_label", "_masks", "_mask", "_gt", "_annotations", "_ground_truth", "_targets")
#: Writes data.csv; names with commas are quoted.
_TABLE = (
    "python -c \"import csv, glob; from pathlib import Path; d = Path(r'{folder}'); "
    "t = (d / 'data.csv').open('w', newline='', encoding='utf-8'); "
    "csv.writer(t).writerows([('image', 'mask')] + [{pairs}]); t.close()\""
)
#: Pairs of names that differ in their ends only.
_ENDS = (
    "(p.name, p.name[:-{cut}] + '{mask}') for p in sorted(d.iterdir()) if p.name.endswith('{image}') "
    "and not p.name.endswith('{mask}') and p.name[0] != '.'"
)
#: Pairs of the same stems, but for an end of the image's, in folders beside each other.
_FOLDERS = (
    "(p.relative_to(d).as_posix(), m.relative_to(d).as_posix()) for p in sorted(d.glob('{images}')) "
    "for m in sorted((p.parent.parent / '{masks}').glob(glob.escape(p.stem.removesuffix('{end}')) + '.*')) "
    "if p.name[0] != '.'"
)
_SHELL = frozenset("'\"$`")  # what the command cannot hold between its quotes


def loose_images(folder: Path, split: bool = False) -> str:
    """A sentence on the images that lie in `folder` itself; '' where there are none.

    Args:
        folder: DATA, or the folder of a split.
        split: whether it is the latter.
    """
    names = sorted(p.name for p in folder.iterdir() if _is_loose(p)) if folder.is_dir() else []
    if not names:
        return ""
    ends = _ends(names)
    if ends is not None:
        return _tell_pairs(folder, names, *ends)
    beside = [folder.with_name(folder.name + end) for end in _BESIDE] if split else []
    masks = next((path for path in beside if path.is_dir() and any(map(_is_loose, path.iterdir()))), None)
    held = f"Images lie in {folder.name} itself, such as {names[0]}: move them into {folder / 'images'}"
    if masks is not None:
        return f"{held}, and those of {masks} into {folder / 'masks'}."
    return f"{held}, and their masks, under the same names, into {folder / 'masks'}."


def _is_loose(path: Path) -> bool:
    return is_image(path) and not path.name.startswith(".") and path.is_file()


def _ends(names: Sequence[str]) -> tuple[str, str] | None:
    """In what the names of images and masks of one folder end, such as `_sat.jpg` and `_mask.png`."""
    stems = {Path(name).stem: name for name in names}
    for pair in group(stems).values():
        if len(pair) != 2:
            continue
        one, other = (stems[stem] for stem in pair)
        start = len(os.path.commonprefix([one, other]).rstrip("_-. "))  # noqa: RUF071  # of letters
        first, second = sorted((one[start:], other[start:]), key=_is_mask_end)
        known = set(names)
        both = [n for n in names if n.endswith(first) and n.removesuffix(first) + second in known]
        if _is_mask_end(second) and not _is_mask_end(first) and 4 * len(both) >= len(names):
            return first, second
    return None


def _is_mask_end(end: str) -> bool:
    return end.lstrip("_-. ").lower().startswith(_MASK_ENDS)


def _tell_pairs(folder: Path, names: Sequence[str], image: str, mask: str) -> str:
    first = next(name for name in names if name.endswith(image))
    told = f"Images and masks lie in one folder, such as {first} and {first.removesuffix(image)}{mask}."
    if "'" in image + mask:
        return f"{told} Pair them in a table, data.csv."
    return _tell_table(folder, told, _ENDS.format(cut=len(image), image=image, mask=mask))


def _tell_table(folder: Path, told: str, pairs: str) -> str:
    if _SHELL & {*pairs.replace("'", ""), *str(folder)}:
        return f"{told} Pair them in a table, data.csv."
    command = _TABLE.format(folder=folder, pairs=pairs)
    return f"{told} Pair them in a table: {command} writes {folder / 'data.csv'}; give that as DATA."


def other_layout(root: Path) -> str:
    """A sentence on volumes, nnU-Net's folders, or folders of each patient or scene; '' if there are none."""
    if (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir():
        told = "imagesTr and labelsTr are the layout of nnU-Net."
        if any(volume_kind(path) for path in (root / "imagesTr").iterdir()):
            return f"{told} Its volumes are not read: save their slices as PNG (docs/rearrange.md)."
        return _tell_table(
            root, told, _FOLDERS.format(images="imagesTr/*_0000.*", masks="labelsTr", end="_0000")
        )
    volume = next(
        filter(volume_kind, sorted(p for p in root.iterdir() if p.is_file() and not is_image(p))), None
    )
    if volume is not None:
        return f"{volume.name} is {volume_kind(volume)}, which is not read: {FIX[0].lower()}{FIX[1:-1]}."
    found = {path.name: ends for path in sorted(root.iterdir()) if (ends := _image_and_mask_folder(path))}
    if len(found) < 2 or len(set(found.values())) > 1:
        return ""
    (images, masks), names = next(iter(found.values())), [*found]
    told = f"{len(names)} folders, such as {names[0]}, hold {images} and {masks} of their own."
    told = _tell_table(root, told, _FOLDERS.format(images=f"*/{images}/*", masks=masks, end=""))
    return f"{told} With --group-by '^(.*?)/' convert keeps each folder in one split."


def _image_and_mask_folder(path: Path) -> tuple[str, str] | None:
    """Names of the folders of images and of masks in a folder, if it has one of each."""
    inside = [p.name for p in path.iterdir() if p.is_dir() and holds_images(p)] if path.is_dir() else []
    found = [[name for name in inside if means(name, kind)] for kind in ("images", "masks")]
    return (found[0][0], found[1][0]) if [len(names) for names in found] == [1, 1] else None
