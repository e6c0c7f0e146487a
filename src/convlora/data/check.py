"""The data doctor: every problem in a data set, by file, in one run, with the rule and the fix."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from convlora.data.check_classes import check_classes
from convlora.data.check_colours import check_indices, join_colour_masks
from convlora.data.check_files import Scanned, check_copies, check_files
from convlora.data.check_folders import check_folders, rename_hint, renames
from convlora.data.check_groups import check_groups
from convlora.data.check_names import class_names, own_names
from convlora.data.check_scored import only_split
from convlora.data.check_values import check_foreground, check_training, check_values, find_encoding
from convlora.data.find import find_source
from convlora.data.groups import Grouping, grouping, tell_groups
from convlora.data.labels import Label, MaskFile
from convlora.data.layout import BY_SEED, DataSet, Folder, Pair, fingerprint, pair_by_stem, split_pairs
from convlora.data.masks import MaskEncoding
from convlora.data.palette import FILE as PALETTE
from convlora.data.palette import Palette, find_palette
from convlora.data.progress import ShowProgress, no_progress
from convlora.data.report import Problem, Report, shown_file
from convlora.data.scan import ImageFacts, MaskFacts, scan_all
from convlora.data.source import Source, is_there
from convlora.data.splits import OTHER_DATA, Record, follow_record
from convlora.errors import DataError

__all__ = ["Problem", "Report", "check_dataset"]

_MORE = "Add pairs, or make the folders train and val."


def check_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    palette: Path | None = None,
    splits: Sequence[str] = ("train", "val"),
    scored: str | None = None,
    split_seed: int = 0,
    group: Grouping | None = None,
    group_by: str | None = None,
    record: Record | None = None,
    source: Source | None = None,
    workers: int | None = None,
    progress: ShowProgress = no_progress,
) -> Report:
    """Check a data set without stopping at the first problem.

    Args:
        root: data folder, or a .csv, COCO .json or YOLO .yaml.
        classes: class names, id 0 first; by default those that labels or palette come with, else from
            classes.txt or data.yaml, else binary.
        palette: file with the colours of the classes; by default palette.txt of the data folder.
        splits: splits that must be there.
        scored: the only split that will be used; faults of the others are warnings then.
        split_seed: of the split that is made where the data has none.
        group: of an image, for that split; see `split_pairs`.
        group_by: regular expression, see `grouping`; it makes no split, but groups in two splits are errors.
        record: splits of a run, which are taken in place of a new one.
        source: what `find_source` has given for `root`, if it was read before.
        workers: threads.
        progress: shows how far it is; see `show_progress`.

    Returns:
        The report; its `dataset` can be used where there are no errors. Where layout, palette or class names
        are wrong altogether, it tells what could be told without them.

    Raises:
        ConfigError: `group_by` is no regular expression, or does not fit an image.
    """
    report = Report()
    together = None if group_by is None else grouping(root, group_by)
    try:
        source = source or find_source(root)
    except (DataError, OSError) as error:
        told = Problem.of_error("layout", _named(root, error), error)
        fix = " ".join(part for part in (rename_hint(root), told.fix) if part)
        report.problems.append(replace(told, fix=fix))
        return report
    report.named = own_names(source)
    setting = _read_setting(source, classes, palette, report)
    folders = setting.folders
    images, masks = scan_all(
        [p for folder in folders for p in folder.images],
        [p for folder in folders for p in folder.masks],
        workers,
        progress,
    )
    scanned = Scanned(folders, images, masks)
    report.problems += source.problems
    report.problems += check_folders(source.base, folders)
    report.problems += join_colour_masks(check_files(scanned), masks.values(), source.base, root)
    encoding = _check_masks(source, setting, scanned, report, scored, root)
    names = setting.names or ("background", "foreground")
    digests = {path: facts.digest for path, facts in images.items()}
    made = partial(split_pairs, seed=split_seed, group=group)
    pairs, problems = _split(folders, splits, made, record, digests)
    report.problems += _with_renames(problems, source.base)
    report.problems += check_copies(folders, pairs, images)
    placed = {split: [pair.image for pair in found] for split, found in pairs.items()}
    if together is not None and group_by is not None:
        drawn = folders[0].split == "all"
        report.problems += check_groups(placed, together, drawn, group_by, root)
    if scored is not None:
        report.problems[:] = only_split(report.problems, scored, folders, pairs, source.places)
    shares = _shares(pairs.get("train", []), names, encoding, masks)
    if report.ok:
        total = fingerprint(pairs, digests, {label: facts.digest for label, facts in masks.items()})
        new = record is None or any(problem.code == OTHER_DATA for problem in problems)
        by_seed = folders[0].split == "all" and new
        largest = _largest(pairs.get("train", []), images)
        report.found = DataSet(root, pairs, names, encoding, total, shares, digests, by_seed, largest=largest)
    if report.found is not None:
        counts = {label: m.counts for label, m in masks.items()}
        report.problems += check_foreground(report.found, counts, scored)
        report.problems += check_classes(report.found, counts, scored)
        report.problems += check_training(report.found, counts) if "train" in splits else ()
    report.statistics = {
        "layout": source.layout + (f", palette {setting.colours.source.name}" if setting.colours else ""),
        "images": {split: len(found) for split, found in pairs.items()},
        **({"splits": BY_SEED.format(seed=split_seed)} if report.found and report.found.by_seed else {}),
        **({"groups": tell_groups(placed, together)} if together is not None else {}),
        "classes": list(names),
        "share of training pixels": {name: round(share, 4) for name, share in shares.items()},
        **_sizes(images),
        "mask values": encoding.value,
    }
    return report


@dataclass(frozen=True)
class _Setting:
    """How masks are to be read; `known` tells whether palette and class names could be."""

    folders: list[Folder]
    colours: Palette | None
    names: tuple[str, ...] | None
    known: bool


def _read_setting(
    source: Source, classes: Sequence[str] | None, palette: Path | None, report: Report
) -> _Setting:
    """Palette and class names; what is wrong with them is put into the report."""
    before = len(report.errors)
    colours, names, folders = None, None, source.folders
    try:
        colours = find_palette(source.base, palette)
        folders = _with_palette(source, colours)
    except (DataError, OSError) as error:
        report.problems.append(Problem.of_error("palette", palette or source.base / PALETTE, error))
        colours = None
    try:
        names, problems = class_names(source, colours, classes)
        report.problems += problems
    except (DataError, OSError) as error:
        report.problems.append(Problem.of_error("class-names", _named(source.base, error), error))
    return _Setting(folders, colours, names, len(report.errors) == before)


def _named(base: Path, error: Exception) -> Path:
    """The file of the data that a message begins with; else the folder."""
    text, start = str(error), len(str(base))
    if not text.startswith(str(base)):
        return base
    ends = [start + match.start() for match in re.finditer(r"[:, ]|$", text[start : start + 1000])]
    # the longest, as 'a b.csv' may lie beside a file 'a'
    return next((file for end in reversed(ends) if is_there(file := Path(text[:end]))), base)


def _check_masks(
    source: Source, setting: _Setting, scanned: Scanned, report: Report, scored: str | None, root: Path
) -> MaskEncoding:
    """Add the problems of the masks' values, and tell how these are read."""
    if not setting.known:
        return MaskEncoding.IDS
    names = setting.names or ("background", "foreground")
    if source.shapes or setting.colours:
        report.problems += check_values(scanned, names, MaskEncoding.IDS)
        return MaskEncoding.IDS
    sound = [mask for mask in scanned.masks.values() if not mask.error]
    report.problems += check_indices(sound, len(names) == 2, source.base, root)
    encoding, problems = find_encoding(scanned, setting.names)
    report.problems += problems
    if scored is not None:  # broken masks of other splits must not decide how those of this one are read
        blamed = {problem.file for problem in report.errors}
        unblamed = {label: m for label, m in scanned.masks.items() if shown_file(label) not in blamed}
        scanned = replace(scanned, masks=unblamed)
        encoding, problems = find_encoding(scanned, setting.names)
    if not any(problem.severity == "error" for problem in problems):
        report.problems += check_values(scanned, names, encoding)
    return encoding


