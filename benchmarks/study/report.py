"""Write docs/results.md, and the table of README.md, from the results that are kept.

    python benchmarks/study/report.py [--check]

`--check` writes nothing and fails where the page is not what the results give.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml
from tables import BY_IMAGE, METRIC, dice, rows, table
from verdicts import RULE, Comparison, load, machine, shown, verdict

from convlora.comparison.statistics import Difference, paired_difference
from convlora.model import count_on_preset

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "results.md"
README = HERE.parent.parent / "README.md"
START, END = "<!-- made by benchmarks/study/report.py -->\n", "<!-- end -->\n"
SETS = ("nuclei", "cracks", "camvid")
OFFICIAL = "conv-lora:routing=balance"  # the paper's router as its code has it
FAST = "conv-lora:routing=soft:scope=image:start=zero:temperature=0.03:gain=32"  # a candidate
Found = dict[tuple[str, str], Comparison]


def page(found: Found, plan: dict) -> Iterator[str]:
    """Lines of docs/results.md."""
    yield "# Results"
    yield ""
    yield (
        "Made by `python benchmarks/study/report.py` from `benchmarks/study/results/`; do not edit. "
        "The runs: `benchmarks/study/plan.yaml`, `python benchmarks/study/run.py DATA`."
    )
    yield from provenance(found, plan)
    yield "## The paper's claims"
    yield ""
    yield (
        f"{RULE} Differences are in points of 100 of the mean Dice of the foreground classes, on test, over "
        "paired seeds, with 95 % intervals; **bold** is clear of zero. That Dice counts the pixels of all "
        "images together and decides; *by image* is the mean of each image's own, which a few images with "
        "much foreground do not rule (it was looked at after the first runs)."
    )
    yield ""
    for claim in claims(found):
        yield f"- {claim}"
    yield ""
    for (part, name), comparison in sorted(found.items(), key=lambda item: order(item[0], plan)):
        yield from table(comparison, part, name, plan)


def order(key: tuple[str, str], plan: dict) -> tuple[int, int]:
    part, name = key
    return list(plan["parts"]).index(part), SETS.index(name)


def provenance(found: Found, plan: dict) -> Iterator[str]:
    made = [run["made"] for comparison in found.values() for run in comparison.content["runs"].values()]
    common = plan["common"]
    yield ""
    yield (
        f"All runs: {common['backbone']}, {common['image_size']} px, {common['max_steps']} steps of "
        f"{common['batch_size']} images, best of the validation split; images stretched to the square, "
        "padded in the parts that are named so; parts `epochs` and `epochs-paper` train for 30 epochs, "
        "`full-random` from random weights; `size-384` and `size-512` have inputs of that size. "
        "Seconds and memory in a table are those of one machine, of "
        "those that its runs had the one with most methods, two runs at a time; `-`: no run there."
    )
    yield ""
    for title, values in {
        "Commits": {m["commit"] for m in made},
        "Backbone": {c.content["backbone"][:16] for c in found.values()},
        "Machines": {machine(m["machine"]) for m in made},
        "Versions": {", ".join(f"{k} {v}" for k, v in m["versions"].items()) for m in made},
        "Commands": {m["command"] for m in made},
    }.items():
        yield f"- {title}: {'; '.join(sorted(values)) or 'none yet'}"
    yield ""


def claims(found: Found) -> Iterator[str]:
    """The paper's seven, in the order of the study, and the router's."""
    against = partial(differences, found)
    yield sentence("1. Conv-LoRA beats LoRA", against("methods", "conv-lora", "lora"))
    yield sentence("1b. LoRA beats the other parameter-efficient methods", over_others(found))
    yield extra_parameters(found)
    yield sentence(
        "3. Adapting the encoder with LoRA beats training the decoder alone",
        against("methods", "lora", "decoder-only"),
    )
    yield sentence("3b. With Conv-LoRA it does", against("methods", "conv-lora", "decoder-only"))
    yield sentence(
        "4. One expert chosen by the gate beats the sum of all scales",
        against("mixture", OFFICIAL, "conv-lora-multiscale"),
        times(found, "mixture", "conv-lora-multiscale", OFFICIAL),
    )
    yield best_scale(found)
    yield revived()
    yield sentence("7. Mask classification beats one mask a class", heads(found), end_to_end(found))
    yield sentence(
        "Router. The default preset's beats the official one, on validation",
        against("routing", "conv-lora", OFFICIAL),
    )
    for other in (OFFICIAL, "conv-lora", "lora"):
        yield sentence(
            f"Router. On validation, with a gain of 32 it beats {other}",
            against("routing-gain", FAST, other),
            by_image(against("routing-gain", FAST, other, BY_IMAGE)),
        )
    pairs = (("lora", "decoder-only"), ("conv-lora", "decoder-only"), ("conv-lora", "lora"))
    routers = (("conv-lora", OFFICIAL), (OFFICIAL, "lora"))
    for part, what, asked in (
        ("default", "", (*pairs, *routers)),
        ("learning-rate", " but lr=0.003", pairs),
        ("epochs", ", 30 epochs", pairs),
        ("default-padded", " but resize=pad", (*pairs, *routers)),
    ):
        for method, other in asked:
            yield sentence(
                f"Default preset{what}, learning rate not tuned. {method} beats {other}",
                against(part, method, other),
                by_image(against(part, method, other, BY_IMAGE)),
            )
    for ours, theirs, what in (("default", "paper", ""), ("epochs", "epochs-paper", ", 30 epochs")):
        yield sentence(
            f"Conv-LoRA with the default preset beats itself with the paper's{what}",
            between(found, ours, theirs, "conv-lora"),
            by_image(between(found, ours, theirs, "conv-lora", BY_IMAGE)),
        )
    for size in (8, 16, 32, None):
        yield sentence(
            f"Few images. Of {size or 'all'}, Conv-LoRA makes more than a U-Net from random weights",
            against("low-data", "conv-lora", "unet", size=size),
            by_image(against("low-data", "conv-lora", "unet", BY_IMAGE, size)),
        )
    yield sentence(
        "sam-tiny. Full tuning from its weights beats full tuning from random ones",
        between(found, "full", "full-random", "full"),
    )
    yield sentence(
        "Geometry. Images stretched to the square beat padded ones, decoder alone, on validation",
        between(found, "loss-bce-dice", "loss-bce-dice-padded", "decoder-only"),
    )
    for method in ("decoder-only", "conv-lora"):
        yield sentence(
            f"Geometry. They do so on test, {method}",
            between(found, "default", "default-padded", method),
            by_image(between(found, "default", "default-padded", method, BY_IMAGE)),
        )
    for method in ("decoder-only", "lora", "conv-lora"):
        yield sentence(
            f"Learning rate. 0.003 beats the default preset's 0.001, {method}",
            between(found, "learning-rate", "default", method),
            by_image(between(found, "learning-rate", "default", method, BY_IMAGE)),
        )
    for size in (384, 512):
        larger = partial(between, found, f"size-{size}", "default", "decoder-only")
        pooled, own = ({"cracks": larger(metric)["cracks"]} for metric in (METRIC, BY_IMAGE))
        yield sentence(
            f"Input. Where areas are thin, {size} px beat 256, decoder alone", pooled, by_image(own)
        )
    for other in ("structure", "structure-official", "focal-dice"):
        yield sentence(
            f"Loss. Cross entropy + Dice beats {other}, decoder alone, on validation",
            between(found, "loss-bce-dice", f"loss-{other}", "decoder-only"),
        )


def revived(file: Path = HERE / "results" / "semantics" / "camvid.json") -> str:
    """Claim 6, from the probes on the embedding: mean IoU after tuning less that before, by seed."""
    runs = json.loads(file.read_text())["runs"].values() if file.exists() else []
    gains: dict[str, Difference | None] = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        after, before = (
            {r["seed"]: r[when]["probe"]["embedding"] for r in runs if r["method"] == method}
            for when in ("after", "before")
        )
        gains[method] = paired_difference(after, before)
    claim = "6. Tuning revives semantics (linear probe of the embedding, mean IoU of CamVid's classes)"
    tuned = [gains[m] for m in ("lora", "conv-lora") if m in gains]
    numbers = "; ".join(f"{method} {shown(gain)}" for method, gain in gains.items())
    return f"{claim}: **{verdict(tuned)}**. {numbers}".strip()


def differences(
    found: Found, part: str, method: str, reference: str, metric: str = METRIC, size: int | None = None
) -> dict[str, Difference | None]:
    """Of two methods of a part, on each set; None where it has not been run."""
    return {
        name: found[part, name].difference(method, reference, metric, size) if (part, name) in found else None
        for name in SETS
    }


def over_others(found: Found) -> dict[str, Difference | None]:
    """LoRA less each other method, on each set; full tuning and the U-Net are no such methods."""
    return {
        f"{name}, {method}": comparison.difference("lora", method, METRIC)
        for (part, name), comparison in found.items()
        if part == "others"
        for method in comparison.methods
        if method not in ("lora", "full", "unet")
    }


def extra_parameters(found: Found) -> str:
    """Claim 2, from counts: of ViT-H, and of the runs."""
    huge, plain = (count_on_preset("facebook/sam-vit-huge", name) for name in ("conv-lora", "lora"))
    extra, share = huge.trainable - plain.trainable, 100 * huge.trainable / plain.trainable - 100
    text = f"ViT-H {extra:,} over LoRA's {plain.trainable:,} ({share:.2f} %)"
    for name in SETS:
        comparison = found.get(("methods", name))
        counts = comparison and [comparison.cost(m, "trained_parameters") for m in ("conv-lora", "lora")]
        if counts and None not in counts:
            text += f"; runs on {name} {counts[0]:,.0f} over {counts[1]:,.0f}"
    return f"2. Conv-LoRA's extra parameters are minimal: **supported** by the count. {text}."


def times(found: Found, part: str, method: str, reference: str) -> str:
    """Seconds a step of one method over another's, set by set."""
    texts = []
    for name in SETS:
        comparison = found.get((part, name))
        pair = comparison and [comparison.cost(m, "step_seconds") for m in (method, reference)]
        if pair and None not in pair:
            texts.append(f"{name} {pair[0] / pair[1]:.2f}")
    return f"Time of a step, {method} over {reference}: {', '.join(texts)}." if texts else ""


