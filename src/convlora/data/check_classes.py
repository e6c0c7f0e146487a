"""Checks of what the classes stand for: warnings of scores and trainings that mean something else."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from convlora.data.labels import Label, MaskFile
from convlora.data.layout import DataSet, Pair
from convlora.data.masks import IGNORE, MaskEncoding
from convlora.data.palette import FILE
from convlora.data.report import Problem

_MUCH = 2 / 3  # of the labelled pixels: a model that says 'foreground' everywhere has a Dice of 0.8 then
#: Names of what has no label, rather than of what is none of the classes.
_NO_LABEL = {"unlabelled", "unlabeled", "nodata", "no data", "no_data", "no-data", "void", "ignore"}


def check_classes(
    dataset: DataSet, counts: Mapping[Label, dict[int, int]], scored: str | None = None
) -> Iterator[Problem]:
    """Classes that a split cannot score, that are no classes, or that are the other way round.

    Args:
        dataset: splits, classes and their shares of the training pixels.
        counts: pixels of each value in every label.
        scored: the only split that will be used; None for all.
    """
    for split, pairs in dataset.splits.items():
        if pairs and (split == scored or (scored is None and split != "train")):
            yield from _check_absent(split, dataset, counts)
    if scored is None and dataset.splits.get("train"):
        yield from _check_foreground_share(dataset, counts)
        yield from _check_no_label(dataset)


def _check_absent(split: str, dataset: DataSet, counts: Mapping[Label, dict[int, int]]) -> Iterator[Problem]:
    pairs, others = dataset.splits[split], {s: p for s, p in dataset.splits.items() if s != split}
    for index, name in enumerate(dataset.classes):
        value = IGNORE if index and dataset.encoding is MaskEncoding.BINARY_255 else index
        holders = {s: sum(value in counts.get(p.mask, {}) for p in there) for s, there in others.items()}
        held = ", ".join(f"{n} of {s}" for s, n in holders.items() if n)
        if any(value in counts.get(p.mask, {}) for p in pairs) or not held:
            continue
        found = f"no mask of {split} ({len(pairs)}) holds '{name}', but {held} do"
        rule = "There a class has no score, or 0 as soon as one pixel is taken for it."
        if split == "val":
            rule += " The scores of val choose the best step."
        fix = "Make splits of which each holds every class."
        if dataset.by_seed:
            fix += " convlora convert DATA --out NEW --seed N makes others by another seed."
        yield Problem("warning", "class-not-in-split", _place(pairs[0]), found, rule, fix)


def _check_foreground_share(dataset: DataSet, counts: Mapping[Label, dict[int, int]]) -> Iterator[Problem]:
    """Inverted masks, such as membranes drawn in 0 on cells of 255."""
    if len(dataset.classes) != 2 or not _MUCH < dataset.shares[dataset.classes[1]] < 1:
        return
    first = dataset.splits["train"][0]
    share = f"{100 * dataset.shares[dataset.classes[1]]:.0f} %"
    found = f"the foreground, '{dataset.classes[1]}', is {share} of the labelled training pixels"
    rule = "Scores are of the foreground, and high for any model where it is nearly everywhere."
    fix = "Fine if that is what you look for."
    if isinstance(first.mask, MaskFile) and first.mask.palette is None:
        value = 255 if dataset.encoding is MaskEncoding.BINARY_255 else 1
        below, above = reversed(dataset.classes)
        if dataset.classes == ("background", "foreground"):
            below, above = dataset.classes
        lines = [f"{value} {value} {value} {below}", f"0 0 0 {above}"]
        if value == 1 and any(IGNORE in held for held in counts.values()):
            lines.append("255 255 255 ignore")
        fix += f" If it is what the masks hold 0 for, {_write_palette(dataset, lines)}"
    elif isinstance(first.mask, MaskFile):
        fix += " Else turn the order of the classes in the palette round."
    yield Problem("warning", "mostly-foreground", _place(first), found, rule, fix)


def _check_no_label(dataset: DataSet) -> Iterator[Problem]:
    first = dataset.splits["train"][0]
    if not isinstance(first.mask, MaskFile) or first.mask.palette is not None or len(dataset.classes) < 3:
        return
    for index, name in enumerate(dataset.classes):
        share = dataset.shares[name]
        if name.strip().lower() not in _NO_LABEL or not share:
            continue
        found = f"'{name}' (id {index}) is {100 * share:.2g} % of the training pixels, and learnt as a class"
        rule = "Only 255 is left out of loss and scores."
        names = ["ignore" if i == index else other for i, other in enumerate(dataset.classes)]
        lines = [f"{i} {i} {i} {other}" for i, other in enumerate(names)] + ["255 255 255 ignore"]
        fix = f"If these pixels have no label or no data, {_write_palette(dataset, lines)}"
        yield Problem("warning", "unlabelled-class", _place(first), found, rule, fix)


def _write_palette(dataset: DataSet, lines: list[str]) -> str:
    """How grey masks of ids are given other ids, without a change of the files."""
    base = dataset.root if dataset.root.is_dir() else dataset.root.parent
    named = (base / "classes.txt").is_file()
    place = f"{base / FILE}{' in place of classes.txt' if named else ''}"
    listed = "\n".join(lines)
    return f"write {place} (for grey masks; indexed ones need the colours that a viewer shows):\n{listed}"


def _place(pair: Pair) -> str:
    path: Path = pair.mask.path
    return str(path.parent if isinstance(pair.mask, MaskFile) else path)
