"""What a comparison has measured, and its summary by method and number of training images."""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from convlora.comparison.entries import Cell, Entry
from convlora.comparison.settings import Settings
from convlora.comparison.statistics import Difference, Spread, paired_difference, spread
from convlora.data.layout import DataSet


@dataclass(frozen=True)
class Row:
    """A method with a number of training images, over its seeds.

    Args:
        label: method.
        train_images: None is all.
        scores: metric -> mean and spread over seeds; None where no run has it.
        differences: metric -> paired difference to the reference; None for the reference itself.
        trained_parameters: of all parameters, `all_parameters`.
        step_seconds: mean over seeds of the runs' medians.
        peak_memory_mib: largest of the runs; None where no process that trained is known.
        adapter_bytes: size of the file that is shared.
        lr: the learning rate that was chosen, or None for the default.
        failed: runs without a result.
    """

    label: str
    train_images: int | None
    scores: dict[str, Spread | None]
    differences: dict[str, Difference | None]
    trained_parameters: int | None
    all_parameters: int | None
    step_seconds: float | None
    peak_memory_mib: int | None
    adapter_bytes: int | None
    lr: float | None
    failed: int


@dataclass(frozen=True)
class Outcome:
    """All that a comparison has measured."""

    settings: Settings
    base: dict[str, Any]
    dataset: DataSet
    entries: list[Entry]
    cells: list[Cell]
    results: dict[str, dict[str, Any]]
    rates: dict[str, float]
    tuning: list[tuple[Cell, dict[str, Any]]] = field(default_factory=list)  # runs that chose the rates

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of the tables, by number of images, then in the order of the methods."""
        return [self._row(entry, size) for size in self.settings.train_sizes for entry in self.entries]

    @property
    def failures(self) -> list[tuple[Cell, str]]:
        """Runs that failed, and why."""
        return [(c, self.results[c.name]["error"]) for c in self.cells if "error" in self.results[c.name]]

    @property
    def failed_tuning(self) -> list[tuple[Cell, str]]:
        """Runs that were to choose a learning rate and failed, and why."""
        return [(cell, result["error"]) for cell, result in self.tuning if "error" in result]

    def good(self, label: str, size: int | None) -> dict[int, dict[str, Any]]:
        """Seed -> result of the runs that ended well."""
        return {
            cell.seed: self.results[cell.name]
            for cell in self.cells
            if cell.entry.label == label
            and cell.train_images == size
            and "error" not in self.results[cell.name]
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON: settings, data, a row for each line of the tables, every run."""
        return {
            "settings": asdict(self.settings),
            "configuration": self.base,
            "data": {
                "fingerprint": self.dataset.fingerprint,
                "classes": list(self.dataset.classes),
                "images": {split: len(pairs) for split, pairs in self.dataset.splits.items()},
            },
            "rows": [asdict(row) for row in self.rows],
            "runs": [{**identity(cell), **self.results[cell.name]} for cell in self.cells],
            "tuning": [{**identity(cell), **result} for cell, result in self.tuning],
        }

    def _row(self, entry: Entry, size: int | None) -> Row:
        ours, theirs = self.good(entry.label, size), self.good(self.settings.reference, size)
        first = next(iter(ours.values()), {})
        scores, differences = {}, {}
        for metric in self.settings.metrics:
            mine = {seed: _number(result["scores"].get(metric)) for seed, result in ours.items()}
            other = {seed: _number(result["scores"].get(metric)) for seed, result in theirs.items()}
            scores[metric] = spread(list(mine.values()))
            same = entry.label == self.settings.reference
            differences[metric] = None if same else paired_difference(mine, other)
        return Row(
            entry.label,
            size,
            scores,
            differences,
            first.get("trained_parameters"),
            first.get("all_parameters"),
            sum(r["step_seconds"] for r in ours.values()) / len(ours) if ours else None,
            max((peak for r in ours.values() if (peak := r["peak_memory_mib"]) is not None), default=None),
            first.get("adapter_bytes"),
            self.rates.get(entry.label),
            self.settings.seeds - len(ours),
        )


def _number(value: float | None) -> float:
    """A score; null in a file stands for one that is not defined."""
    return math.nan if value is None else value


def identity(cell: Cell) -> dict[str, Any]:
    """What tells a run from the others."""
    return {
        "run": cell.name,
        "method": cell.entry.label,
        "seed": cell.seed,
        "train_images": cell.train_images,
        "lr": cell.lr,
    }
