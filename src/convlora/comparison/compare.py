"""Compare methods on a user's data: the same images in the same order, steps, decoder and head for all."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convlora.backbone.presets import EncoderSpec
from convlora.backbone.weights import load_sam
from convlora.comparison.charts import draw_charts
from convlora.comparison.entries import BASELINES, Cell, Entry, make_cells, parse_methods
from convlora.comparison.launch import Engine, Task, one_by_one, read_result, run_tasks
from convlora.comparison.outcome import Outcome
from convlora.comparison.report import write_report
from convlora.comparison.settings import FACTORS, OF_A_RUN, TUNING_SEED, Settings, record_settings
from convlora.config import RunConfig, make_config
from convlora.data.check import check_dataset
from convlora.data.gather import gathered
from convlora.data.layout import DataSet
from convlora.data.progress import show_progress
from convlora.errors import ConfigError
from convlora.figures import check_matplotlib
from convlora.launcher import refuse_launcher
from convlora.metrics import LOWER_IS_BETTER
from convlora.output import make_folder, write_text
from convlora.presets import preset_method
from convlora.training.lock import locked
from convlora.training.notes import made_splits, thin_areas
from convlora.training.plan import make_plan
from convlora.training.run_folder import check_run_folder_is_free
from convlora.training.validation import check_metric

RUNS, TUNED = "runs", "learning_rates.json"
# with the default rate the method would stand untuned beside tuned ones, and in the way of its tuned runs
_WAITS = {
    "error": "not run, because all runs that were to choose its learning rate failed; the same command "
    "tries them again"
}
_say = partial(print, flush=True)  # a log file shows at once how far it is


def compare(
    config: RunConfig,
    settings: Settings,
    engine: Engine = one_by_one,
    say: Callable[[str], None] = _say,
) -> Outcome:
    """Run every method with every seed and number of images that is not done yet, and write the tables.

    Args:
        config: what all runs share; its `out` is the comparison's folder; method, seed and train_images are
            not used.
        settings: what is compared.
        engine: runs the tasks: here, or on other machines.
        say: is told what is done.

    Returns:
        Everything that was measured; `results.json`, `results.csv`, `results.md` and pictures are in `out`.

    Raises:
        ConfigError, DataError, WeightsError: before the first run, with what to change. A run that fails
            later is reported, and the others go on.
    """
    refuse_launcher("compare")  # its runs would hear of the launcher too, and wait for each other
    check_matplotlib("convlora compare", "compare")
    check_run_folder_is_free(config.out, config.data)
    entries = [parse_methods(label)[0] for label in settings.methods]
    dataset = _check_data(config, settings, say)
    labels = {entry.label for entry in entries}
    of_sam = not labels <= set(BASELINES)
    spec = load_sam(config.backbone).sam.spec.encoder if of_sam else None
    base, default_lr = _shared(config, entries, len(dataset.splits["train"]), spec)
    for note in made_splits(dataset):
        say(f"note: {note}")
    if spec:
        size, patch = base["image_size"], spec.patch_size
        for note in thin_areas(dataset, size, config.resize, patch, with_unet="unet" in labels):
            say(f"note: {note}")
    make_folder(config.out)
    with locked(config.out):  # two would take each other's runs for failed, and write over their tables
        record_settings(config.out, settings, base, dataset.fingerprint)
        runner = _Runner(config.out, settings, base, engine, say)
        rates = runner.tune(entries, default_lr) if settings.tune_lr else {}
        cells = make_cells(entries, settings.seed_range, settings.train_sizes, rates)
        results = runner.run(cells)
        outcome = Outcome(settings, base, dataset, entries, cells, results, rates, runner.tuning)
        write_report(outcome, config.out)
        draw_charts(outcome, config.out)
    return outcome


def _check_data(config: RunConfig, settings: Settings, say: Callable[[str], None]) -> DataSet:
    """Check the data once, with all that the runs will need of it."""
    wanted = ("train", "val", settings.split)
    report = check_dataset(
        config.data,
        classes=config.classes,
        palette=config.palette,
        splits=tuple(dict.fromkeys(wanted)),
        progress=show_progress,
    )
    report.raise_if_errors()
    for line in gathered(report.warnings):
        say(f"warning: {line}")
    dataset = report.dataset
    for metric in (config.metric, *settings.metrics):
        check_metric(metric, dataset.classes)
    most = len(dataset.splits["train"])
    large = [size for size in settings.train_sizes if size is not None and size > most]
    if large:
        raise ConfigError(f"--train-sizes names {large[0]}, but there are {most} training images.")
    return dataset


def _shared(
    config: RunConfig, entries: Sequence[Entry], train_images: int, spec: EncoderSpec | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Keys of all runs, and the default learning rate of each label.

    Steps, validations and image size are fixed here: the budget is the same with fewer images, and a baseline
    sees what SAM sees.
    """
    width = spec.embed_dim if spec else 0
    plans = {
        entry.label: make_plan(config, train_images, 0 if entry.label in BASELINES else width)
        for entry in entries
    }
    plan = plans[entries[0].label]
    shared = config.model_dump(mode="json", exclude={"out", *OF_A_RUN})
    shared |= {
        "data": str(config.data.resolve()),
        "max_steps": plan.steps,
        "eval_every": plan.eval_every,
        "image_size": config.image_size or (spec.image_size if spec else None),
    }
    return shared, {label: plan.lr for label, plan in plans.items()}


