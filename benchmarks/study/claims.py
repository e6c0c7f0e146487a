"""What the kept runs say of the paper's claims."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

from comparisons import METRIC, SETS, Found
from verdicts import Claim, Evidence, Runs, apart, claim, judged

from convlora.comparison.statistics import paired_difference
from convlora.model import count_on_preset

PROBES = Path(__file__).parent / "results" / "semantics" / "camvid.json"
OFFICIAL = "conv-lora:routing=balance"  # the paper's router as its code has it
OTHERS = ("adapter", "sam-adapter", "vpt", "ssf", "bitfit", "lst")
FIXED = "conv-lora:routing=balance:scales="  # and the one scale


def of_the_paper(found: Found) -> Iterator[Claim]:
    """Its seven, in the order of the study."""
    ours, lora, alone = (Runs("methods", method) for method in ("conv-lora", "lora", "decoder-only"))
    yield claim(
        "1. The paper's Conv-LoRA (official router) beats LoRA",
        apart(found, Runs("default", OFFICIAL), Runs("default", "lora")),
    )
    yield claim(
        "1. The same, images padded",
        apart(found, Runs("default-padded", OFFICIAL), Runs("default-padded", "lora")),
    )
    yield claim("1. Conv-LoRA with the default preset's router beats LoRA, tuned", apart(found, ours, lora))
    every = "beats every other parameter-efficient method, tuned"
    yield over_others(found, ours, f"1. Conv-LoRA with that router {every}")
    yield over_others(found, Runs("others", "lora"), f"1. LoRA {every}")
    yield extra_parameters(found)
    yield claim(
        "3. Adapting the encoder with LoRA beats training the decoder alone, tuned", apart(found, lora, alone)
    )
    yield claim("3. With Conv-LoRA it does, tuned", apart(found, ours, alone))
    gated, summed = Runs("mixture", OFFICIAL), Runs("mixture", "conv-lora-multiscale")
    text = "4. One expert chosen by the gate beats the sum of all scales"
    yield claim(text + times(found, summed, gated), apart(found, gated, summed))
    yield best_scale(found)
    yield revived()
    yield heads(found)


def over_others(found: Found, ours: Runs, text: str) -> Claim:
    """A set speaks for it where `ours` is clear over each other method, the intervals corrected."""
    evidence: list[Evidence] = []
    sides = {}
    for name in SETS:
        signs = []
        for method in OTHERS:
            theirs = Runs("others", method)
            evidence += [
                replace(row, name=f"{name}, {method}") for row in apart(found, ours, theirs, sets=(name,))
            ]
            corrected = apart(found, ours, theirs, sets=(name,), level=1 - 0.05 / len(OTHERS))
            signs += [row.side for row in corrected]
        if signs:
            sides[name] = -1 if -1 in signs else int(signs.count(1) == len(OTHERS))
    rule = (
        "a set speaks for it where all six are clear, against it where one is, their intervals corrected "
        "for six (Bonferroni; shown are those of 95 %)"
    )
    return Claim(f"{text}: {rule}", evidence, judged(sides))


def extra_parameters(found: Found) -> Claim:
    """Claim 2, from counts: of ViT-H, and of the runs."""
    huge, plain = (count_on_preset("facebook/sam-vit-huge", name) for name in ("conv-lora", "lora"))
    extra, share = huge.trainable - plain.trainable, 100 * huge.trainable / plain.trainable - 100
    text = (
        "2. Conv-LoRA's extra parameters are minimal: by the count, under 1 % at ViT-H. Official router: "
        f"ViT-H {extra:,} over LoRA's {plain.trainable:,} ({share:.2f} %)"
    )
    comparison = found.get(("default", "cracks"))
    ours, theirs = (comparison and comparison.cost(m, "trained_parameters") for m in (OFFICIAL, "lora"))
    if ours is not None and theirs is not None:
        text += f", sam-tiny {ours - theirs:,.0f} over {theirs:,.0f} ({100 * (ours / theirs - 1):.2f} %)"
    return Claim(text, [], "**supported**" if share < 1 else "**not supported**")


def times(found: Found, ours: Runs, theirs: Runs) -> str:
    """Seconds a step of one method over another's of the same part, set by set."""
    texts = []
    for name in SETS:
        comparison = found.get((ours.part, name))
        first, second = (comparison and comparison.cost(r.method, "step_seconds") for r in (ours, theirs))
        if first is not None and second is not None:
            texts.append(f"{name} {first / second:.2f}")
    return f". Time of a step, {ours.method} over {theirs.method}: {', '.join(texts)}" if texts else ""


