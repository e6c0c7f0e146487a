"""What the kept runs say of a claim: paired differences, set by set, and a verdict by a fixed rule."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from convlora.comparison.statistics import Difference, Spread, paired_difference, spread

RESULTS = Path(__file__).parent / "results"
RULE = (
    "Supported: the 95 % interval of the paired difference is clear of zero on the claim's side on at least "
    "two sets, or on the only one that it is about, and clear on the other side on none. Not supported: "
    "clear on the other side on at least one set, and on the claim's side on none. Else: not decidable here."
)


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
        for run in self.runs:
            if (run["method"], run["train_images"]) == (method, size):
                value = run["result"]["scores"].get(metric)
                found[run["seed"]] = math.nan if value is None else value
        return found

    def spread(self, method: str, metric: str, size: int | None = None) -> Spread | None:
        """Mean and deviation over seeds."""
        return spread(list(self.scores(method, metric, size).values()))

    def difference(
        self, method: str, reference: str, metric: str, size: int | None = None
    ) -> Difference | None:
        """Of two methods, paired by seed."""
        return paired_difference(self.scores(method, metric, size), self.scores(reference, metric, size))

    @cached_property
    def yardstick(self) -> str | None:
        """Machine that most methods ran on, of those the one with most runs."""
        ran = [(machine(run["made"]["machine"]), run["method"]) for run in self.runs]
        names = sorted({name for name, _ in ran})
        on = {name: [method for where, method in ran if where == name] for name in names}
        return max(names, key=lambda name: (len(set(on[name])), len(on[name])), default=None)

    def cost(self, method: str, key: str) -> float | None:
        """Mean over runs of trained_parameters, step_seconds or peak_memory_mib.

        Seconds and memory are those of the runs on one machine (`yardstick`), so that methods compare.
        """
        values = [
            run["result"][key]
            for run in self.runs
            if run["method"] == method
            and run["result"][key] is not None  # memory, of a run that was cut off before it was scored
            and (key == "trained_parameters" or machine(run["made"]["machine"]) == self.yardstick)
        ]
        return fmean(values) if values else None


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


def verdict(differences: Sequence[Difference | None]) -> str:
    """See `RULE`; a difference of each set, positive where it speaks for the claim."""
    return judged([side(d) for d in differences])


def side(difference: Difference | None) -> int | None:
    """1 where it is clear and positive, -1 where clear and negative, else 0; None where not measured."""
    if difference is None:
        return None
    return (1 if difference.mean > 0 else -1) if difference.clear else 0


def judged(sides: Sequence[int | None]) -> str:
    """Verdict from what each set says: for the claim 1, against it -1, neither 0, not measured None."""
    known = [found for found in sides if found is not None]
    if not known:
        return "not measured yet"
    if known.count(1) >= min(2, len(sides)) and -1 not in known:
        return "supported"
    return "not supported" if -1 in known and 1 not in known else "not decidable here"


def shown(difference: Difference | None) -> str:
    """Mean and interval, in points of a hundred."""
    if difference is None:
        return "-"
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f} (one seed)"
    text = f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"**{text}**" if difference.clear else text