class _Runner:
    """Runs cells of one comparison."""

    def __init__(
        self, out: Path, settings: Settings, base: dict[str, Any], engine: Engine, say: Callable[[str], None]
    ) -> None:
        self.out, self.settings, self.base = out, settings, base
        self.engine, self.say = engine, say
        self.tuning: list[tuple[Cell, dict[str, Any]]] = []
        self.waiting: set[str] = set()  # methods without a learning rate

    def run(self, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
        """Name of each cell -> its result; those that wait for a learning rate are told as failed."""
        tasks = [self._task(cell) for cell in cells if cell.entry.label not in self.waiting]
        results = {task.cell.name: result for task, result in run_tasks(tasks, self.engine, self.say)}
        return results | {cell.name: _WAITS for cell in cells if cell.entry.label in self.waiting}

    def tune(self, entries: Sequence[Entry], defaults: dict[str, float]) -> dict[str, float]:
        """Choose each method's learning rate by its validation score, all with the same number of runs.

        Rate by rate, so that a comparison that is cut off is fair at each moment. What was chosen is kept in
        a file: methods that are added later do not change the others'.
        """
        file = self.out / TUNED
        known = _read_rates(file)
        missing = [entry for entry in entries if entry.label not in known]
        every = [
            Cell(entry, TUNING_SEED, lr=factor * defaults[entry.label], tuning=True)
            for factor in FACTORS
            for entry in entries
        ]
        cells = [cell for cell in every if cell.entry in missing]
        results = self.run(cells)
        made = ((cell, results.get(cell.name) or read_result(self._task(cell))) for cell in every)
        self.tuning = [(cell, result) for cell, result in made if result is not None]
        for entry in missing:
            tried = {cell.lr: results[cell.name] for cell in cells if cell.entry == entry}
            rate = self._choose(entry.label, tried)
            if rate is not None:
                known[entry.label] = rate
        write_text(file, json.dumps(known, indent=2) + "\n")
        return known

    def _choose(self, label: str, tried: dict[float | None, dict[str, Any]]) -> float | None:
        """The rate with the best validation score, of equal ones the first; None if there is none."""
        if all("error" in result for result in tried.values()):
            self.waiting.add(label)
            self.say(f"{label}: {_WAITS['error']}")
            return None
        scores = {rate: _validation(result, self.base["metric"]) for rate, result in tried.items()}
        reached = {rate: score for rate, score in scores.items() if rate and score is not None}
        if not reached:
            self.say(f"{label}: no learning rate could be chosen; it keeps the default")
            return None
        best = min if self.base["metric"] in LOWER_IS_BETTER else max
        chosen = best(reached, key=lambda rate: reached[rate])
        fewer = "" if len(reached) == len(FACTORS) else f", of {len(reached)} that were reached"
        self.say(f"{label}: learning rate {chosen:.3g}{fewer}")
        return chosen

    def _task(self, cell: Cell) -> Task:
        folder = (self.out / RUNS / cell.name).absolute()  # other machines work in other folders
        config = {**self.base, **cell.config(), "out": str((folder / "run").resolve())}
        config["method"] = preset_method(config["method"], self.base["preset"])
        located = make_config(config).located().model_dump(mode="json")
        places = {key: located[key] for key in ("palette", "backbone")}
        return Task(cell, folder, config, self.settings.split, places)


def _read_rates(file: Path) -> dict[str, float]:
    """Learning rates that were chosen before; none at first."""
    try:
        rates = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return {str(label): float(rate) for label, rate in rates.items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(
            f"{file} is damaged: {error}. Delete it to choose the learning rates anew."
        ) from error


def _validation(result: dict[str, Any], metric: str) -> float | None:
    return result.get("validation", {}).get(metric)
