"""The scores of every image of an evaluation: a table as a file, and the images that did worst."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from convlora.errors import ConfigError
from convlora.output import check_file, write_text

#: Score by which the worst images are told.
RANKED_BY = "mean_dice_foreground"


def check_table(file: Path, name: str) -> None:
    """Check that the table can be written; one that is there is written anew, another's table is not.

    Raises:
        ConfigError: a file of something else is there; or see `check_file`.
    """
    check_file(file, name, ".csv")
    if file.exists():
        with file.open(encoding="utf-8", errors="replace") as opened:
            if not opened.readline().startswith(f"image,{RANKED_BY}"):
                raise ConfigError(
                    f"{name} {file} exists and holds no scores of images, so it is not written over."
                )


class ImageScores:
    """Collects the scores of images, in the order in which they come."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    def add(self, name: str, scores: Mapping[str, float]) -> None:
        """Keep the scores of an image.

        Args:
            name: of the image, without its ending.
            scores: see `SegmentationMetrics.update`.
        """
        self.rows[name] = dict(scores)

    def write(self, file: Path) -> None:
        """Write a CSV: `image`, then a column for each score; a score that is not defined is empty.

        Raises:
            WriteError: the place cannot be written.
        """
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        table = csv.DictWriter(text, ["image", *names], lineterminator="\n")
        table.writeheader()
        for image, row in self.rows.items():
            defined = {name: f"{value:.6f}" for name, value in row.items() if not math.isnan(value)}
            table.writerow({"image": image, **defined})
        write_text(file, text.getvalue())

    def worst(self, count: int = 3) -> list[tuple[str, float]]:
        """Images with the lowest mean Dice of the foreground, the lowest first, of those that have one."""
        ranked = [(name, row[RANKED_BY]) for name, row in self.rows.items() if not math.isnan(row[RANKED_BY])]
        return sorted(ranked, key=lambda pair: pair[1])[:count]