def between(
    found: Found, part: str, other: str, method: str, metric: str = METRIC
) -> dict[str, Difference | None]:
    """A method in one part less itself in another, the same seeds; None on sets that not both have."""
    pairs = {name: (found.get((part, name)), found.get((other, name))) for name in SETS}
    return {
        name: paired_difference(first.scores(method, metric), second.scores(method, metric))
        if first and second
        else None
        for name, (first, second) in pairs.items()
    }


def heads(found: Found) -> dict[str, Difference | None]:
    """Mask classification less per-class."""
    return {
        method: between(found, "mask-classification", "per-class", method).get("camvid")
        for method in ("lora", "conv-lora")
    }


def end_to_end(found: Found) -> str:
    """What the two heads reach."""
    texts = []
    for part in ("mask-classification", "per-class"):
        comparison = found.get((part, "camvid"))
        score = comparison and comparison.spread("conv-lora", METRIC)
        if score:
            texts.append(f"{part} {100 * score.mean:.1f}")
    return f"Mean Dice over eleven classes without prompts, Conv-LoRA: {', '.join(texts)}." if texts else ""


def sentence(claim: str, found: dict[str, Difference | None], more: str = "") -> str:
    """A claim, its verdict and the numbers."""
    text = f"{claim}: **{verdict(list(found.values()))}**. {numbers(found)}. {more}"
    return text.replace(". .", ".").strip()


