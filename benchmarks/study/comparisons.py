"""The runs that are kept, by part of the plan and set: their scores, costs and machines."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from convlora.comparison.statistics import Difference, Spread, paired_difference, spread

RESULTS = Path(__file__).parent / "results"
SETS = ("nuclei", "cracks", "camvid")
METRIC = "mean_dice_foreground"
BY_IMAGE = "image_mean_dice_foreground"


@dataclass(frozen=True)
class Comparison:
    """Runs of one part on one set."""

    part: str
    name: str
    content: Mapping[str, Any]

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """Those that are reported, not those that chose a learning rate."""
        return [run for run in self.content["runs"].values() if not run["tuning"]]

    @cached_property
    def tuning(self) -> dict[str, dict[float, float]]:
        """Method -> learning rate -> mean Dice on validation, of the runs that chose a rate."""
        found: dict[str, dict[float, float]] = {}
        for run in self.content["runs"].values():
            if run["tuning"]:
                score = run["result"]["validation"]["mean_dice_foreground"]
                found.setdefault(run["method"], {})[run["lr"]] = score
        return found

    @cached_property
    def methods(self) -> list[str]:
        """Labels, in the order of the plan where the comparison is whole."""
        return list(dict.fromkeys(run["method"] for run in self.runs))

    @cached_property
    def sizes(self) -> list[int | None]:
        """Numbers of training images, ascending; None is all."""
        return sorted({run["train_images"] for run in self.runs}, key=lambda size: size or math.inf)

    def scores(self, method: str, metric: str, size: int | None = None) -> dict[int, float]:
        """Seed -> score."""
        found = {}
        for run in self._of(method, size):
            value = run["result"]["scores"].get(metric)
            found[run["seed"]] = math.nan if value is None else value
        return found

    def validation(self, method: str, metric: str) -> dict[int, float]:
        """Seed -> the best step's score on validation, where the part scores that or kept it beside test."""
        found = {}
        for run in self._of(method, None):
            scores = run["result"].get("validation") or run["result"]["scores"]
            found[run["seed"]] = scores[metric]
        return found

    def spread(self, method: str, metric: str, size: int | None = None) -> Spread | None:
        """Mean and deviation over seeds."""
        return spread(list(self.scores(method, metric, size).values()))

    def difference(
        self, method: str, reference: str, metric: str, size: int | None = None
    ) -> Difference | None:
        """Of two methods, paired by seed."""
        return paired_difference(self.scores(method, metric, size), self.scores(reference, metric, size))

    def digests(self, method: str, size: int | None = None) -> dict[int, str]:
        """Seed -> digest of the run's configuration and data."""
        return {run["seed"]: run["result"]["digest"] for run in self._of(method, size)}

    def images(self, method: str, size: int | None = None) -> dict[int, dict[str, float]]:
        """Seed -> Dice of each image, of the runs that kept it."""
        return {run["seed"]: run["images"] for run in self._of(method, size) if "images" in run}

    def machines(self, method: str, size: int | None = None) -> dict[int, str]:
        """Seed -> where it ran."""
        return {run["seed"]: machine(run["made"]["machine"]) for run in self._of(method, size)}

    @cached_property
    def yardstick(self) -> str | None:
        """Machine, and runs at once on it, that most methods had; of those the one with most runs."""
        ran = [(place(run["made"]), run["method"]) for run in self.runs]
        names = sorted({name for name, _ in ran})
        on = {name: [method for where, method in ran if where == name] for name in names}
        return max(names, key=lambda name: (len(set(on[name])), len(on[name])), default=None)

    def cost(self, method: str, key: str) -> float | None:
        """Median of the runs' trained_parameters or step_seconds, the largest of their peak_memory_mib.

        Seconds and memory are those of the runs of one place (`yardstick`), so that methods compare.
        """
        values = [
            run["result"][key]
            for run in self.runs
            if run["method"] == method
            and run["result"][key] is not None  # memory, of a run that was cut off before it was scored
            and (key == "trained_parameters" or place(run["made"]) == self.yardstick)
        ]
        summary = max if key == "peak_memory_mib" else median
        return summary(values) if values else None

    def _of(self, method: str, size: int | None) -> list[dict[str, Any]]:
        return [run for run in self.runs if (run["method"], run["train_images"]) == (method, size)]


Found = Mapping[tuple[str, str], Comparison]


def place(made: Mapping[str, Any]) -> str:
    """Machine, and how many runs it made at once: they share its memory and caches."""
    words = shlex.split(made["command"])
    jobs = words[words.index("--jobs") + 1] if "--jobs" in words else "1"
    return f"{machine(made['machine'])}, {jobs} at once"


def machine(of: Mapping[str, Any]) -> str:
    """Processor, its vector instructions, and the precision that its runs took, where that was recorded."""
    precision = of.get("precision of auto")
    return f"{of['processor']}, {of['instructions']}" + (f", computes in {precision}" if precision else "")


def load(folder: Path = RESULTS) -> dict[tuple[str, str], Comparison]:
    """All comparisons that hold a run, by part and set."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        part, _, name = file.stem.rpartition("-")
        comparison = Comparison(part, name, json.loads(file.read_text()))
        if comparison.content["runs"]:
            found[part, name] = comparison
    return found
