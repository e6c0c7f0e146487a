"""What to do with images that lie loose in DATA or in a split's folder, as public data is often delivered."""

import os
from collections.abc import Sequence
from pathlib import Path

from convlora.data.hints import group
from convlora.data.images import is_image

#: How the ends of the names of masks begin, where images and masks lie in one folder.
_MASK_ENDS = ("mask", "gt", "label", "seg", "ann", "truth", "groundtruth", "ground_truth", "target", "matte")
#: Ends of the name of a folder of masks beside that of a split's images, such as `train_labels`.
_BESIDE = ("_labels", "_label", "_masks", "_mask", "_gt", "_annotations", "_ground_truth", "_targets")
#: Writes data.csv for names that differ in their ends only; those with commas are quoted.
_TABLE = (
    'python -c "import csv; from pathlib import Path; d = Path({folder}); '
    "t = (d / 'data.csv').open('w', newline='', encoding='utf-8'); "
    "csv.writer(t).writerows([('image', 'mask')] + [(p.name, p.name[:-{cut}] + '{mask}') "
    "for p in sorted(d.iterdir()) if p.name.endswith('{image}') and not p.name.endswith('{mask}') "
    "and p.name[0] != '.']); t.close()\""
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
    if _SHELL & {*image, *mask, *str(folder)}:
        return f"{told} Pair them in a table, data.csv."
    command = _TABLE.format(folder=f"r'{folder}'", cut=len(image), image=image, mask=mask)
    return f"{told} Pair them in a table: {command} writes {folder / 'data.csv'}."