def numbers(found: dict[str, Difference | None]) -> str:
    return "; ".join(f"{name} {shown(d)}" for name, d in found.items() if d)


def by_image(found: dict[str, Difference | None]) -> str:
    """What the same comparison gives by the mean over images."""
    text = numbers(found)
    return f"*By image* {text}." if text else ""


def best_scale(found: Found) -> str:
    """Claim 5: the best of each set, and how far it is from the worst."""
    texts, winners = [], []
    for name in SETS:
        comparison = found.get(("scales", name))
        if comparison is None:
            continue
        means = {m: s.mean for m in comparison.methods if m != "lora" and (s := comparison.spread(m, METRIC))}
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        gap = comparison.difference(best, worst, METRIC)
        winners.append(best if gap and gap.clear else None)
        texts.append(f"{name}: best {best}, over the worst ({worst}) {shown(gap)}")
    clear = [winner for winner in winners if winner]
    result = "supported" if len(set(clear)) > 1 else "not decidable here" if texts else "not measured yet"
    return f"5. The best single scale differs by data set: **{result}**. {'; '.join(texts)}".strip()


def with_summary(readme: str, found: Found) -> str:
    """The README with its table of the default preset, between the two marks."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    sets = [name for name in SETS if ("default", name) in found]
    body = [
        [f"`{method}`", *(dice(found["default", name].spread(method, BY_IMAGE)) for name in sets)]
        for method in (("decoder-only", "lora", "conv-lora", OFFICIAL) if sets else ())
    ]
    return "".join(
        [before, START, *(f"{row}\n" for row in rows(["Dice by image, test", *sets], body)), END, after]
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--check", action="store_true")
    check = made.parse_args().check
    found, plan = load(), yaml.safe_load((HERE / "plan.yaml").read_text())
    text = "\n".join(page(found, plan)).rstrip() + "\n"
    for file, content in ((PAGE, text), (README, with_summary(README.read_text(), found))):
        if not check:
            file.write_text(content)
            print(f"Wrote {file}")
        elif not file.exists() or file.read_text() != content:
            sys.exit(f"{file} is not what the results give")


if __name__ == "__main__":
    main()
