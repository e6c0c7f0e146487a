"""Checks of what is in the masks: encoding, ids, classes. Each looks at facts only and yields problems."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from convlora.data.check_files import Scanned
from convlora.data.labels import Label
from convlora.data.layout import DataSet, Pair
from convlora.data.masks import IGNORE, OBJECTS, MaskEncoding
from convlora.data.report import Problem, count
from convlora.data.scan import MaskFacts

_MANY = 8
_NEAR = 32  # values this close to 0 and 255 are what JPEG and smoothing leave of them
_ENOUGH, _MUCH, _PART = 10, 10, 0.25
"""From so many masks with foreground on, some with so many times the median's share are told where they hold
this part of all foreground pixels. So two of CrackForest's 36 test masks were found, with areas filled."""


def find_encoding(scanned: Scanned, names: tuple[str, ...] | None) -> tuple[MaskEncoding, list[Problem]]:
    """Whether 255 means 'foreground' or 'ignore': the whole set decides, never one file."""
    if names is not None and len(names) > 2:
        return MaskEncoding.IDS, []
    masks = [m for m in scanned.masks.values() if not m.error]
    values = {v for m in masks for v in m.counts}
    if values <= {0, 255} and 255 in values:
        return MaskEncoding.BINARY_255, []
    if values - {0, 1, IGNORE}:
        return MaskEncoding.IDS, list(_not_binary(masks, values, names))
    with_one = [m for m in masks if 1 in m.counts]
    only_255 = [m for m in masks if 255 in m.counts and 1 not in m.counts]
    if not (with_one and only_255):
        return MaskEncoding.IDS, []
    if any(255 in m.counts for m in with_one):
        return MaskEncoding.IDS, list(_doubtful(with_one, only_255))
    return MaskEncoding.IDS, list(_mixed(with_one, only_255))


def _doubtful(with_one: list[MaskFacts], only_255: list[MaskFacts]) -> Iterator[Problem]:
    """A few pixels of 1 make 255 'ignore' in all masks, though it may mean 'foreground' in most."""
    if len(with_one) > len(only_255):
        return
    rule = "In binary data 255 is 'foreground' if no mask holds a 1, else 'ignore'."
    fix = "If 255 is foreground, correct the pixels of value 1; if 255 is 'ignore', all is well."
    for mask in with_one:
        found = (
            f"holds the values {_pixels(mask.counts)}, while {len(only_255)} masks, such as "
            f"{only_255[0].label.name}, hold 255 and no 1; so 255 was read as 'ignore' in all masks"
        )
        yield Problem("warning", "mixed-encoding", str(mask.label), found, rule, fix)


def _mixed(with_one: list[MaskFacts], only_255: list[MaskFacts]) -> Iterator[Problem]:
    """The fewer of the two kinds are named."""
    few, many = sorted((only_255, with_one), key=len)
    top = 255 if few is only_255 else 1
    for mask in few:
        held = " and ".join(map(str, sorted(mask.counts)))
        found = f"values {held}, while {many[0].label.name} has 0 and {256 - top}"
        rule = "All masks of a set use one encoding: 0/1 (255 is 'ignore') or 0/255."
        fix = f"Save all masks with the same values: here {256 - top} for foreground in place of {top}."
        if top == 255:
            fix += " If 255 means 'ignore' here, nothing is labelled that can be learnt: remove the pair."
        yield Problem("error", "mixed-encoding", str(mask.label), found, rule, fix)


def _not_binary(masks: list[MaskFacts], values: set[int], names: tuple[str, ...] | None) -> Iterator[Problem]:
    listed = ", ".join(map(str, sorted(values)[:20])) + (", ..." if len(values) > 20 else "")
    if names is None:
        rule = "Without class names, masks are binary: 0 and 1, or 0 and 255."
        fix = "Write classes.txt into the data folder: one name a line, id 0 first."
    else:
        rule = f"There are two classes ({', '.join(names)}): 0 and 1 (255 is 'ignore'), or 0 and 255."
        fix = f"Correct the masks, or name all classes.{_first_name(values, names)}"
    fix += OBJECTS if len(values) > 2 else ""
    fix += _draft(values, masks, names or ("background", "foreground"))
    for mask in masks:
        odd = {v: n for v, n in mask.counts.items() if v not in {0, 1, IGNORE}}
        if not odd or mask.lossy:
            continue
        if _is_soft(mask):
            yield _soft(mask)
            continue
        found = f"values {_pixels(odd)}; together the masks hold the values {listed}"
        yield Problem("error", "unknown-ids", str(mask.label), found, rule, fix)


