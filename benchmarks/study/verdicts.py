"""Claims: what each set says of one, as a paired difference over seeds, and a verdict by a fixed rule."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, TypeVar

from comparisons import BY_IMAGE, METRIC, SETS, Found
from scipy.stats import t as student_t

from convlora.comparison.statistics import Difference, paired_difference

Value = TypeVar("Value")
ByImage = Mapping[int, Mapping[str, float]]  # seed -> image -> Dice
FEWEST = 3  # seeds; of two the interval is as often short by luck as it is long
RULE = (
    "A set speaks for a claim, or against it, where the 95 % interval of the paired difference of the pooled "
    f"Dice, over at least {FEWEST} seeds, is clear of zero. *Supported*: at least two sets for it and none "
    "against. *Not supported*: at least two against and none for. Where a claim is about one set, that one "
    "is enough. Else: *not decidable here*. Claims that are judged otherwise say how."
)


class Runs(NamedTuple):
    """Of one method in one part of the plan."""

    part: str
    method: str


@dataclass(frozen=True)
class Evidence:
    """What one set says.

    Args:
        name: of the set, or of what else is compared.
        dice: difference of the score that decides; positive speaks for the claim.
        by_image: of the mean over images.
        over_images: the same, its interval over images instead of seeds, if all runs kept each image's.
        alike: pairs whose runs were made on one kind of machine in one precision, if that is known.
    """

    name: str
    dice: Difference
    by_image: Difference | None = None
    over_images: Difference | None = None
    alike: int | None = None

    @property
    def side(self) -> int:
        """For the claim 1, against it -1, neither 0."""
        return side(self.dice)


@dataclass(frozen=True)
class Claim:
    """A sentence, what the sets say of it, and what follows."""

    text: str
    evidence: Sequence[Evidence]
    verdict: str


def apart(
    found: Found,
    ours: Runs,
    theirs: Runs,
    *,
    size: int | None = None,
    without: Collection[int] = (),
    sets: Sequence[str] = SETS,
    level: float = 0.95,
) -> list[Evidence]:
    """Differences of two methods, paired by seed, on each set that has runs of both.

    Args:
        found: all comparisons.
        ours: what the claim speaks for.
        theirs: what it is compared with.
        size: training images; None is all.
        without: seeds that are left out.
        sets: that the claim is about.
        level: of confidence.
    """
    evidence = []
    for name in sets:
        first, second = found.get((ours.part, name)), found.get((theirs.part, name))
        if first is None or second is None:
            continue
        dice, by_image = (
            paired_difference(
                _less(first.scores(ours.method, metric, size), without),
                _less(second.scores(theirs.method, metric, size), without),
                level,
            )
            for metric in (METRIC, BY_IMAGE)
        )
        if dice is not None:
            here = _less(first.machines(ours.method, size), without)
            there = second.machines(theirs.method, size)
            alike = sum(there.get(seed) == where for seed, where in here.items())
            images = over_images(
                _less(first.images(ours.method, size), without), second.images(theirs.method, size), dice.n
            )
            evidence.append(Evidence(name, dice, by_image, images, alike))
    return evidence


def over_images(ours: ByImage, theirs: ByImage, pairs: int) -> Difference | None:
    """Mean over images of the difference that seeds have on average, and its 95 % interval over images.

    None where not all `pairs` of runs have kept each image's Dice.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < pairs:
        return None
    names = set.intersection(*(set(scores[seed]) for scores in (ours, theirs) for seed in seeds))
    first, second = (
        {place: fmean(scores[seed][name] for seed in seeds) for place, name in enumerate(sorted(names))}
        for scores in (ours, theirs)
    )
    return paired_difference(first, second)


def claim(text: str, evidence: Sequence[Evidence], *, needed: int = 2) -> Claim:
    """A claim that is judged by `RULE`, of which `needed` sets decide."""
    return Claim(text, evidence, judged({e.name: e.side for e in evidence}, needed))


def side(difference: Difference | None) -> int:
    """1 where it is clear and positive, -1 where clear and negative, else 0."""
    if difference is None or not difference.clear or difference.n < FEWEST:
        return 0
    return 1 if difference.mean > 0 else -1


def judged(sides: Mapping[str, int], needed: int = 2) -> str:
    """Verdict from what each set says: for the claim 1, against it -1, neither 0."""
    if not sides:
        return "not measured yet"
    ahead, behind = ([name for name, found in sides.items() if found == way] for way in (1, -1))
    if len(ahead) >= needed and not behind:
        return "**supported**"
    if len(behind) >= needed and not ahead:
        return "**not supported**"
    said = [f"{', '.join(names)} {way}" for names, way in ((ahead, "for"), (behind, "against")) if names]
    return "**not decidable here**" + (f" ({'; '.join(said)} it)" if said else "")


def chance(difference: Difference) -> float | None:
    """Two-sided p of the paired t-test that the 95 % interval belongs to; None for one pair."""
    if difference.low is None or difference.high is None:
        return None
    degrees = difference.n - 1
    error = (difference.high - difference.low) / 2 / float(student_t.ppf(0.975, degrees))
    if error == 0:
        return 0.0
    return 2 * float(student_t.sf(math.fabs(difference.mean) / error, degrees))


def shown(difference: Difference | None) -> str:
    """Mean and interval, in points of a hundred."""
    if difference is None:
        return "-"
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.2f} (one seed)"
    text = f"{100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return f"**{text}**" if difference.clear else text


def _less(scores: Mapping[int, Value], without: Collection[int]) -> dict[int, Value]:
    return {seed: value for seed, value in scores.items() if seed not in without}
