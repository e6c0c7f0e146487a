"""Tables for the terminal."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores of an evaluation: classes as rows, then the means."""
    console = Console()
    table = Table(title=f"{scores['split']}: {scores['n_images']} images, native resolution")
    table.add_column("class")
    for title in ("Dice", "IoU", "Dice, image mean", "IoU, image mean"):
        table.add_column(title, justify="right")
    prefixes = ("dice/", "iou/", "image_dice/", "image_iou/")
    for name in [key.removeprefix("dice/") for key in scores if key.startswith("dice/")]:
        table.add_row(name, *(_number(scores.get(prefix + name)) for prefix in prefixes))
    table.add_section()
    means = ("mean_dice_foreground", "mean_iou_foreground")
    table.add_row(
        "mean of foreground",
        *(_number(scores.get(key)) for key in (*means, *(f"image_{key}" for key in means))),
    )
    console.print(table)
    extras = ("mean_iou", "pixel_accuracy", "s_measure", "e_measure", "weighted_f", "mae", "ber")
    console.print(
        "  ".join(f"{key} {_number(scores[key])}" for key in extras if key in scores), highlight=False
    )


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
