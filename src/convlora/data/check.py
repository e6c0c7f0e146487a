"""The data doctor: every problem in a data set, by file, in one run, with the rule and the fix."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from convlora.data.layout import (
    DataSet,
    Folder,
    Pair,
    check_names,
    find_folders,
    fingerprint,
    pair_by_stem,
    read_class_names,
    split_pairs,
)
from convlora.data.masks import IGNORE, MaskEncoding
from convlora.data.scan import ImageFacts, MaskFacts, scan_all
from convlora.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One finding."""

    severity: Literal["error", "warning"]
    code: str
    file: str
    found: str
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.file}: {self.found}. {self.rule} {self.fix}".replace(". .", ".")


@dataclass
class Report:
    """All findings, and the data set where there are no errors."""

    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    found: DataSet | None = None

    @property
    def errors(self) -> list[Problem]:
        """Problems that stop a training."""
        return [p for p in self.problems if p.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems to know of."""
        return [p for p in self.problems if p.severity == "warning"]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    @property
    def dataset(self) -> DataSet:
        """The checked data set; raises the errors if there are any."""
        self.raise_if_errors()
        if self.found is None:
            raise DataError("The data could not be read.")
        return self.found

    def raise_if_errors(self, limit: int = 20) -> None:
        """Raise a DataError that lists the errors.

        Raises:
            DataError: there are errors.
        """
        if self.ok:
            return
        lines = [f"  {problem}" for problem in self.errors[:limit]]
        more = len(self.errors) - limit
        if more > 0:
            lines.append(f"  ... and {more} more: convlora check shows all")
        raise DataError(f"The data has {len(self.errors)} errors:\n" + "\n".join(lines))

    def to_json(self) -> str:
        """The report for programs."""
        content = {
            "ok": self.ok,
            "statistics": self.statistics,
            "problems": [asdict(p) for p in self.problems],
        }
        return json.dumps(content, indent=2)

    def to_text(self) -> str:
        """The report for people."""
        lines = [f"{problem.severity}: {problem}" for problem in (*self.errors, *self.warnings)]
        for key, value in self.statistics.items():
            lines.append(f"{key}: {value}")
        lines.append(f"{len(self.errors)} errors, {len(self.warnings)} warnings")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Scanned:
    """Everything that the checks look at."""

    folders: list[Folder]
    images: dict[Path, ImageFacts]
    masks: dict[Path, MaskFacts]


def check_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    splits: Sequence[str] = ("train", "val"),
    split_seed: int = 0,
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
) -> Report:
    """Check a data set without stopping at the first problem.

    Args:
        root: data folder.
        classes: class names, id 0 first; by default from classes.txt or data.yaml, else binary.
        splits: splits that must be there.
        split_seed: of the split that is made where the folder has none.
        workers: threads.
        progress: called after each file.

    Returns:
        The report; its `dataset` can be used where there are no errors.

    Raises:
        DataError: the layout or the class names are wrong altogether.
    """
    folders = find_folders(root)
    names = check_names(classes, "--classes") if classes else read_class_names(root)
    images, masks = scan_all(
        [p for folder in folders for p in folder.images],
        [p for folder in folders for p in folder.masks],
        workers,
        progress,
    )
    scanned = _Scanned(folders, images, masks)
    report = Report()
    report.problems += _check_files(scanned)
    encoding, problems = _find_encoding(scanned, names)
    report.problems += problems
    names = names or ("background", "foreground")
    if not problems:
        report.problems += _check_values(scanned, names, encoding)
    pairs, problems = _split(folders, splits, split_seed)
    report.problems += problems
    if report.ok:
        report.found = _dataset(root, pairs, names, encoding, masks)
        report.problems += _check_training(report.found, masks)
        report.statistics = _statistics(report.found, images)
    return report


# --- files --------------------------------------------------------------------------------------------------


def _check_files(scanned: _Scanned) -> Iterator[Problem]:
    for folder in scanned.folders:
        yield from _check_pairing(folder)
        for stray in folder.others:
            yield Problem(
                "warning", "stray-file", str(stray), "not an image", "It is not used.", "Move it away."
            )
    errors = [("image", facts.path, facts.error) for facts in scanned.images.values() if facts.error]
    errors += [("mask", facts.path, facts.error) for facts in scanned.masks.values() if facts.error]
    for kind, path, error in errors:
        rule = f"Every {kind} must be readable."
        yield Problem("error", f"unreadable-{kind}", str(path), error, rule, "")
    yield from _check_sizes(scanned)
    yield from _check_leaks(scanned)
    for mask in scanned.masks.values():
        if mask.path.suffix.lower() in {".jpg", ".jpeg"}:
            found = f"JPEG with {len(mask.counts)} different values"
            rule = "JPEG changes the values of a mask."
            fix = "Save masks as PNG, from the original labels."
            severity: Literal["error", "warning"] = "error" if len(mask.counts) > 2 else "warning"
            yield Problem(severity, "jpeg-mask", str(mask.path), found, rule, fix)


def _check_pairing(folder: Folder) -> Iterator[Problem]:
    rule = "An image and its mask have the same name but for the ending."
    groups = {"image": _by_stem(folder.images), "mask": _by_stem(folder.masks)}
    for kind, other in (("image", "mask"), ("mask", "image")):
        for stem, paths in groups[kind].items():
            if len(paths) > 1:
                found = f"{len(paths)} files of one name: {', '.join(p.name for p in paths)}"
                yield Problem("error", "duplicate-stem", str(paths[0]), found, rule, "Keep one of them.")
            if stem not in groups[other]:
                place = f"{folder.split}/{other}s"
                fix = f"Add {stem}.png to {place}, or remove this file."
                yield Problem("error", f"missing-{other}", str(paths[0]), f"no {other} in {place}", rule, fix)
        clashes = _by_stem(folder.images if kind == "image" else folder.masks, lower=True)
        for paths in clashes.values():
            if len({p.stem for p in paths}) > 1:
                found = f"differs only in case from {paths[1].name}"
                fix = "Rename one; some file systems cannot tell them apart."
                yield Problem("error", "case-clash", str(paths[0]), found, rule, fix)


def _by_stem(paths: Iterable[Path], lower: bool = False) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[path.stem.lower() if lower else path.stem].append(path)
    return groups


def _check_sizes(scanned: _Scanned) -> Iterator[Problem]:
    for pair in (pair for folder in scanned.folders for pair in pair_by_stem(folder)):
        image, mask = scanned.images[pair.image].size, scanned.masks[pair.mask].size
        if image and mask and image != mask:
            found = f"{mask[0]} x {mask[1]}, but its image is {image[0]} x {image[1]} (height x width)"
            rule = "An image and its mask have the same size."
            fix = "Export the mask again at the image's size."
            if image == mask[::-1]:
                fix = "One is turned: apply the photograph's EXIF orientation to the mask, or remove it."
            yield Problem("error", "size-mismatch", str(pair.mask), found, rule, fix)


def _check_leaks(scanned: _Scanned) -> Iterator[Problem]:
    first: dict[str, tuple[str, Path]] = {}
    for folder in scanned.folders:
        for path in folder.images:
            digest = scanned.images[path].digest
            split, known = first.setdefault(digest, (folder.split, path))
            if digest and split != folder.split:
                found = f"the same picture as {known}"
                rule = "No picture may be in two splits: the scores would be too good."
                yield Problem("error", "same-image", str(path), found, rule, "Remove it from one of them.")


# --- values -------------------------------------------------------------------------------------------------


def _find_encoding(scanned: _Scanned, names: tuple[str, ...] | None) -> tuple[MaskEncoding, list[Problem]]:
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


def _not_binary(scanned: _Scanned, values: set[int], names: tuple[str, ...] | None) -> Problem:
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


def _check_values(scanned: _Scanned, names: tuple[str, ...], encoding: MaskEncoding) -> Iterator[Problem]:
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


# --- splits -------------------------------------------------------------------------------------------------


def _split(
    folders: list[Folder], wanted: Sequence[str], seed: int
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    if folders[0].split == "all":
        try:
            return split_pairs(pair_by_stem(folders[0]), seed), []
        except DataError as error:
            return {}, [Problem("error", "too-few", "images", str(error), "", "")]
    pairs: dict[str, list[Pair]] = {}
    for folder in folders:
        pairs.setdefault(folder.split, []).extend(pair_by_stem(folder))
    problems = []
    for split in wanted:
        if not pairs.get(split):
            found = f"the split '{split}' is {'empty' if split in pairs else 'missing'}"
            rule = f"These splits are needed here: {', '.join(wanted)}."
            fix = f"Put image and mask pairs into {split}/images and {split}/masks."
            problems.append(Problem("error", "missing-split", split, found, rule, fix))
    return pairs, problems


def _dataset(
    root: Path,
    pairs: dict[str, list[Pair]],
    names: tuple[str, ...],
    encoding: MaskEncoding,
    masks: dict[Path, MaskFacts],
) -> DataSet:
    counts: Counter[int] = Counter()
    for pair in pairs.get("train", []):
        for value, pixels in masks[pair.mask].counts.items():
            counts[int(value > 0) if encoding is MaskEncoding.BINARY_255 else value] += pixels
    labelled = max(1, sum(counts[i] for i in range(len(names))))
    shares = {name: counts[i] / labelled for i, name in enumerate(names)}
    every = [pair for split in sorted(pairs) for pair in pairs[split]]
    return DataSet(root, pairs, names, encoding, fingerprint(every), shares)


def _check_training(dataset: DataSet, masks: dict[Path, MaskFacts]) -> Iterator[Problem]:
    if not dataset.splits.get("train"):
        return
    for name, share in dataset.shares.items():
        if share == 0:
            rule = "A class without pixels is not learnt."
            fix = "Label it in some training images, or remove it from the classes."
            yield Problem("warning", "class-without-pixels", name, "no training mask holds it", rule, fix)


def _statistics(dataset: DataSet, images: dict[Path, ImageFacts]) -> dict[str, Any]:
    sizes = sorted((f.size for f in images.values() if f.size), key=lambda size: size[0] * size[1])
    return {
        "images": {split: len(pairs) for split, pairs in dataset.splits.items()},
        "classes": list(dataset.classes),
        "share of training pixels": {name: round(share, 4) for name, share in dataset.shares.items()},
        "smallest image": sizes[0],
        "largest image": sizes[-1],
        "mask values": dataset.encoding.value,
    }
