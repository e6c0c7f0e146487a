"""Write any readable data set in the plain layout: {train,val,test}/{images,masks} and classes.txt."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convlora.data.check import check_dataset
from convlora.data.gather import gathered
from convlora.data.groups import Grouping, grouping, tell_groups
from convlora.data.labels import read_label
from convlora.data.layout import BY_SEED, DataSet, Pair
from convlora.data.masks import save_mask
from convlora.data.progress import ShowProgress, no_progress
from convlora.data.tiling import LEAST_SIDE, cut
from convlora.errors import ConfigError, DataError, WriteError
from convlora.output import check_new_folder, filled_at_once


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        counts: images of each split.
        classes: names, id 0 first.
        warnings: what the check of the data had to say, of many findings of a kind the first.
        left_out: tiles of one colour, or without a label.
        notes: how the splits were made, where the data had none.
    """

    counts: dict[str, int]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    left_out: int = 0
    notes: tuple[str, ...] = ()


def convert_dataset(
    data: Path,
    out: Path,
    *,
    palette: Path | None = None,
    classes: Sequence[str] | None = None,
    split_seed: int = 0,
    group_by: str | None = None,
    tile: int | None = None,
    progress: ShowProgress = no_progress,
) -> Converted:
    """Check a data set and write it anew: images byte for byte, masks as PNGs of class ids.

    Data without splits gets the same ones as in a training. Nothing is written where the data has errors,
    and nothing is left of what was not finished.
    Tiles of one image stay in its split.

    Args:
        data: whatever `check_dataset` reads.
        out: new or empty folder.
        palette: see `check_dataset`.
        classes: see `check_dataset`.
        split_seed: see `check_dataset`.
        group_by: regular expression for the split that is made where the data has none: images go into one
            split where what it finds in their names (below `data`) is the same; of a part in brackets, that.
        tile: cut images that are larger into tiles of this side in pixels, 32 or more, which are spread
            evenly and cover all; those of one colour or without a label are left out.
        progress: shows how far the check is.

    Raises:
        DataError: the data has errors, `out` holds something, or two names clash.
        WriteError: `out` cannot be written.
        ConfigError: `tile` or `split_seed` is no whole number or too small; `group_by` is no regular
            expression, does not fit an image, or the data has splits.
    """
    _check_whole("seed", split_seed, 0, "whole number")
    if tile is not None:
        _check_whole("tile", tile, LEAST_SIDE, "whole number of pixels")
    check_new_folder(out)
    group = None if group_by is None else grouping(data, group_by)
    report = check_dataset(
        data,
        classes,
        palette=palette,
        splits=(),
        split_seed=split_seed,
        group=group,
        progress=progress,
    )
    report.raise_if_errors()
    dataset = report.dataset
    if group_by is not None and not dataset.by_seed:
        raise ConfigError(f"group_by is {group_by!r}, but {data} has splits, which stay. Leave it out.")
    for split, pairs in dataset.splits.items():
        _check_names(pairs, split)
    try:
        with filled_at_once(out) as part:
            counts, left_out = _write(dataset, part, tile)
    except OSError as error:
        raise WriteError(
            f"{out} cannot be written: {error}. Nothing of it is left. Make room, or choose another place."
        ) from error
    warnings = tuple(gathered(report.warnings))
    return Converted(counts, dataset.classes, warnings, left_out, _notes(dataset, split_seed, group))


def _notes(dataset: DataSet, seed: int, group: Grouping | None) -> tuple[str, ...]:
    if group is not None:
        images = {split: [pair.image for pair in pairs] for split, pairs in dataset.splits.items()}
        return (f"groups: {tell_groups(images, group)}",)
    return (f"splits: {BY_SEED.format(seed=seed)}",) if dataset.by_seed else ()


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


def _check_whole(name: str, value: object, least: int, kind: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a {kind}, {least} or more.")


def _write(dataset: DataSet, out: Path, tile: int | None) -> tuple[dict[str, int], int]:
    """Write all; images of each split, and how many tiles were left out."""
    counts, left_out = dict.fromkeys(dataset.splits, 0), 0
    for split, pairs in dataset.splits.items():
        for kind in ("images", "masks"):
            (out / split / kind).mkdir(parents=True)
        for pair in pairs:
            ids = read_label(pair.mask, dataset.encoding)
            if tile is not None and max(ids.shape) > tile:
                written, dropped = _write_tiles(pair, ids, out / split, tile)
                counts[split], left_out = counts[split] + written, left_out + dropped
                continue
            save_mask(_new_mask(out / split, pair.stem, pair), ids)
            shutil.copyfile(pair.image, out / split / "images" / f"{pair.stem}{pair.image.suffix}")
            counts[split] += 1
    (out / "classes.txt").write_text("\n".join(dataset.classes) + "\n", encoding="utf-8")
    return counts, left_out


def _new_mask(folder: Path, name: str, pair: Pair) -> Path:
    """Place of a mask; tiles are named here only, and an image may have such a name already."""
    file = folder / "masks" / f"{name}.png"
    if file.exists():
        raise DataError(
            f"{pair.image} and another image would both be {name}. Rename one of them. Nothing was written."
        )
    return file


def _write_tiles(pair: Pair, ids: np.ndarray, folder: Path, side: int) -> tuple[int, int]:
    """Write the tiles of an image; how many, and how many others were left out."""
    written = dropped = 0
    for part in cut(pair, ids, side):
        if not part.teaches:
            dropped += 1
            continue
        save_mask(_new_mask(folder, part.name, pair), part.ids)
        part.save_image(folder / "images" / f"{part.name}.png")
        written += 1
    return written, dropped
