"""Tables of docs/results.md: scores and costs of methods, and what tuning of the learning rate gave."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from comparisons import BY_IMAGE, METRIC, Comparison, machine
from verdicts import Claim, Evidence, shown

from convlora.comparison.entries import parse_methods
from convlora.comparison.statistics import Spread

SHOWN = {METRIC: "Dice", BY_IMAGE: "Dice by image", "mean_iou": "mean IoU", "weighted_f": "weighted F"}
HEAD = (
    "method",
    "images",
    *SHOWN.values(),
    "difference (95 % CI)",
    "by image",
    "trained",
    "s/step",
    "peak MiB",
)


CLAIM_HEAD = (
    "claim",
    "verdict",
    "on",
    "Dice (95 % CI over seeds)",
    "by image (over seeds)",
    "by image (over images)",
    "seeds (on one machine)",
)


def claim_table(claims: Iterable[Claim]) -> Iterator[str]:
    """A line for what each set says of each claim."""
    body = []
    for claim in claims:
        first = [claim.text, claim.verdict]
        for row in claim.evidence or [None]:
            body.append([*first, *said(row)])
            first = ["", ""]
    yield from rows(CLAIM_HEAD, body)


def said(row: Evidence | None) -> list[str]:
    if row is None:
        return ["-"] * 5
    alike = "" if row.alike is None else f" ({row.alike})"
    return [row.name, *map(shown, (row.dice, row.by_image, row.over_images)), f"{row.dice.n}{alike}"]


def table(comparison: Comparison, part: str, name: str, plan: dict) -> Iterator[str]:
    own = plan["parts"][part]
    yield f"## {part}: {name}"
    yield ""
    labels = [entry.label for entry in parse_methods(own["methods"])]
    if comparison.runs:
        reference = own.get("reference", "lora")
        yield f"Scores on {own.get('split', 'test')}; difference to {reference}."
        yield ""
        yield from rows(
            HEAD,
            [
                line(comparison, method, reference, size)
                for size in comparison.sizes
                for method in labels
                if comparison.spread(method, METRIC, size)
            ],
        )
        yield ""
    if comparison.tuning:
        yield from tuned(comparison, labels)
    yield from made(comparison)


def tuned(comparison: Comparison, labels: Sequence[str]) -> Iterator[str]:
    """What each learning rate gave; the scores' runs are others, with the best of these rates."""
    scores = comparison.tuning
    rates = sorted({rate for method in scores.values() for rate in method})
    yield "Learning rates: Dice on validation, a run each, of a seed that no score is of; the best is taken."
    yield ""
    yield from rows(
        ("method", *(f"{rate:.2g}" for rate in rates)),
        [
            [label, *(f"{100 * scores[label][rate]:.1f}" if rate in scores[label] else "-" for rate in rates)]
            for label in labels
            if label in scores
        ],
    )
    yield ""
    edge = [
        m for m, tried in scores.items() if len(tried) > 1 and max(tried, key=tried.__getitem__) == rates[-1]
    ]
    if edge:
        yield f"Best at the highest rate that is tried; a higher one may be better: {', '.join(edge)}."
        yield ""


def made(comparison: Comparison) -> Iterator[str]:
    """Where, by which command and at which commits the runs were made, folded away."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for run in comparison.content["runs"].values():
        groups[machine(run["made"]["machine"]), run["made"]["command"]].append(run)
    yield "<details><summary>Seeds, machines, commits, commands</summary>"
    yield ""
    for (where, command), runs in sorted(groups.items()):
        seeds, commits = ({r["seed"] for r in runs}, {r["made"]["commit"] for r in runs})
        count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
        yield (
            f"- {count}, seed {', '.join(map(str, sorted(seeds)))}; {where}; "
            f"{', '.join(sorted(commits))}: `{command}`"
        )
    yield ""
    yield "</details>"
    yield ""


def line(comparison: Comparison, method: str, reference: str, size: int | None) -> list[str]:
    scores = (comparison.spread(method, metric, size) for metric in SHOWN)
    apart = (
        "-" if method == reference else shown(comparison.difference(method, reference, metric, size))
        for metric in (METRIC, BY_IMAGE)
    )
    parameters, seconds, memory = (
        comparison.cost(method, key) for key in ("trained_parameters", "step_seconds", "peak_memory_mib")
    )
    return [
        method,
        "all" if size is None else str(size),
        *map(dice, scores),
        *apart,
        f"{parameters:,.0f}",
        "-" if seconds is None else f"{seconds:.2f}",
        "-" if memory is None else f"{memory:,.0f}",
    ]


def dice(score: Spread | None) -> str:
    """Points of a hundred: mean, deviation and number of seeds."""
    if score is None:
        return "-"
    deviation = "" if score.sd is None else f" ± {100 * score.sd:.1f}"
    return f"{100 * score.mean:.1f}{deviation} ({score.n})"


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *body):
        yield "| " + " | ".join(cells) + " |"
