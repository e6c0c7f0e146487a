"""The data doctor: every problem in a data set, by file, in one run, with the rule and the fix."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from convlora.data.check_files import Scanned, check_copies, check_files
from convlora.data.check_values import check_training, check_values, find_encoding
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
from convlora.data.masks import MaskEncoding
from convlora.data.report import Problem, Report
from convlora.data.scan import ImageFacts, MaskFacts, scan_all
from convlora.errors import DataError

__all__ = ["Problem", "Report", "check_dataset"]


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
    scanned = Scanned(folders, images, masks)
    report = Report()
    report.problems += check_files(scanned)
    encoding, problems = find_encoding(scanned, names)
    report.problems += problems
    names = names or ("background", "foreground")
    if not problems:
        report.problems += check_values(scanned, names, encoding)
    pairs, problems = _split(folders, splits, split_seed)
    report.problems += problems
    report.problems += check_copies(folders, pairs, images)
    shares = _shares(pairs.get("train", []), names, encoding, masks)
    if report.ok:
        digests = {path: facts.digest for path, facts in images.items()}
        digests |= {path: facts.digest for path, facts in masks.items()}
        report.found = DataSet(root, pairs, names, encoding, fingerprint(pairs, digests), shares)
    if report.found is not None and "train" in splits:
        report.problems += check_training(report.found)
    report.statistics = {
        "images": {split: len(found) for split, found in pairs.items()},
        "classes": list(names),
        "share of training pixels": {name: round(share, 4) for name, share in shares.items()},
        **_sizes(images),
        "mask values": encoding.value,
    }
    return report


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
    for split in sorted(set(pairs) - set(wanted)):
        if not pairs[split]:
            fix = f"Fill it or remove the folder {split}."
            found = "the split has no pair of image and mask"
            problems.append(Problem("warning", "empty-split", split, found, "It cannot be scored.", fix))
    for split in wanted:
        if not pairs.get(split):
            found = f"the split '{split}' is {'empty' if split in pairs else 'missing'}"
            rule = f"These splits are needed here: {', '.join(wanted)}."
            fix = f"Put image and mask pairs into {split}/images and {split}/masks."
            code = "empty-split" if split in pairs else "missing-split"
            problems.append(Problem("error", code, split, found, rule, fix))
    return pairs, problems


def _shares(
    pairs: Iterable[Pair], names: tuple[str, ...], encoding: MaskEncoding, masks: dict[Path, MaskFacts]
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