def best_scale(found: Found) -> Claim:
    """Claim 5: on two sets the best of each is clear over the best of the other."""
    evidence: list[Evidence] = []
    best = {}
    for name in SETS:
        comparison = found.get(("scales", name))
        spreads = {m: comparison.spread(m, METRIC) for m in comparison.methods} if comparison else {}
        means = {m: score.mean for m, score in spreads.items() if score and m.startswith(FIXED)}
        if means:
            best[name], worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            evidence += _of_scales(found, name, best[name], worst, "")
    differ = False
    for one, other in combinations(best, 2):
        if best[one] != best[other]:
            gaps = [
                row
                for here, there in ((one, other), (other, one))
                for row in _of_scales(found, here, best[here], best[there], f", best of {there}")
            ]
            evidence += gaps
            differ |= len(gaps) == 2 and all(gap.side == 1 for gap in gaps)
    verdict = "**supported**" if differ else "**not decidable here**" if best else "not measured yet"
    text = "5. The best single scale differs by data set: on two, the best of each is clear over the other's"
    return Claim(text, evidence, verdict)


def _of_scales(found: Found, name: str, ours: str, theirs: str, note: str) -> list[Evidence]:
    scales = (method.removeprefix(FIXED).strip("[]") for method in (ours, theirs))
    text = f"{name}, scale {' over '.join(scales)}{note}"
    rows = apart(found, Runs("scales", ours), Runs("scales", theirs), sets=(name,))
    return [replace(row, name=text) for row in rows]


def revived(file: Path = PROBES) -> Claim:
    """Claim 6, from linear probes: mean IoU after tuning less that before, by seed; the embedding decides."""
    runs = json.loads(file.read_text())["runs"].values() if file.exists() else []
    evidence: list[Evidence] = []
    sides, distances = {}, []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        for place, name in (("embedding", "embedding"), ("blocks", "last block")):
            after, before = (
                {r["seed"]: r[when]["probe"][place] for r in own} for when in ("after", "before")
            )
            gain = paired_difference(after, before)
            if gain is not None:
                evidence.append(Evidence(f"{method}, {name}", gain))
                if place == "embedding" and method in ("lora", "conv-lora"):
                    sides[method] = evidence[-1].side
        old, new = (
            fmean(fmean(r[when]["attention distance"].values()) for r in own) for when in ("before", "after")
        )
        distances.append(f"{method} {old:.0f} to {new:.0f}")
    text = (
        "6. Tuning revives semantics: a linear probe of CamVid's classes has a higher mean IoU after it "
        "(judged by the embedding of two methods, LoRA and Conv-LoRA, on this one set)"
    )
    if distances:
        text += f". Mean attention distance of the global blocks in pixels: {', '.join(distances)}"
    return Claim(text, evidence, judged(sides))


def heads(found: Found) -> Claim:
    """Claim 7: mask classification less per-class, and what both reach."""
    evidence = [
        replace(row, name=f"camvid, {method}")
        for method in ("lora", "conv-lora")
        for row in apart(
            found, Runs("mask-classification", method), Runs("per-class", method), sets=("camvid",)
        )
    ]
    text = "7. Mask classification beats one mask a class (judged by two methods, on one set)"
    comparisons = {part: found.get((part, "camvid")) for part in ("mask-classification", "per-class")}
    scores = {part: c and c.spread("conv-lora", METRIC) for part, c in comparisons.items()}
    reached = [f"{part} {100 * score.mean:.1f}" for part, score in scores.items() if score]
    if reached:
        text += f". Both work without prompts: mean Dice of eleven classes, Conv-LoRA, {', '.join(reached)}"
    return Claim(text, evidence, judged({row.name: row.side for row in evidence}))
