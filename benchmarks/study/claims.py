"""What the kept runs say of the paper's claims, of the router, of the default preset and of its settings."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path

from tables import BY_IMAGE, METRIC, SETS
from verdicts import Comparison, judged, shown, side, verdict

from convlora.comparison.statistics import Difference, paired_difference
from convlora.model import count_on_preset

PROBES = Path(__file__).parent / "results" / "semantics" / "camvid.json"
OFFICIAL = "conv-lora:routing=balance"  # the paper's router as its code has it
FAST = "conv-lora:routing=soft:scope=image:start=zero:temperature=0.03:gain=32"  # a candidate
OTHERS = ("adapter", "sam-adapter", "vpt", "ssf", "bitfit", "lst")
PAIRS = (("lora", "decoder-only"), ("conv-lora", "decoder-only"), ("conv-lora", "lora"))
ROUTERS = (("conv-lora", OFFICIAL), (OFFICIAL, "lora"))
Found = Mapping[tuple[str, str], Comparison]


def of_the_paper(found: Found) -> Iterator[str]:
    """Its seven, in the order of the study."""
    against = partial(differences, found)
    yield both("1. Conv-LoRA beats LoRA", partial(against, "methods", "conv-lora", "lora"))
    yield over_others(found)
    yield extra_parameters(found)
    yield both(
        "3. Adapting the encoder with LoRA beats training the decoder alone",
        partial(against, "methods", "lora", "decoder-only"),
    )
    yield both("3b. With Conv-LoRA it does", partial(against, "methods", "conv-lora", "decoder-only"))
    yield sentence(
        "4. One expert chosen by the gate beats the sum of all scales",
        against("mixture", OFFICIAL, "conv-lora-multiscale"),
        times(found, "mixture", "conv-lora-multiscale", OFFICIAL),
    )
    yield best_scale(found)
    yield revived()
    yield sentence("7. Mask classification beats one mask a class", heads(found), end_to_end(found))


def of_the_router(found: Found) -> Iterator[str]:
    """On the validation split, where it is chosen."""
    against = partial(differences, found)
    yield sentence("The default preset's beats the official one", against("routing", "conv-lora", OFFICIAL))
    for other in (OFFICIAL, "conv-lora", "lora"):
        yield both(f"With a gain of 32 it beats {other}", partial(against, "routing-gain", FAST, other))


def of_the_preset(found: Found) -> Iterator[str]:
    """Its methods against each other, and Conv-LoRA against the paper's preset."""
    for part, what, asked in (
        ("default", "", (*PAIRS, *ROUTERS)),
        ("learning-rate", "With lr=0.003: ", PAIRS),
        ("epochs", "After 30 epochs: ", PAIRS),
        ("default-padded", "With resize=pad: ", (*PAIRS, *ROUTERS)),
    ):
        for method, other in asked:
            yield both(f"{what}{method} beats {other}", partial(differences, found, part, method, other))
    for ours, theirs, what in (("default", "paper", ""), ("epochs", "epochs-paper", "After 30 epochs: ")):
        pair = partial(between, found, ours, theirs, "conv-lora")
        yield both(f"{what}conv-lora beats itself with --preset paper", pair)


def of_few_images(found: Found) -> Iterator[str]:
    """Against a U-Net from random weights, which sees what SAM sees."""
    for size in (8, 16, 32, None):
        against = partial(differences, found, "low-data", "conv-lora", "unet", size=size)
        yield both(f"Of {size or 'all'} training images, Conv-LoRA makes more than the U-Net", against)


