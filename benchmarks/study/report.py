"""Write docs/results.md, and the table of README.md, from the results that are kept.

    python benchmarks/study/report.py [--check]

`--check` writes nothing and fails where the page is not what the results give.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import yaml
from choices import OFFICIAL, SECTIONS
from comparisons import BY_IMAGE, SETS, Found, load
from summary import consistency, in_short, multiplicity, noise, unfinished
from tables import claim_table, dice, rows, table
from verdicts import RULE

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "results.md"
README = HERE.parent.parent / "README.md"
START, END = "<!-- made by benchmarks/study/report.py -->\n", "<!-- end -->\n"


def page(found: Found, plan: dict) -> Iterator[str]:
    """Lines of docs/results.md."""
    made = {title: list(claims(found)) for title, (_, claims) in SECTIONS.items()}
    yield "# Results"
    yield ""
    yield (
        "Made by `python benchmarks/study/report.py` from `benchmarks/study/results/`; do not edit. "
        "The runs: `benchmarks/study/plan.yaml`, `python benchmarks/study/run.py DATA`. What was learnt on "
        "the way, failures too: [log](log.md)."
    )
    yield ""
    yield "## In short"
    yield ""
    yield from in_short(found)
    yield from consistency(found)
    yield "## How to read it"
    yield ""
    yield from setting(found, plan)
    yield (
        f"{RULE} **Bold** intervals are clear of zero, also those of two seeds or over images, which decide "
        "nothing."
    )
    yield ""
    yield (
        "Differences are in points of 100 of the mean Dice of the foreground classes, on test unless it says "
        "otherwise. That Dice counts the pixels of all images together and decides; *by image* is the mean "
        "of each image's own, which a few images with much foreground do not rule (it was looked at after "
        "the first runs). `conv-lora` has the default preset's router, which was chosen on validation of "
        "these sets, as its alpha was looked at; LoRA had no search but for learning rates. "
        f"`{OFFICIAL}` is the paper's router."
    )
    yield ""
    yield (
        f"{sizes(found)} Intervals are over seeds of the training on these images: other images, or another "
        "split, could change the scores by more. So *over images* stands the t interval over the test images "
        "of the same difference, of each image the mean over seeds; `-`: not all of its runs kept each "
        f"image's Dice. {multiplicity(chain.from_iterable(made.values()))}"
    )
    yield ""
    yield (
        "The last column counts the pairs whose two runs were made on one kind of machine in one precision. "
        "How much another one changes:"
    )
    yield ""
    yield from noise(found)
    for title, (note, _) in SECTIONS.items():
        yield f"## {title}"
        yield ""
        yield note
        yield ""
        yield from claim_table(made[title])
        yield ""
    yield "## What is planned and has not been run"
    yield ""
    yield from unfinished(found, plan)
    for (part, name), comparison in sorted(found.items(), key=lambda item: order(item[0], plan)):
        yield from table(comparison, part, name, plan)


def sizes(found: Found) -> str:
    """Images that scores are of."""
    texts = []
    for name in SETS:
        for run in found["default", name].runs[:1] if ("default", name) in found else ():
            test, val = (run["result"][key]["n_images"] for key in ("scores", "validation"))
            texts.append(f"{test:.0f} and {val:.0f} of {name}")
    return f"Images of test and validation: {'; '.join(texts)}." if texts else ""


def order(key: tuple[str, str], plan: dict) -> tuple[int, int]:
    part, name = key
    return list(plan["parts"]).index(part), SETS.index(name)


def setting(found: Found, plan: dict) -> Iterator[str]:
    """What all runs share."""
    common = plan["common"]
    yield (
        f"All runs: {common['backbone']}, {common['image_size']} px, {common['max_steps']} steps of "
        f"{common['batch_size']} images, best of the validation split; images stretched to the square, "
        "padded in the parts that are named so; parts `epochs` and `epochs-paper` train for 30 epochs, "
        "`full-random` from random weights; `size-384` and `size-512` have inputs of that size. Under each "
        "table stand the seeds, machines, commits and commands of its runs. Its seconds (median) and memory "
        "(the largest) are those of one machine with as many runs at once, of those that its runs had the "
        "one with most methods; `-`: no run there. Pictures: `predictions.png` in each part's folder of "
        "`--work`; the licences of the sets keep them out of this repository, so "
        "[those here](compare.md#what-comes-out) are of the quickstart's sample."
    )
    yield ""
    versions = {
        ", ".join(f"{k} {v}" for k, v in run["made"]["versions"].items())
        for comparison in found.values()
        for run in comparison.content["runs"].values()
    }
    weights = {comparison.content["backbone"][:16] for comparison in found.values()}
    yield f"Versions: {'; '.join(sorted(versions)) or '-'}. Weights: {'; '.join(sorted(weights)) or '-'}."
    yield ""


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
