"""Write any readable data set in the plain layout: {train,val,test}/{images,masks} and classes.txt."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from convlora.data.layout import DataSet, Pair
from convlora.data.masks import save_mask
from convlora.data.progress import ShowProgress, no_progress
from convlora.errors import DataError


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        counts: images of each split.
        classes: names, id 0 first.
        warnings: what the check of the data had to say.
    """

    counts: dict[str, int]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]


def convert_dataset(
    data: Path,
    out: Path,
    *,
    palette: Path | None = None,
    classes: Sequence[str] | None = None,
    split_seed: int = 0,
    progress: ShowProgress = no_progress,
) -> Converted:
    """Check a data set and write it anew: images byte for byte, masks as PNGs of class ids.

    Data without splits gets the same ones as in a training. Nothing is written where the data has errors.

    Args:
        data: whatever `check_dataset` reads.
        out: new or empty folder.
        palette: see `check_dataset`.
        classes: see `check_dataset`.
        split_seed: see `check_dataset`.
        progress: shows how far the check is.

    Raises:
        DataError: the data has errors, `out` holds something or cannot be written, or two names clash.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Give a new folder, or empty it.")
    report = check_dataset(
        data, classes, palette=palette, splits=(), split_seed=split_seed, progress=progress
    )
    report.raise_if_errors()
    dataset = report.dataset
    for split, pairs in dataset.splits.items():
        _check_names(pairs, split)
    try:
        _write(dataset, out)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error}. What is there is not complete: delete it, make "
            "room, try again."
        ) from error
    counts = {split: len(pairs) for split, pairs in dataset.splits.items()}
    return Converted(counts, dataset.classes, tuple(map(str, report.warnings)))


def _check_names(pairs: Sequence[Pair], split: str) -> None:
    """Names that would be one file on a file system that ignores case."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        known = first.setdefault(pair.stem.lower(), pair)
        if known is not pair:
            raise DataError(
                f"{known.image} and {pair.image} would both be {split}/images/{pair.stem}. Rename one "
                "of them."
            )


def _write(dataset: DataSet, out: Path) -> None:
    for split, pairs in dataset.splits.items():
        for kind in ("images", "masks"):
            (out / split / kind).mkdir(parents=True)
        for pair in pairs:
            shutil.copyfile(pair.image, out / split / "images" / f"{pair.stem}{pair.image.suffix}")
            ids = read_label(pair.mask, dataset.encoding)
            save_mask(out / split / "masks" / f"{pair.stem}.png", ids)
    (out / "classes.txt").write_text("\n".join(dataset.classes) + "\n", encoding="utf-8")
