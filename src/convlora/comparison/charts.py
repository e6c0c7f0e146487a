"""Pictures of a comparison: scores against parameters and numbers of images, and predictions side by side."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from convlora.comparison.cell import SAMPLES
from convlora.comparison.outcome import Outcome, Row
from convlora.comparison.tables import size_name
from convlora.data.images import read_image
from convlora.data.labels import read_label
from convlora.data.layout import Pair
from convlora.figures import write_figure
from convlora.inference.drawing import overlay, stack_rows
from convlora.model import foreground_ids
from convlora.output import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETERS, CURVES, PREDICTIONS = "parameters.png", "train_sizes.png", "predictions.png"
_SIZE = (7.0, 4.5)  # inches
_TILE, _GAP, _MARGIN = 192, 4, 20  # pixels


def draw_charts(outcome: Outcome, out: Path) -> None:
    """Draw what there is to draw: the metric against parameters, against images, and sample predictions.

    Raises:
        WriteError: the disk is full or not writable.
    """
    largest = outcome.settings.largest
    rows = [row for row in outcome.rows if row.train_images == largest and row.trained_parameters]
    metric = outcome.settings.metrics[0]
    if any(row.scores[metric] for row in rows):
        write_figure(out / PARAMETERS, _SIZE, partial(_against_parameters, rows=rows, metric=metric))
    if len(outcome.settings.train_sizes) > 1:
        write_figure(out / CURVES, _SIZE, partial(_against_images, outcome=outcome, metric=metric))
    pictures = [_side_by_side(outcome, pair, out) for pair in _samples(outcome, out)]
    if pictures:
        sheet = _stack(pictures)
        write_whole(out / PREDICTIONS, partial(sheet.save, format="PNG"))


def _against_parameters(figure: "Figure", rows: list[Row], metric: str) -> None:
    axes: Any = figure.subplots()
    for row in rows:
        score = row.scores[metric]
        if score is None or row.trained_parameters is None:
            continue
        x = row.trained_parameters / 1e6
        axes.errorbar(x, score.mean, yerr=score.sd or 0.0, fmt="o", capsize=3, label=row.label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("trained parameters, millions")
    axes.set_ylabel(f"{metric}\nmean and standard deviation over seeds")
    axes.set_title(size_name(rows[0].train_images))
    axes.grid(alpha=0.3)


def _against_images(figure: "Figure", outcome: Outcome, metric: str) -> None:
    axes: Any = figure.subplots()
    everything = len(outcome.dataset.splits["train"])
    for entry in outcome.entries:
        rows = [row for row in outcome.rows if row.label == entry.label and row.scores[metric]]
        rows.sort(key=lambda row: row.train_images or everything)
        scores = [score for row in rows if (score := row.scores[metric])]
        if scores:
            x = [row.train_images or everything for row in rows]
            means, spreads = [score.mean for score in scores], [score.sd or 0.0 for score in scores]
            axes.errorbar(x, means, yerr=spreads, marker="o", capsize=3, label=entry.label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("training images")
    axes.set_ylabel(f"{metric}\nmean and standard deviation over seeds")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _folder(outcome: Outcome, label: str, out: Path) -> Path | None:
    """Sample masks of a method: those of its first good seed with most images."""
    size = outcome.settings.largest
    for cell in outcome.cells:
        good = "error" not in outcome.results[cell.name]
        if cell.entry.label == label and cell.train_images == size and good:
            return out / "runs" / cell.name / SAMPLES
    return None


def _samples(outcome: Outcome, out: Path) -> Iterator[Pair]:
    """Test images that every method without a failure has a mask of."""
    folders = [f for e in outcome.entries if (f := _folder(outcome, e.label, out)) is not None]
    for pair in outcome.dataset.splits[outcome.settings.split]:
        if folders and all((folder / f"{pair.stem}.png").is_file() for folder in folders):
            yield pair


def _side_by_side(outcome: Outcome, pair: Pair, out: Path) -> list[tuple[str, Image.Image]]:
    """Image, truth and every method's prediction, each with its name."""
    image = read_image(pair.image)
    truth = read_label(pair.mask, outcome.dataset.encoding)
    ids = foreground_ids(outcome.dataset.classes)
    plain = (image * 255).round().clip(0, 255).astype(np.uint8)
    tiles = [("image", plain), ("truth", overlay(image, truth, ids))]
    for entry in outcome.entries:
        folder = _folder(outcome, entry.label, out)
        if folder is not None:
            with Image.open(folder / f"{pair.stem}.png") as opened:
                tiles.append((entry.label, overlay(image, np.asarray(opened), ids)))
    return [(name, Image.fromarray(tile)) for name, tile in tiles]


def _stack(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Rows of tiles; the names stand above the first."""
    for row in rows:
        for _, tile in row:
            tile.thumbnail((_TILE, _TILE))
    names = Image.new("RGB", (len(rows[0]) * (_TILE + _GAP), _MARGIN), "white")
    draw = ImageDraw.Draw(names)
    for x, (name, _) in enumerate(rows[0]):
        draw.text((x * (_TILE + _GAP) + 4, 4), name[:30], fill="black")
    return stack_rows([names, *(_row(row) for row in rows)])


def _row(tiles: list[tuple[str, Image.Image]]) -> Image.Image:
    strip = Image.new("RGB", (len(tiles) * (_TILE + _GAP), max(tile.height for _, tile in tiles)), "white")
    for x, (_, tile) in enumerate(tiles):
        strip.paste(tile, (x * (_TILE + _GAP), 0))
    return strip
