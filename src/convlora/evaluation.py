"""Scores of a model on a split, at native resolution, one image at a time."""

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress

from convlora.checkpoint import find_adapter, from_pretrained, read_adapter_config
from convlora.data.check import check_dataset
from convlora.data.images import read_image
from convlora.data.labels import read_label
from convlora.data.layout import DataSet, Pair
from convlora.data.progress import show_progress
from convlora.data.report import Problem, Report
from convlora.data.splits import check_unseen, read_record
from convlora.inference.drawing import comparison, stack_rows
from convlora.inference.predictor import Prediction, Predictor
from convlora.metrics import SegmentationMetrics
from convlora.model import foreground_ids
from convlora.output import write_whole

_OVERVIEW_ROWS = 4


def new_metrics(classes: tuple[str, ...]) -> SegmentationMetrics:
    """Empty accumulator for these classes."""
    return SegmentationMetrics(classes, list(foreground_ids(classes)), binary=len(classes) == 2)


def evaluate_run(
    run: str | Path,
    data: Path,
    split: str = "test",
    *,
    json_file: Path | None = None,
    pictures: Path | None = None,
    palette: Path | None = None,
    backbone: str | None = None,
    device: str | None = None,
    precision: str = "auto",
) -> dict[str, Any]:
    """Score a fine-tuned model on a split.

    Args:
        run: run folder, adapter folder or hub id.
        data: data folder or file; its classes must be those of the model. Data without splits is split as
            it was for the run's training, by the run's split.json.
        split: 'train', 'val' or 'test'.
        json_file: where to write the scores; a run folder's metrics.json gets them too.
        pictures: folder for pictures of image | truth | prediction, and `_overview.png` of a few of them.
        palette: colours of the classes, for colour masks; by default palette.txt of the data folder.
        backbone: where the backbone is now, if not where it was in training.
        device: where to compute.
        precision: auto, fp32, bf16 or fp16.

    Returns:
        Flat scores with 'split', 'checkpoint' and 'n_images'.

    Raises:
        DataError: the split is missing, its data has errors, or it holds images the run was trained on.
        WeightsError: the model cannot be loaded.
        ConfigError: the classes of model and data differ.
    """
    segmenter = from_pretrained(run, backbone)
    classes = segmenter.config.classes
    report = _check(run, data, list(classes), split, palette)
    pairs = report.dataset.splits[split]
    metrics = new_metrics(classes)
    rows: list[Image.Image] = []
    shown = {pair.stem for pair in pairs[:: max(1, len(pairs) // _OVERVIEW_ROWS)][:_OVERVIEW_ROWS]}

    with Progress(transient=True) as progress:
        task = progress.add_task(f"evaluate {split}", total=len(pairs))

        def each(pair: Pair, prediction: Prediction) -> None:
            progress.advance(task)
            if pictures is not None:
                picture = write_comparison(pair, prediction, report.dataset, pictures / f"{pair.stem}.png")
                rows.extend([picture] if pair.stem in shown else [])

        score_pairs(Predictor(segmenter, device, precision), report.dataset, pairs, metrics, each)
    if pictures is not None:
        stack_rows(rows).save(pictures / "_overview.png")
    scores = {**metrics.compute(), "split": split, "checkpoint": str(find_adapter(run))}
    if json_file is not None:
        write_scores(scores, json_file)
    if (Path(run) / "metrics.json").is_file():
        add_scores(split, scores, Path(run) / "metrics.json")
    return scores


def _check(run: str | Path, data: Path, classes: list[str], split: str, palette: Path | None) -> Report:
    """Check the data, with the splits of the run; warnings go to standard error."""
    record = read_record(Path(run))
    report = check_dataset(
        data, classes=classes, palette=palette, splits=(split,), record=record, progress=show_progress
    )
    if record is not None and report.found is not None:
        report.problems += check_unseen(report.found, split, record)
    if record is None and report.found is not None and report.found.by_seed:
        report.problems += _check_same_data(run, report.found)
    for problem in report.warnings:
        print(f"warning: {problem}", file=sys.stderr)
    report.raise_if_errors()
    return report


def _check_same_data(run: str | Path, dataset: DataSet) -> list[Problem]:
    """A model without its run: whether a split by seed is the one it was trained with."""
    training = read_adapter_config(find_adapter(run)).get("training", {})
    if training.get("data_fingerprint") == dataset.fingerprint:
        return []
    found = "the data has no splits, and is not just what the model was trained on (its fingerprint differs)"
    rule = "Without the split.json of the run nobody can tell which images the model was trained on."
    fix = "Give the run folder, or move the images to be scored to test/images and test/masks."
    return [Problem("warning", "unknown-splits", str(run), found, rule, fix)]


def write_comparison(pair: Pair, prediction: Prediction, dataset: DataSet, file: Path) -> Image.Image:
    """Write, and return, the picture image | truth | prediction of one image."""
    truth = read_label(pair.mask, dataset.encoding)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = comparison(read_image(pair.image), truth, prediction.ids, foreground_ids(dataset.classes))
    picture.save(file)
    return picture


def score_pairs(
    predictor: Predictor,
    dataset: DataSet,
    pairs: Iterable[Pair],
    metrics: SegmentationMetrics,
    each: Callable[[Pair, Prediction], None] | None = None,
) -> SegmentationMetrics:
    """Predict every image and add it to the metrics; memory does not grow with their number.

    Args:
        predictor: the model.
        dataset: tells how masks are encoded.
        pairs: images with masks.
        metrics: accumulator; it is changed and returned.
        each: called with every result, for progress and pictures.
    """
    for pair in pairs:
        prediction = predictor.predict(read_image(pair.image))
        target = torch.from_numpy(read_label(pair.mask, dataset.encoding)).long()
        foreground = prediction.probabilities[1] if metrics.binary else None
        metrics.update(torch.from_numpy(prediction.ids).long(), target, foreground)
        if each is not None:
            each(pair, prediction)
    return metrics


def add_scores(split: str, scores: dict[str, Any], file: Path) -> None:
    """Put the scores of a split into a run's metrics.json beside those of the other splits."""
    known = json.loads(file.read_text()) if file.is_file() else {}
    write_scores({**known, split: scores}, file)


def write_scores(scores: dict[str, Any], file: Path) -> None:
    """Write JSON; a score that is not defined (a class that never occurs) is null."""
    text = json.dumps(_without_nan(scores), indent=2, allow_nan=False) + "\n"
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