def _draft(values: set[int], masks: list[MaskFacts], names: tuple[str, ...]) -> str:
    """A palette where one value is odd: the only one beside another, or one that is neither class."""
    odd = values - {0, 1, IGNORE}
    if len(odd) != 1 or any(mask.deep for mask in masks):  # which no palette is applied to
        return ""
    below, above = names
    if len(values) == 2:
        meant = dict(zip(sorted(values), names, strict=True))
        said = "If they are the two classes"
    elif (one := 1 if 1 in values else IGNORE) in values and 0 in values:
        meant = {0: below, one: above, **dict.fromkeys(sorted(values - {0, one}), "ignore")}
        said = f"If {odd.pop()} is no class, but means 'no data' or 'not labelled'"
    else:
        return ""
    colours = {value: _colours(value, masks) for value in meant}
    lines = [f"{' '.join(map(str, c))} {meant[value]}" for value in meant for c in colours[value]]
    return f" {said}, write palette.txt into the data folder instead:\n" + "\n".join(lines)


def _colours(value: int, masks: list[MaskFacts]) -> list[tuple[int, int, int]]:
    """What a viewer shows for a value: its grey, or the colour of an indexed mask."""
    grey = (value, value, value)
    return sorted({mask.colours.get(value, grey) for mask in masks if value in mask.counts})


def _first_name(values: set[int], names: tuple[str, ...]) -> str:
    """What to do where the largest id is one too many, as where the names begin with the class of id 1."""
    if max(values - {IGNORE}) != len(names):
        return ""
    return (
        f" The first name, '{names[0]}', is that of id 0: if it is meant for id 1, name id 0 in a line above "
        "it (background; or, if 0 is not labelled, write a palette: docs/rearrange.md)."
    )


def _is_soft(mask: MaskFacts) -> bool:
    """Whether most of a mask is near 0 and near 255, and shades lie between, some of them light.

    Class ids beside 255 for 'ignore' are dark, and those of many objects are not mostly light. A mask whose
    JPEG was saved as PNG need not hold 0 and 255 themselves.
    """
    dark, light = (
        sum(pixels for value, pixels in mask.counts.items() if abs(value - end) < _NEAR) for end in (0, 255)
    )
    shades = mask.counts.keys() - {0, 255}
    between = sum(mask.counts.values()) - dark - light
    if len(shades) < 3 or max(shades) <= 127 or dark + light <= between:
        return False
    return {0, 255} <= mask.counts.keys() or (dark > 0 and light > between)


def _soft(mask: MaskFacts) -> Problem:
    found = f"mostly near 0 and 255, with {len(mask.counts.keys() - {0, 255})} shades between"
    rule = "A mask has no smooth edges and no traces of JPEG: every value is a class."
    fix = (
        "Save it without smoothing, scaled with 'nearest'; or threshold it at 128 to 0 and 255 "
        "(docs/rearrange.md has the command)."
    )
    return Problem("error", "soft-mask", str(mask.label), found, rule, fix)


def _pixels(counts: dict[int, int]) -> str:
    listed = ", ".join(f"{v} ({count(n, 'pixel')})" for v, n in list(counts.items())[:_MANY])
    return listed + (f" and {len(counts) - _MANY} more" if len(counts) > _MANY else "")


def check_values(scanned: Scanned, names: tuple[str, ...], encoding: MaskEncoding) -> Iterator[Problem]:
    """Ids outside the classes, and masks that teach nothing."""
    masks = [mask for mask in scanned.masks.values() if not mask.error]
    if encoding is MaskEncoding.IDS:
        for mask in masks:
            yield from _check_ids(mask, names)
    if len(names) == 2:
        one = 255 if encoding is MaskEncoding.BINARY_255 else 1
        no_label = set() if encoding is MaskEncoding.BINARY_255 else {IGNORE}
        empty = [m for m in masks if 0 in m.counts and set(m.counts) - no_label == {0}]
        full = [m for m in masks if one in m.counts and set(m.counts) - no_label == {one}]
        rule, fix = "Such images teach only the background.", "Fine if that is how your images are."
        yield from _share("empty-masks", empty, masks, "have no foreground", rule, fix)
        rule = "Such images teach only the foreground."
        yield from _share("full-masks", full, masks, "hold nothing but foreground", rule, fix)


