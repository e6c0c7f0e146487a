"""Tables for the terminal."""

import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table


def print_table(table: Table, least: int | None = None) -> None:
    """Print a table so that a narrow terminal cuts no number off.

    Args:
        table: what to print.
        least: width that it needs; by default that of its longest lines.
    """
    console = Console()
    needed = least or Measurement.get(console, console.options.update(width=1000), table).maximum
    console.width = max(console.width, needed)
    with console.capture() as text:
        console.print(table, crop=False)
    print(text.get(), end="")  # rich itself would answer a closed pipe in its own way


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores of an evaluation: classes as rows, then the means."""
    table = Table(title=f"{scores['split']}: {scores['n_images']} images, native resolution")
    table.add_column("class", no_wrap=True)
    for title in ("Dice", "IoU", "precision", "recall", "Dice\nby image", "IoU\nby image"):
        table.add_column(title, justify="right", no_wrap=True)
    prefixes = ("dice/", "iou/", "precision/", "recall/", "image_dice/", "image_iou/")
    names = [key.removeprefix("dice/") for key in scores if key.startswith("dice/")]
    for name in names:
        table.add_row(escape(name), *(_number(scores.get(prefix + name)) for prefix in prefixes))
    table.add_section()
    means = ("mean_dice_foreground", "mean_iou_foreground")
    table.add_row(
        "foreground mean",
        *(_number(scores.get(key)) for key in means),
        *("", ""),
        *(_number(scores.get(f"image_{key}")) for key in means),
    )
    print_table(table)
    extras = ("mean_iou", "pixel_accuracy", "s_measure", "e_measure", "weighted_f", "mae", "ber")
    print("  ".join(f"{key} {_number(scores[key])}" for key in extras if key in scores))
    if absent := [name for name in names if _number(scores[f"dice/{name}"]) == "-"]:
        print(f"-: in no mask and no prediction of this split, so left out of the means: {', '.join(absent)}")


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
