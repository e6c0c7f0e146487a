"""The head of docs/results.md: what to choose, how sure it is, and what has not been run."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from choices import OFFICIAL
from comparisons import BY_IMAGE, METRIC, SETS, Comparison, Found
from scipy.stats import false_discovery_control
from tables import dice, rows
from verdicts import FEWEST, Claim, chance, shown

from convlora.comparison.entries import parse_methods
from convlora.comparison.settings import FACTORS
from convlora.comparison.statistics import paired_difference, spread

CHOICES = {  # label -> its part of the runs with tuned rates, what speaks for it
    "decoder-only": ("methods", "a first look, in minutes on a laptop"),
    "lora": ("methods", "within 0.7 points of conv-lora at the default rate; folds into the weights"),
    "conv-lora": ("methods", "the default"),
    "sam-adapter": ("others", "thin objects: try it beside the default"),
    "full": ("others", "where memory and storage allow; its rate must be tuned"),
    "unet": ("others", "thin objects; its rate must be tuned"),
}
PLACES_OF = {"unet": "low-data"}
ON_TEST = ("default", "default-padded", "methods", "epochs", "learning-rate", "low-data")
ORDERS = (
    ("lora", "decoder-only"),
    ("conv-lora", "decoder-only"),
    ("conv-lora", "lora"),
    ("conv-lora", OFFICIAL),
)


def in_short(found: Found) -> Iterator[str]:
    """The table that most readers need."""
    body = []
    for method, (tuned, why) in CHOICES.items():
        part = PLACES_OF.get(method, "default")
        scores = [dice(_spread(found, part, name, method)) for name in SETS]
        best = dice(_spread(found, tuned, "cracks", method))
        body.append([f"`{method}`", *scores, best, _time(found, part, method), why])
    head = ("Dice by image, test", *SETS, "cracks, rate tuned", "step, LoRA = 1", "choose it for")
    yield from rows(head, body)
    yield ""
    yield (
        "Mean, deviation over seeds, and their number. Time of a training step: on cracks, on one machine, "
        "where that has been run beside LoRA."
    )
    yield ""


def _spread(found: Found, part: str, name: str, method: str) -> Any:  # noqa: ANN401
    comparison = found.get((part, name))
    return comparison and comparison.spread(method, BY_IMAGE)


def _time(found: Found, part: str, method: str) -> str:
    for where in (part, "others"):
        comparison = found.get((where, "cracks"))
        ours, lora = (comparison and comparison.cost(m, "step_seconds") for m in (method, "lora"))
        if ours is not None and lora is not None:
            return f"{ours / lora:.2g}"
    return "-"


def consistency(found: Found) -> Iterator[str]:
    """In how many of all pairs a method is ahead, and how far apart two can be at most."""
    body = []
    for ours, theirs in ORDERS:
        cells = []
        for metric in (METRIC, BY_IMAGE):
            gaps = _pairs(found, ours, theirs, metric)
            cells.append(f"{sum(gap > 0 for gap in gaps)} of {len(gaps)}" if gaps else "-")
        body.append([f"{ours} over {theirs}", *cells])
    yield from rows(("ahead, of all pairs on test", "pooled", "by image"), body)
    yield ""
    yield (
        "Pairs of the same part, set, seed and number of images; a description, as seeds recur in several "
        "parts."
    )
    bounds = {
        name: _bound(found["default", name], "conv-lora", "lora")
        for name in SETS
        if ("default", name) in found
    }
    told = [f"{name} {100 * bound:.2f}" for name, bound in bounds.items() if bound is not None]
    if told:
        yield (
            "Conv-LoRA and LoRA, part `default`, by image: within their 90 % intervals they differ by no "
            f"more than {', '.join(told)} points."
        )
    yield ""


def _pairs(found: Found, ours: str, theirs: str, metric: str) -> list[float]:
    gaps = {}
    for (part, _), comparison in found.items():
        if part not in ON_TEST:
            continue
        for size in comparison.sizes:
            first, second = (comparison.scores(method, metric, size) for method in (ours, theirs))
            runs = [comparison.digests(method, size) for method in (ours, theirs)]
            for seed in first.keys() & second.keys():
                gaps[runs[0][seed], runs[1][seed]] = first[seed] - second[seed]
    return list(gaps.values())


def _bound(comparison: Comparison, ours: str, theirs: str) -> float | None:
    """Largest difference, either way, within the 90 % interval: two one-sided tests at 5 %."""
    first, second = (comparison.scores(method, BY_IMAGE) for method in (ours, theirs))
    gap = paired_difference(first, second, level=0.9)
    if gap is None or gap.low is None or gap.high is None or gap.n < FEWEST:
        return None
    return max(abs(gap.low), abs(gap.high))


def multiplicity(claims: Iterable[Claim]) -> str:
    """How many of all intervals are clear of zero, and how many remain when their number is allowed for."""
    gaps = {(e.dice, e.by_image) for claim in claims for e in claim.evidence}
    chances = [p for pair in gaps for gap in pair if gap and (p := chance(gap)) is not None]
    if not chances:
        return ""
    clear = sum(p < 0.05 for p in chances)
    kept = sum(p < 0.05 for p in false_discovery_control(chances))
    return (
        f"Of the {len(chances)} different intervals over seeds of the claims below {clear} are clear of "
        f"zero, each by itself; {kept} remain at a false discovery rate of 5 % (Benjamini-Hochberg)."
    )


def noise(found: Found) -> Iterator[str]:
    """What another machine and precision change: the same runs, made on two."""
    body = []
    for name in SETS:
        first, second = found.get(("default", name)), found.get(("loss-bce-dice", name))
        if first is None or second is None:
            continue
        ours, theirs = (c.machines("decoder-only") for c in (first, second))
        apart_in = {seed for seed in ours.keys() & theirs.keys() if ours[seed] != theirs[seed]}
        gaps = {
            seed: first.validation("decoder-only", METRIC)[seed]
            - second.validation("decoder-only", METRIC)[seed]
            for seed in sorted(apart_in)
        }
        gap = paired_difference(gaps, dict.fromkeys(gaps, 0.0))
        deviation = spread(list(gaps.values()))
        if gap and deviation and deviation.sd is not None:
            each = ", ".join(f"{100 * value:+.2f}" for value in gaps.values())
            body.append([name, each, shown(gap), f"{100 * deviation.sd:.2f}"])
    if body:
        yield from rows(("the same run on another machine", "each seed", "mean (95 % CI)", "deviation"), body)
        yield ""
        yield (
            "Decoder alone, validation, points of Dice: parts `default` and `loss-bce-dice`, which are the "
            "same but for the split that is scored, mostly bf16 against fp32. It is noise of a seed's "
            "size."
        )
        yield ""


def unfinished(found: Found, plan: Mapping[str, Any]) -> Iterator[str]:
    """Runs that are planned and have not been made."""
    body = []
    for part, own in plan["parts"].items():
        methods = len(parse_methods(own["methods"]))
        sizes = len(str(own.get("train_sizes", "all")).split(","))
        planned = methods * own["seeds"] * sizes + methods * len(FACTORS) * bool(own.get("tune_lr"))
        made = {
            name: len(found[part, name].content["runs"]) if (part, name) in found else 0
            for name in own["sets"]
        }
        if short := [f"{name} {count} of {planned}" for name, count in made.items() if count < planned]:
            body.append([f"`{part}`", "; ".join(short)])
    yield from rows(("part", "runs made, of those planned"), body)
    yield ""