def _check_ids(mask: MaskFacts, names: tuple[str, ...]) -> Iterator[Problem]:
    unknown = {v: n for v, n in mask.counts.items() if v >= len(names) and v != IGNORE}
    if unknown and _is_soft(mask) and not mask.lossy:
        yield _soft(mask)
    elif unknown and not mask.lossy:
        found = f"ids {_pixels(unknown)}"
        rule = f"The classes are 0 to {len(names) - 1} ({', '.join(names)}) and 255 for 'ignore'."
        fix = f"Correct the mask, or add the classes to classes.txt.{_first_name(set(unknown), names)}"
        fix += OBJECTS
        yield Problem("error", "unknown-ids", str(mask.label), found, rule, fix)
    if set(mask.counts) == {IGNORE}:
        rule = "Nothing can be learnt from it."
        yield Problem("warning", "all-ignored", str(mask.label), "all pixels are 255", rule, "Remove it.")


def _share(
    code: str, some: list[MaskFacts], masks: list[MaskFacts], what: str, rule: str, fix: str
) -> Iterator[Problem]:
    for mask in some:
        found = f"one of {len(some)} of {len(masks)} masks ({100 * len(some) / len(masks):.0f} %) that {what}"
        yield Problem("warning", code, str(mask.label), found, rule, fix)


def check_training(dataset: DataSet, counts: Mapping[Label, dict[int, int]]) -> Iterator[Problem]:
    """Classes that the training split cannot teach.

    Args:
        dataset: splits, classes and their shares of the training pixels.
        counts: pixels of each value in every label.
    """
    pairs = dataset.splits.get("train")
    if not pairs:
        return
    place = _place(pairs)
    held = [name for name, share in dataset.shares.items() if share > 0]
    if len(held) < 2:
        found = f"the training masks hold only '{held[0]}'" if held else "the training masks are all 'ignore'"
        rule = f"There must be pixels of two classes at least; 255 is read as {_reading(dataset)}."
        fix = "Compare the values in the masks with the class names."
        yield Problem("error", "nothing-to-learn", place, found, rule, fix)
        return
    for index, name in enumerate(dataset.classes):
        if name not in held:
            found = f"no training mask holds '{name}'"
            rule = "A class without pixels is not learnt."
            fix = "Label it in some training images, or remove it from the classes."
            for split, others in dataset.splits.items():
                holders = [p.mask for p in others if index in counts.get(p.mask, {})]
                if holders:
                    found += f", but {len(holders)} of {split} do, first {holders[0].path}"
            yield Problem("warning", "class-without-pixels", place, found, rule, fix)


def check_foreground(
    dataset: DataSet, counts: Mapping[Label, dict[int, int]], scored: str | None = None
) -> Iterator[Problem]:
    """Few masks that hold much of a split's foreground, in binary data: scores over all pixels hang on them.

    Args:
        dataset: splits and classes.
        counts: pixels of each value in every label.
        scored: the only split that is looked at; None for all.
    """
    if len(dataset.classes) != 2:
        return
    for split, pairs in dataset.splits.items():
        if scored in (None, split):
            yield from _few_with_much(split, [pair.mask for pair in pairs], dataset.encoding, counts)


def _few_with_much(
    split: str, labels: list[Label], encoding: MaskEncoding, counts: Mapping[Label, dict[int, int]]
) -> Iterator[Problem]:
    one = 255 if encoding is MaskEncoding.BINARY_255 else 1
    pixels = {label: counts[label].get(one, 0) for label in labels}
    shares = {label: n / max(1, sum(counts[label].values())) for label, n in pixels.items()}
    held = [share for share in shares.values() if share > 0]
    if len(held) < _ENOUGH:
        return
    usual = median(held)
    much = [label for label in labels if shares[label] > _MUCH * usual]
    part = sum(pixels[label] for label in much) / sum(pixels.values())
    if part < _PART or len(much) > len(labels) / 10:
        return
    rule = (
        "Scores over the pixels of all images together hang on such masks; areas that were filled by mistake "
        "look like this."
    )
    fix = "Look at it. If it is right, read image_mean_dice_foreground beside mean_dice_foreground."
    for label in much:
        found = (
            f"foreground is {100 * shares[label]:.3g} % of this mask and {100 * usual:.2g} % of the median "
            f"one; such masks, {len(much)} of {len(labels)} in {split}, hold {100 * part:.0f} % of all "
            "foreground"
        )
        yield Problem("warning", "much-foreground", str(label), found, rule, fix)


def _place(pairs: Sequence[Pair]) -> str:
    """Folder of the training masks, or the file that they are all in."""
    places = {str(pair.mask) for pair in pairs}
    return places.pop() if len(places) == 1 else str(pairs[0].mask.path.parent)


def _reading(dataset: DataSet) -> str:
    return f"'{dataset.classes[1]}'" if dataset.encoding is MaskEncoding.BINARY_255 else "'ignore'"