def _with_renames(problems: Iterable[Problem], base: Path) -> Iterator[Problem]:
    """A split that is missing may be there under another name."""
    meant = renames(base)
    for problem in problems:
        name = meant.get(problem.file) if problem.code == "missing-split" else None
        yield replace(problem, fix=f"Rename {name} to {problem.file}.") if name else problem


def _with_palette(source: Source, palette: Palette | None) -> list[Folder]:
    """Folders whose mask files are read by the palette."""
    if palette is None:
        return source.folders
    if source.shapes:
        raise DataError(
            f"The palette {palette.source} is for mask files, but the data is {source.layout}, which "
            "has none. Leave the palette out."
        )

    def coloured(label: Label) -> Label:
        return replace(label, palette=palette) if isinstance(label, MaskFile) else label

    folders = []
    for folder in source.folders:
        pairs = folder.pairs and tuple(replace(pair, mask=coloured(pair.mask)) for pair in folder.pairs)
        folders.append(replace(folder, masks=tuple(map(coloured, folder.masks)), pairs=pairs))
    return folders


def _split(
    folders: list[Folder],
    wanted: Sequence[str],
    make: Callable[[list[Pair]], dict[str, list[Pair]]],
    record: Record | None,
    digests: Mapping[Path, str],
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    if folders[0].split == "all":
        return _make_split(pair_by_stem(folders[0]), wanted, make, record, digests)
    pairs: dict[str, list[Pair]] = {}
    for folder in folders:
        pairs.setdefault(folder.split, []).extend(pair_by_stem(folder))
    faulty = {folder.split for folder in folders if folder.fault}
    problems = []
    for split in sorted(set(pairs) - set(wanted)):
        if not pairs[split] and split not in faulty:
            fix = f"Fill it or remove the folder {split}."
            found = "the split has no pair of image and mask"
            problems.append(Problem("warning", "empty-split", split, found, "It cannot be scored.", fix))
    return pairs, problems + [p for p in _missing_splits(pairs, wanted) if p.file not in faulty]


def _make_split(
    pairs: list[Pair],
    wanted: Sequence[str],
    make: Callable[[list[Pair]], dict[str, list[Pair]]],
    record: Record | None,
    digests: Mapping[Path, str],
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    """Splits of data that has none: the record's, else by the seed."""
    problems: list[Problem] = []
    if record is not None:
        followed, problems = follow_record(pairs, record, digests)
        if followed is not None:
            return followed, problems + list(_missing_splits(followed, wanted))
    try:
        made = make(pairs)
    except DataError as error:
        return {}, [replace(Problem.of_error("too-few", "images", error), fix=_MORE)]
    return made, problems + list(_missing_splits(made, wanted))


def _missing_splits(pairs: Mapping[str, Sequence[Pair]], wanted: Sequence[str]) -> Iterator[Problem]:
    for split in wanted:
        if not pairs.get(split):
            found = f"the split '{split}' is {'empty' if split in pairs else 'missing'}"
            rule = f"These splits are needed here: {', '.join(wanted)}."
            fix = f"Put image and mask pairs into {split}/images and {split}/masks."
            code = "empty-split" if split in pairs else "missing-split"
            yield Problem("error", code, split, found, rule, fix)


def _shares(
    pairs: Iterable[Pair], names: tuple[str, ...], encoding: MaskEncoding, masks: dict[Label, MaskFacts]
) -> dict[str, float]:
    """Share of each class in the labelled pixels."""
    counts: Counter[int] = Counter()
    for pair in pairs:
        for value, pixels in masks[pair.mask].counts.items():
            counts[int(value > 0) if encoding is MaskEncoding.BINARY_255 else value] += pixels
    labelled = max(1, sum(counts[i] for i in range(len(names))))
    return {name: counts[i] / labelled for i, name in enumerate(names)}


def _largest(pairs: Iterable[Pair], images: Mapping[Path, ImageFacts]) -> tuple[int, int] | None:
    sizes = [size for pair in pairs if (size := images[pair.image].size)]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _sizes(images: dict[Path, ImageFacts]) -> dict[str, Any]:
    sizes = sorted((f.size for f in images.values() if f.size), key=lambda size: size[0] * size[1])
    return {"smallest image": sizes[0], "largest image": sizes[-1]} if sizes else {}