def of_the_settings(found: Found) -> Iterator[str]:
    """What the default preset's geometry, input, learning rate, loss and backbone rest on."""
    yield sentence(
        "Images stretched to the square beat padded ones, decoder alone, on validation",
        between(found, "loss-bce-dice", "loss-bce-dice-padded", "decoder-only"),
    )
    for method in ("decoder-only", "conv-lora"):
        yield both(
            f"Stretched images beat padded ones on test, {method}",
            partial(between, found, "default", "default-padded", method),
        )
    for size in (384, 512):
        larger = partial(only_cracks, found, f"size-{size}")
        yield both(f"Where areas are thin, inputs of {size} px beat those of 256, decoder alone", larger)
    for method in ("decoder-only", "lora", "conv-lora"):
        faster = partial(between, found, "learning-rate", "default", method)
        yield both(f"A learning rate of 0.003 beats the default preset's 0.001, {method}", faster)
    for alpha in (10, 100):
        scaled = partial(differences, found, "alpha", f"conv-lora:alpha={alpha}", "conv-lora")
        yield both(f"An alpha of {alpha} beats the default 32, conv-lora, on validation", scaled)
    for other in ("structure", "structure-official", "focal-dice"):
        yield sentence(
            f"Cross entropy + Dice beats {other}, decoder alone, on validation",
            between(found, "loss-bce-dice", f"loss-{other}", "decoder-only"),
        )
    yield sentence(
        "Full tuning from sam-tiny's weights beats full tuning from random ones",
        between(found, "full", "full-random", "full"),
    )


SECTIONS = {
    "The paper's claims": ("Learning rates are tuned in claims 1 and 3, not elsewhere.", of_the_paper),
    "The router": ("On validation; learning rate not tuned.", of_the_router),
    "The default preset": ("Learning rate not tuned.", of_the_preset),
    "Few images": ("Learning rate not tuned.", of_few_images),
    "Settings and backbone": ("Learning rate not tuned.", of_the_settings),
}


def both(claim: str, apart: partial[dict[str, Difference | None]]) -> str:
    """A sentence by the Dice that decides and by that of each image."""
    return sentence(claim, apart(metric=METRIC), by_image(apart(metric=BY_IMAGE)))


def only_cracks(found: Found, part: str, metric: str) -> dict[str, Difference | None]:
    """Of larger inputs; the one set whose areas are thin."""
    return {"cracks": between(found, part, "default", "decoder-only", metric)["cracks"]}


def revived(file: Path = PROBES) -> str:
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


def over_others(found: Found) -> str:
    """Claim 1b: a set speaks for it where LoRA is clear over each other method; full and U-Net are none."""
    claim = "1b. LoRA beats every other parameter-efficient method (intervals not corrected for their number)"
    sides, texts = [], []
    for name in SETS:
        against = {m: d for m in OTHERS if (d := differences(found, "others", "lora", m)[name]) is not None}
        signs = [side(d) for d in against.values()]
        lost, won = -1 in signs, signs.count(1) == len(OTHERS)
        sides.append((-1 if lost else int(won)) if against else None)
        texts += [f"{name}, {method} {shown(d)}" for method, d in against.items()]
    return f"{claim}: **{judged(sides)}**. {'; '.join(texts)}".strip()


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
    word = "supported" if share < 1 else "not supported"
    claim = "2. Conv-LoRA's extra parameters are minimal, under 1 % at ViT-H"
    return f"{claim}: **{word}** by the count. {text}."


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
    """Claim 5: on two sets the best of each is clear over the best of the other."""
    texts, best = [], {}
    for name in SETS:
        comparison = found.get(("scales", name))
        if comparison is None:
            continue
        means = {m: s.mean for m in comparison.methods if m != "lora" and (s := comparison.spread(m, METRIC))}
        if not means:
            continue
        best[name], worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        gap = comparison.difference(best[name], worst, METRIC)
        texts.append(f"{name}: best {best[name]}, over the worst ({worst}) {shown(gap)}")
    differ = False
    for one, other in combinations(best, 2):
        if best[one] == best[other]:
            continue
        gaps = [
            found["scales", here].difference(best[here], best[there], METRIC)
            for here, there in ((one, other), (other, one))
        ]
        texts.append(f"{one} and {other}, own best over the other's {', '.join(map(shown, gaps))}")
        differ |= all(side(gap) == 1 for gap in gaps)
    result = "supported" if differ else "not decidable here" if best else "not measured yet"
    return f"5. The best single scale differs by data set: **{result}**. {'; '.join(texts)}".strip()
