"""Scores of a model on a split, at native resolution, one image at a time."""

import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convlora import run_files
from convlora.adapter_folder import read_config
from convlora.checkpoint import find_adapter, from_pretrained
from convlora.data.check import check_dataset
from convlora.data.check_names import own_names
from convlora.data.find import find_source
from convlora.data.gather import gathered
from convlora.data.images import read_image
from convlora.data.labels import MaskFile, read_label
from convlora.data.layout import SPLITS, DataSet, Pair
from convlora.data.palette import FILE as PALETTE
from convlora.data.progress import show_progress
from convlora.data.report import Problem, Report
from convlora.data.source import Source
from convlora.data.splits import check_unseen, read_record
from convlora.errors import ConfigError, DataError, WriteError
from convlora.image_scores import ImageScores, check_table
from convlora.inference.drawing import comparison, stack_rows
from convlora.inference.engine import choose_computing
from convlora.inference.notes import tile_note
from convlora.inference.pipeline import one_by_one, overlapped
from convlora.inference.predictor import Prediction, Predictor
from convlora.inference.tiles import choose_tiles
from convlora.metrics import SegmentationMetrics
from convlora.model import foreground_ids
from convlora.output import (
    check_file,
    check_folder,
    check_new,
    check_not_inputs,
    write_whole,
)
from convlora.settings import expand_user, near_hint, read_yaml

_OVERVIEW, _OVERVIEW_ROWS = "_overview.png", 4


def new_metrics(classes: tuple[str, ...], saliency: bool = True) -> SegmentationMetrics:
    """Empty accumulator for these classes; of two, with the saliency measures unless they are not wanted."""
    binary = saliency and len(classes) == 2
    return SegmentationMetrics(classes, list(foreground_ids(classes)), binary=binary)


