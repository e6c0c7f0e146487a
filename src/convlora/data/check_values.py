"""Checks of what is in the masks: encoding, ids, classes. Each looks at facts only and yields problems."""

from collections.abc import Iterator

from convlora.data.check_files import Scanned
from convlora.data.layout import DataSet
from convlora.data.masks import IGNORE, MaskEncoding
from convlora.data.report import Problem


def find_encoding(scanned: Scanned, names: tuple[str, ...] | None) -> tuple[MaskEncoding, list[Problem]]:
    """Whether 255 means 'foreground' or 'ignore': the whole set decides, never one file."""
    if names is not None and len(names) > 2:
        return MaskEncoding.IDS, []
    masks = [m for m in scanned.masks.values() if not m.error]
    values = {v for m in masks for v in m.counts}
    if values <= {0, 255} and 255 in values:
        return MaskEncoding.BINARY_255, []
    if values - {0, 1, IGNORE}:
        return MaskEncoding.IDS, [_not_binary(scanned, values, names)]
    with_one = [m for m in masks if 1 in m.counts]
    only_255 = [m for m in masks if 255 in m.counts and 1 not in m.counts]
    if any(255 in m.counts for m in with_one) or not (with_one and only_255):
        return MaskEncoding.IDS, []
    found = f"values 0 and 255, while {with_one[0].path.name} has 0 and 1"
    rule = "All masks of a set use one encoding: 0/1 (255 is 'ignore') or 0/255."
    fix = "Save all masks with the same values."
    return MaskEncoding.IDS, [Problem("error", "mixed-encoding", str(only_255[0].path), found, rule, fix)]


def _not_binary(scanned: Scanned, values: set[int], names: tuple[str, ...] | None) -> Problem:
    odd = next(m for m in scanned.masks.values() if set(m.counts) - {0, 1, IGNORE})
    listed = ", ".join(map(str, sorted(values)[:20])) + (", ..." if len(values) > 20 else "")
    found = f"the masks hold the values {listed}; {odd.path.name} is one of those with others than 0 and 1"
    if names is None:
        rule = "Without class names, masks are binary: 0 and 1, or 0 and 255."
        fix = "Write classes.txt into the data folder: one name a line, id 0 first."
    else:
        rule = f"There are two classes ({', '.join(names)}): 0 and 1 (255 is 'ignore'), or 0 and 255."
        fix = "Correct the masks, or name all classes."
    return Problem("error", "unknown-ids", str(odd.path), found, rule, fix)


def check_values(scanned: Scanned, names: tuple[str, ...], encoding: MaskEncoding) -> Iterator[Problem]:
    """Ids outside the classes, and masks that teach nothing."""
    empty = 0
    for mask in scanned.masks.values():
        if mask.error or encoding is MaskEncoding.BINARY_255:
            empty += set(mask.counts) == {0}
            continue
        unknown = {v: n for v, n in mask.counts.items() if v >= len(names) and v != IGNORE}
        if unknown:
            found = "ids " + ", ".join(f"{v} ({n} pixels)" for v, n in unknown.items())
            rule = f"The classes are 0 to {len(names) - 1} ({', '.join(names)}) and 255 for 'ignore'."
            fix = "Correct the mask, or add the classes to classes.txt."
            yield Problem("error", "unknown-ids", str(mask.path), found, rule, fix)
        if set(mask.counts) == {IGNORE}:
            rule = "Nothing can be learnt from it."
            yield Problem("warning", "all-ignored", str(mask.path), "all pixels are 255", rule, "Remove it.")
        empty += set(mask.counts) <= {0, IGNORE} and 0 in mask.counts
    if empty and len(names) == 2:
        share = 100 * empty / len(scanned.masks)
        found = f"{empty} of {len(scanned.masks)} masks ({share:.0f} %) have no foreground"
        rule = "Such images teach only the background."
        yield Problem("warning", "empty-masks", "masks", found, rule, "Fine if that is how your images are.")


def check_training(dataset: DataSet) -> Iterator[Problem]:
    """Classes that the training split cannot teach."""
    if not dataset.splits.get("train"):
        return
    held = [name for name, share in dataset.shares.items() if share > 0]
    if len(held) < 2:
        found = f"the training masks hold only '{held[0]}'" if held else "the training masks are all 'ignore'"
        rule = f"There must be pixels of two classes at least; 255 is read as {_reading(dataset)}."
        fix = "Compare the values in the masks with the class names."
        yield Problem("error", "nothing-to-learn", "train/masks", found, rule, fix)
        return
    for name in dataset.classes:
        if name not in held:
            rule = "A class without pixels is not learnt."
            fix = "Label it in some training images, or remove it from the classes."
            yield Problem("warning", "class-without-pixels", name, "no training mask holds it", rule, fix)


def _reading(dataset: DataSet) -> str:
    return f"'{dataset.classes[1]}'" if dataset.encoding is MaskEncoding.BINARY_255 else "'ignore'"
