"""The data doctor: every problem in a data set, by file, in one run, with the rule and the fix."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convlora.data.check_files import Scanned, check_copies, check_files
from convlora.data.check_values import check_training, check_values, find_encoding
from convlora.data.classes import check_names, read_class_lines, read_class_names
from convlora.data.find import find_source
from convlora.data.labels import Label, MaskFile
from convlora.data.layout import DataSet, Folder, Pair, fingerprint, pair_by_stem, split_pairs
from convlora.data.masks import MaskEncoding
from convlora.data.palette import FILE as PALETTE
from convlora.data.palette import Palette, count_colours, draft, find_palette
from convlora.data.report import Problem, Report
from convlora.data.scan import ImageFacts, MaskFacts, scan_all
from convlora.data.source import Source
from convlora.data.splits import OTHER_DATA, Record, follow_record
from convlora.data.yolo import BAD_LINE
from convlora.errors import DataError

__all__ = ["Problem", "Report", "check_dataset"]


def check_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    palette: Path | None = None,
    splits: Sequence[str] = ("train", "val"),
    split_seed: int = 0,
    record: Record | None = None,
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
) -> Report:
    """Check a data set without stopping at the first problem.

    Args:
        root: data folder, or a .csv, COCO .json or YOLO .yaml.
        classes: class names, id 0 first; by default those that labels or palette come with, else from
            classes.txt or data.yaml, else binary.
        palette: file with the colours of the classes; by default palette.txt of the data folder.
        splits: splits that must be there.
        split_seed: of the split that is made where the data has none.
        record: splits of a run, which are taken in place of a new one.
        workers: threads.
        progress: called after each file.

    Returns:
        The report; its `dataset` can be used where there are no errors.

    Raises:
        DataError: the layout, the palette or the class names are wrong altogether.
    """
    source = find_source(root)
    colours = find_palette(source.base, palette)
    names = _class_names(source, colours, classes)
    folders = _with_palette(source, colours)
    images, masks = scan_all(
        [p for folder in folders for p in folder.images],
        [p for folder in folders for p in folder.masks],
        workers,
        progress,
    )
    scanned = Scanned(folders, images, masks)
    report = Report()
    report.problems += source.problems
    report.problems += _join_colour_masks(check_files(scanned), scanned, source.base, root)
    encoding, problems = _encoding(source, colours, scanned, names)
    report.problems += problems
    names = names or ("background", "foreground")
    if not problems:
        report.problems += check_values(scanned, names, encoding)
    digests = {path: facts.digest for path, facts in images.items()}
    pairs, problems = _split(folders, splits, split_seed, record, digests)
    report.problems += problems
    report.problems += check_copies(folders, pairs, images)
    shares = _shares(pairs.get("train", []), names, encoding, masks)
    if report.ok:
        total = fingerprint(pairs, digests, {label: facts.digest for label, facts in masks.items()})
        new = record is None or any(problem.code == OTHER_DATA for problem in problems)
        by_seed = folders[0].split == "all" and new
        report.found = DataSet(root, pairs, names, encoding, total, shares, digests, by_seed)
    if report.found is not None and "train" in splits:
        report.problems += check_training(report.found)
    report.statistics = {
        "layout": source.layout + (f", palette {colours.source.name}" if colours else ""),
        "images": {split: len(found) for split, found in pairs.items()},
        "classes": list(names),
        "share of training pixels": {name: round(share, 4) for name, share in shares.items()},
        **_sizes(images),
        "mask values": encoding.value,
    }
    return report


def _class_names(
    source: Source, palette: Palette | None, asked: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Names of the classes; what labels or palette say cannot be overruled."""
    given = check_names(asked, "--classes") if asked else None
    own = palette.classes if palette else source.classes
    if own is None:
        return given or read_class_names(source.base)
    other = given or read_class_lines(source.base)
    if other is not None and other != own and not (source.shapes and other == own[1:]):
        place = "the classes asked for are" if given else f"{source.base / 'classes.txt'} says"
        raise DataError(
            f"{palette.source if palette else source.layout} names the classes {', '.join(own)}, but {place} "
            f"{', '.join(other)}. Both must be the same, in the same order."
        )
    return own


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


def _encoding(
    source: Source, palette: Palette | None, scanned: Scanned, names: tuple[str, ...] | None
) -> tuple[MaskEncoding, list[Problem]]:
    if source.shapes or palette:
        return MaskEncoding.IDS, []
    return find_encoding(scanned, names)


def _join_colour_masks(
    problems: Iterable[Problem], scanned: Scanned, base: Path, root: Path
) -> Iterator[Problem]:
    """All colour masks as one problem, with the palette to fill in; bad lines of labels were told before."""
    coloured: list[Problem] = []
    for problem in problems:
        if problem.code == "colour-mask":
            coloured.append(problem)
        elif problem.code != BAD_LINE:
            yield problem
    if coloured:
        first = coloured[0]
        more = f" ({len(coloured)} of {len(scanned.masks)} masks hold colours)" if len(coloured) > 1 else ""
        counted = count_colours(label.path for label in scanned.masks)
        fix = (
            f"Write this into {base / PALETTE} with your names, id 0 first ('ignore' leaves pixels out; one "
            f"name may have several colours), or into another file for --palette FILE:\n{draft(counted)}\n"
            f"Then: convlora check {root}"
        )
        yield replace(first, found=first.found + more, fix=fix)


def _split(
    folders: list[Folder],
    wanted: Sequence[str],
    seed: int,
    record: Record | None,
    digests: Mapping[Path, str],
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    if folders[0].split == "all":
        return _make_split(pair_by_stem(folders[0]), wanted, seed, record, digests)
    pairs: dict[str, list[Pair]] = {}
    for folder in folders:
        pairs.setdefault(folder.split, []).extend(pair_by_stem(folder))
    problems = []
    for split in sorted(set(pairs) - set(wanted)):
        if not pairs[split]:
            fix = f"Fill it or remove the folder {split}."
            found = "the split has no pair of image and mask"
            problems.append(Problem("warning", "empty-split", split, found, "It cannot be scored.", fix))
    return pairs, problems + list(_missing_splits(pairs, wanted))


def _make_split(
    pairs: list[Pair], wanted: Sequence[str], seed: int, record: Record | None, digests: Mapping[Path, str]
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    """Splits of data that has none: the record's, else by the seed."""
    problems: list[Problem] = []
    if record is not None:
        followed, problems = follow_record(pairs, record, digests)
        if followed is not None:
            return followed, problems + list(_missing_splits(followed, wanted))
    try:
        made = split_pairs(pairs, seed)
    except DataError as error:
        return {}, [Problem("error", "too-few", "images", str(error), "", "")]
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


def _sizes(images: dict[Path, ImageFacts]) -> dict[str, Any]:
    sizes = sorted((f.size for f in images.values() if f.size), key=lambda size: size[0] * size[1])
    return {"smallest image": sizes[0], "largest image": sizes[-1]} if sizes else {}
