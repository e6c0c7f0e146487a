"""From results to files: results.json, results.csv, results.md."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

from convlora.comparison.entries import BASELINES
from convlora.comparison.outcome import Outcome, identity
from convlora.comparison.tables import header, size_name, table_cells
from convlora.evaluation import write_scores
from convlora.output import write_text
from convlora.unet import unet_size

JSON, CSV, MARKDOWN = "results.json", "results.csv", "results.md"


def write_report(outcome: Outcome, out: Path) -> None:
    """Write results.json, results.csv and results.md.

    Raises:
        WriteError: the disk is full or not writable; the runs are kept.
    """
    write_scores(outcome.to_dict(), out / JSON)
    write_text(out / CSV, _as_csv(outcome))
    write_text(out / MARKDOWN, _as_markdown(outcome))


_COSTS = ("trained_parameters", "all_parameters", "step_seconds", "peak_memory_mib", "adapter_bytes", "steps")


def _as_csv(outcome: Outcome) -> str:
    """One line for each run, all scores; a run that failed has its error."""
    names = sorted({name for result in outcome.results.values() for name in result.get("scores", {})})
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "method", "seed", "train_images", "lr", *_COSTS, *names, "error"])
    for cell in outcome.cells:
        result = outcome.results[cell.name]
        scores = result.get("scores", {})
        own = identity(cell) | {"train_images": cell.train_images or "all"}
        writer.writerow(
            [
                *own.values(),
                *(result.get(key) for key in _COSTS),
                *(scores.get(name) for name in names),
                result.get("error", ""),
            ]
        )
    return text.getvalue()


def _as_markdown(outcome: Outcome) -> str:
    return "\n".join(_markdown_lines(outcome)) + "\n"


def _markdown_lines(outcome: Outcome) -> Iterator[str]:
    settings, base, dataset = outcome.settings, outcome.base, outcome.dataset
    seeds = ", ".join(map(str, settings.seed_range))
    sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in dataset.splits.items())
    of_sam = any(entry.label not in BASELINES for entry in outcome.entries)
    backbone = f"Backbone {base['backbone']}, " if of_sam else ""
    yield "# Comparison of methods"
    yield ""
    yield (
        f"Data: {sizes} images, classes {', '.join(dataset.classes)}. {backbone}"
        f"{base['max_steps']} steps of {base['batch_size']} images at {unet_size(base['image_size'])} px, "
        f"seeds: {seeds}. Scores on '{settings.split}' of the model that is best on 'val' by "
        f"{base['metric']}; mean ± standard deviation over seeds. The difference to {settings.reference} is "
        "paired by seed, with Student's 95 % confidence interval; how much scores change with other images "
        f"than these {len(dataset.splits[settings.split])} is not in it."
    )
    for size in settings.train_sizes:
        yield ""
        yield f"## {size_name(size)[0].upper()}{size_name(size)[1:]}"
        yield ""
        columns = header(settings)
        yield from _markdown_table(
            [columns, *(table_cells(r, settings) for r in outcome.rows if r.train_images == size)]
        )
    if outcome.failures:
        yield ""
        yield "## Runs that failed"
        yield ""
        for cell, reason in outcome.failures:
            yield f"- {cell.name}: {reason.strip().splitlines()[0]}"
    if outcome.failed_tuning:
        yield ""
        yield "## Learning rates that were chosen from fewer runs"
        yield ""
        for cell, reason in outcome.failed_tuning:
            yield f"- {cell.name}: {reason.strip().splitlines()[0]}"
        yield ""
        yield (
            "A rate that was chosen stays, as runs with it are in the tables. To choose anew: delete "
            "learning_rates.json and the folders of the method in runs/, and give the same command."
        )


def _markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for i, row in enumerate(rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if i == 0:
            yield "|" + "---|" * len(row)
