"""Mean, spread and paired differences over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) of n values; the deviation is None for one value."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % confidence interval; None for fewer than two pairs."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread | None:
    """Summary of values; those that are not defined are left out, and None stands for none at all."""
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return None
    return Spread(fmean(defined), stdev(defined) if len(defined) > 1 else None, len(defined))


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float = 0.95
) -> Difference | None:
    """Difference of two methods over the seeds that both have.

    The interval is Student's t of the differences. With the few seeds of a comparison it holds if the
    differences are about normal, which so few cannot show.

    Args:
        ours: seed -> score.
        theirs: seed -> score of the reference.
        level: of confidence.
    """
    seeds = [s for s in sorted(ours.keys() & theirs.keys()) if not math.isnan(ours[s] - theirs[s])]
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, n = fmean(differences), len(differences)
    if n == 1:
        return Difference(mean, None, None, 1)
    half = float(student_t.ppf((1 + level) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)