def evaluate_run(
    run: str | Path,
    data: Path,
    split: str = "test",
    *,
    json_file: Path | None = None,
    per_image: Path | None = None,
    pictures: Path | None = None,
    palette: Path | None = None,
    overwrite: bool = False,
    backbone: str | None = None,
    device: str | None = None,
    precision: str = "auto",
    engine: str = "torch",
    tile: int | None = None,
    tile_overlap: int | None = None,
    warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score a fine-tuned model on a split.

    Args:
        run: run folder, adapter folder or hub id.
        data: data folder or file; its classes, if it names them, must be those of the model. Data without
            splits is split as it was for the run's training, by the run's split.json.
        split: 'train', 'val' or 'test'.
        json_file: where to write the scores; a run folder's metrics.json gets them too.
        per_image: .csv for the scores of each image.
        pictures: folder for pictures of image | truth | prediction, and `_overview.png` of a few of them.
        palette: colours of the classes, for colour masks; by default palette.txt of the data folder.
        overwrite: write over pictures that are there.
        backbone: where the backbone is now, if not where it was in training.
        device: where to compute.
        precision: auto, fp32, bf16 or fp16.
        engine: torch or openvino.
        tile: see `Predictor`, as tile_overlap; the scores are those of what it predicts.
        tile_overlap: see there.
        warn: is told the data's warnings; by default they go to standard error.
        tell: is told which images did worst.

    Returns:
        Flat scores with 'split', 'data', 'checkpoint', 'engine' and 'n_images'; with tiles also 'tile' and
        'tile_overlap'.

    Raises:
        DataError: the split is missing, its data has errors, or it holds images the run was trained on.
        WriteError: a result cannot be written.
        WeightsError: the model cannot be loaded.
        MissingExtraError: OpenVINO is asked for and not installed.
        ConfigError: an argument is not valid, the classes of model and data differ, or a result would be
            written over a file that must stay. All but the work itself is checked before it.
    """
    warn = warn or _to_standard_error
    run, data = expand_user(str(run)), Path(expand_user(str(data)))
    palette = palette and Path(expand_user(str(palette)))
    per_image = per_image and Path(expand_user(str(per_image)))
    _check_arguments(split, json_file, per_image, pictures)
    slow = choose_computing(engine, device, precision).warning
    tiles = choose_tiles(tile, tile_overlap)
    folder = find_adapter(run)  # once: of a hub id each time is a question to the network
    segmenter = from_pretrained(folder, backbone)
    classes = segmenter.config.classes
    source = _check_classes(classes, data)
    report = _check(run, folder, data, source, list(classes), split, palette)
    dataset = report.dataset
    pairs = dataset.splits[split]
    if pictures is not None:
        _check_pictures(pairs, dataset, pictures, overwrite)
    for line in [*gathered(report.warnings), *([slow] if slow else [])]:
        warn(f"warning: {line}")
    metrics, table = new_metrics(classes), ImageScores()
    predictor = Predictor(segmenter, device, precision, engine, tile=tile, tile_overlap=tile_overlap)
    rows: list[Image.Image] = []
    notes: list[str] = []
    shown = {pair.stem for pair in pairs[:: max(1, len(pairs) // _OVERVIEW_ROWS)][:_OVERVIEW_ROWS]}

    with show_progress(len(pairs), f"scoring {split}", "scored {} of {} images") as advance:

        def each(pair: Pair, prediction: Prediction, of_image: dict[str, float]) -> None:
            advance()
            table.add(pair.stem, of_image)
            height, width = prediction.ids.shape
            notes.append(tile_note(tiles, (height, width), segmenter.largest_image))
            if pictures is not None:
                picture = write_comparison(pair, prediction, dataset, pictures / f"{pair.stem}.png")
                rows.extend([picture] if pair.stem in shown else [])

        score_pairs(predictor, dataset, pairs, metrics, each)
    if large := next(filter(None, notes), ""):
        warn(f"warning: {large}")
    if pictures is not None:
        overview = stack_rows(rows)
        write_whole(pictures / _OVERVIEW, lambda part: overview.save(part, format="PNG"))
    made = {
        "split": split,
        "data": str(data.absolute()),
        "checkpoint": str(folder),
        "engine": engine,
    }
    scores = {**metrics.compute(), **made}
    if tiles is not None:
        scores |= {"tile": tiles.side, "tile_overlap": tiles.overlap}
    _record(scores, Path(run) / run_files.SCORES, json_file, warn)
    if per_image is not None:  # after the scores, which a full disk here must not cost
        table.write(per_image)
    if tell is not None and (worst := table.worst()):
        tell("lowest mean Dice: " + ", ".join(f"{name} {value:.4f}" for name, value in worst))
    return scores


def _check(
    run: str,
    folder: Path,
    data: Path,
    source: Source | None,
    classes: list[str],
    split: str,
    palette: Path | None,
) -> Report:
    """Check the data, with the splits of the run whose adapter folder this is."""
    record = read_record(Path(run))
    report = check_dataset(
        data,
        classes=classes,
        palette=palette,
        splits=(split,),
        scored=split,
        record=record,
        source=source,
        progress=show_progress,
    )
    if record is not None and report.found is not None:
        report.problems += check_unseen(report.found, split, record)
    if record is None and report.found is not None and report.found.by_seed:
        report.problems += check_same_data(run, folder, report.found)
    if record is not None:
        report.problems[:] = _tell_palette(report, data, record.file.with_name(run_files.CONFIG))
    report.raise_if_errors()
    return report


def _tell_palette(report: Report, data: Path, config: Path) -> list[Problem]:
    """The problems of data without a palette, of a run with one, which is named if it is still there.

    It is not taken unasked: other data may have a palette or class ids of its own.
    """
    palette = _palette_of_run(config)
    if palette is None:
        return report.problems
    fix = f"The run was trained with a palette. Give it here too: --palette {palette}."
    told = [
        replace(problem, fix=fix) if problem.code == "colour-mask" else problem for problem in report.problems
    ]
    masks = [p.mask for pairs in report.found.splits.values() for p in pairs] if report.found else []
    if any(isinstance(mask, MaskFile) and mask.palette is None for mask in masks):
        found = f"the masks are read as class ids, but the run was trained with the palette {palette}"
        rule = "A value may mean another class then, such as the background in place of the foreground."
        fix = (
            f"Give it here too: --palette {palette}. If the masks hold the ids of the model's classes, all "
            "is well."
        )
        told.append(Problem("warning", "no-palette", str(data), found, rule, fix))
    return told


def _palette_of_run(config: Path) -> Path | None:
    """The palette that a run was trained with, given or of its data, if it is still there."""
    if not config.is_file():
        return None
    values = read_yaml(config)
    if values.get("palette") is not None:
        file = Path(str(values["palette"]))
    else:
        data = Path(str(values.get("data")))
        file = (data if data.is_dir() else data.parent) / PALETTE
    return file if file.is_file() else None


def check_same_data(run: str, folder: Path, dataset: DataSet) -> list[Problem]:
    """A model without its run: whether a split by seed is the one it was trained with."""
    if read_config(folder).training.get("data_fingerprint") == dataset.fingerprint:
        return []
    found = "the data has no splits, and is not just what the model was trained on (its fingerprint differs)"
    rule = "Without the split.json of the run nobody can tell which images the model was trained on."
    fix = "Give the run folder, or move the images to be scored to test/images and test/masks."
    return [Problem("warning", "unknown-splits", str(run), found, rule, fix)]


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)


def check_split(split: str) -> None:
    """Check the name of a split.

    Raises:
        ConfigError: there is none of that name; suggests the nearest.
    """
    if not isinstance(split, str) or split not in SPLITS:  # a list cannot even be looked for
        meant = next((name for name, others in SPLITS.items() if str(split) in others), split)
        hint = near_hint(meant, SPLITS)
        raise ConfigError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}.{hint}")


def _check_arguments(
    split: str, json_file: Path | None, per_image: Path | None, pictures: Path | None
) -> None:
    check_split(split)
    if json_file is not None:
        check_file(json_file, "--json")
    if per_image is not None:
        check_table(per_image, "--per-image")
    if pictures is not None:
        check_folder(pictures, "--overlay")


def _check_classes(classes: tuple[str, ...], data: Path) -> Source | None:
    """Compare the model's classes with those that the data names, if it does; returns what was read for it.

    That is before the images are looked at, which may take minutes.
    """
    try:
        source = find_source(data)
    except (DataError, OSError):
        return None  # check_dataset says it
    named = own_names(source)
    if named is None or named == classes:
        return source
    what = "the same in another order" if sorted(named) == sorted(classes) else "others"
    raise ConfigError(
        f"The model has {len(classes)} classes, {', '.join(classes)}; {data} names {len(named)}, {what}: "
        f"{', '.join(named)}. The id of a mask means its place in the list. Evaluate on data with the "
        "model's classes; if only the names differ, write the model's into classes.txt or data.yaml."
    )


def _check_pictures(pairs: list[Pair], dataset: DataSet, pictures: Path, overwrite: bool) -> None:
    files = [pictures / f"{pair.stem}.png" for pair in pairs] + [pictures / _OVERVIEW]
    if files[-1] in files[:-1]:
        raise ConfigError(f"--overlay writes {_OVERVIEW}, and so is an image called. Rename the image.")
    inputs = [
        file for found in dataset.splits.values() for pair in found for file in (pair.image, pair.mask.path)
    ]
    check_not_inputs(files, inputs, "--overlay")
    if not overwrite:
        check_new(files, "Give another --overlay, or --overwrite.")


def _record(scores: dict[str, Any], known: Path, json_file: Path | None, warn: Callable[[str], None]) -> None:
    """Write the scores; they are told where that fails, so that the work is not lost."""
    if known.is_file():
        try:
            add_scores(scores["split"], scores, known)
        except (WriteError, OSError, ValueError) as error:
            warn(f"warning: {known} was not changed: {error}")
    if json_file is not None:
        try:
            write_scores(scores, json_file)
        except WriteError as error:
            raise WriteError(f"{error}\nThe scores are: {json.dumps(_finite(scores))}") from error


def write_comparison(pair: Pair, prediction: Prediction, dataset: DataSet, file: Path) -> Image.Image:
    """Write, and return, the picture image | truth | prediction of one image."""
    truth = read_label(pair.mask, dataset.encoding)
    picture = comparison(read_image(pair.image), truth, prediction.ids, foreground_ids(dataset.classes))
    write_whole(file, lambda part: picture.save(part, format="PNG"))
    return picture


def score_pairs(
    predictor: Predictor,
    dataset: DataSet,
    pairs: Iterable[Pair],
    metrics: SegmentationMetrics,
    each: Callable[[Pair, Prediction, dict[str, float]], None] | None = None,
) -> SegmentationMetrics:
    """Predict every image and add it to the metrics; memory does not grow with their number.

    Args:
        predictor: the model.
        dataset: tells how masks are encoded.
        pairs: images with masks.
        metrics: accumulator; it is changed and returned.
        each: called with every result and its scores, in order; from another thread.
    """

    def read(pair: Pair) -> tuple[Path | np.ndarray, np.ndarray]:
        return predictor.read(pair.image), read_label(pair.mask, dataset.encoding)

    def compute(_: Pair, data: tuple[Path | np.ndarray, np.ndarray]) -> tuple[Prediction, np.ndarray]:
        return predictor.predict(data[0]), data[1]

    def finish(pair: Pair, result: tuple[Prediction, np.ndarray]) -> None:
        prediction, target = result
        foreground = prediction.probabilities[1] if metrics.binary else None
        ids, truth = torch.from_numpy(prediction.ids).long(), torch.from_numpy(target).long()
        scores = metrics.update(ids, truth, foreground)
        if each is not None:
            each(pair, prediction, scores)

    steps = overlapped if predictor.tiles is None else one_by_one
    steps(pairs, read, compute, finish)
    return metrics


def add_scores(split: str, scores: dict[str, Any], file: Path) -> None:
    """Put the scores of a split into a run's metrics.json beside those of the other splits."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_scores({**known, split: scores}, file)


def write_scores(scores: dict[str, Any], file: Path) -> None:
    """Write JSON; a score that is not defined (a class that never occurs) or not finite is null."""
    text = json.dumps(_finite(scores), indent=2, allow_nan=False) + "\n"
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _finite(value: object) -> object:
    """The same, with None for each number that JSON has no name for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
