"""Rows of the table from results that are written out: no run is made."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from convlora.comparison.compare import _Runner
from convlora.comparison.entries import Cell, make_cells, parse_methods
from convlora.comparison.launch import Task, _reason, read_result, run_tasks
from convlora.comparison.outcome import Outcome
from convlora.comparison.report import _as_markdown
from convlora.comparison.settings import make_settings
from convlora.comparison.tables import header, table_cells
from convlora.data.layout import DataSet

COSTS = {"trained_parameters": 250_000, "all_parameters": 1_000_000, "adapter_bytes": 1_500_000}


def result(score, seconds, peak):
    return {"scores": {"mae": score}, "step_seconds": seconds, "peak_memory_mib": peak, **COSTS}


@pytest.fixture
def outcome():
    """Two methods and three seeds; of one method a run failed, and one has no score."""
    settings = make_settings("lora,ssf", 3, metrics="mae", tune_lr=True)
    entries = parse_methods("lora,ssf")
    cells = make_cells(entries, settings.seed_range, (None,), {"ssf": 0.003})
    results = {
        "lora-seed0": result(0.2, 1.0, 2000),
        "lora-seed1": result(0.3, 3.0, 3000),
        "lora-seed2": result(0.4, 2.0, None),
        "ssf-seed0": result(0.1, 1.0, 500),
        "ssf-seed1": {"error": "killed"},
        "ssf-seed2": result(None, 2.0, 600),
    }
    dataset = DataSet(Path("data"), {"test": []}, ("background", "cell"))
    return Outcome(settings, {}, dataset, entries, cells, results, {"ssf": 0.003})


def test_rows(outcome):
    lora, ssf = outcome.rows
    assert lora.scores["mae"].mean == pytest.approx(0.3)
    assert (lora.scores["mae"].n, ssf.scores["mae"].n) == (3, 1)
    assert (lora.step_seconds, ssf.step_seconds) == (2.0, 1.5)  # mean over seeds
    assert (lora.peak_memory_mib, ssf.peak_memory_mib) == (3000, 600)  # largest
    assert (lora.failed, ssf.failed) == (0, 1)
    assert (lora.lr, ssf.lr) == (None, 0.003)
    assert lora.differences["mae"] is None
    assert ssf.differences["mae"].mean == pytest.approx(-0.1)  # of the one seed that both have
    assert ssf.differences["mae"].n == 1


def test_cells_of_the_table(outcome):
    settings = outcome.settings
    assert header(settings)[1:3] == ["mae", "mae - lora (95 % CI)"]
    lora, ssf = (table_cells(row, settings) for row in outcome.rows)
    assert lora == ["lora", "0.3000 ± 0.1000", "-", "0.250", "25.00", "2.00", "3,000", "1.50", "default"]
    assert ssf == ["ssf (1 failed)", "0.1000", "-0.1000", "0.250", "25.00", "1.50", "600", "1.50", "0.003"]
    assert len(lora) == len(header(settings))


def test_the_report_of_baselines_alone(outcome):
    """They have no backbone of SAM, and a size of their own where none is given."""
    base = {"backbone": "sam-tiny", "max_steps": 9, "batch_size": 4, "image_size": None, "metric": "mae"}
    text = _as_markdown(replace(outcome, base=base | {"image_size": 64}))
    assert "cell. Backbone sam-tiny, 9 steps of 4 images at 64 px, seeds: 0, 1, 2." in text
    unet = parse_methods("unet")
    cells = make_cells(unet, [0], (None,), {})
    results = {"unet-seed0": result(0.2, 1.0, 9)}
    text = _as_markdown(
        replace(
            outcome,
            settings=make_settings("unet", 1, metrics="mae"),
            base=base,
            entries=unet,
            cells=cells,
            results=results,
            rates={},
        )
    )
    assert "cell. 9 steps of 4 images at 256 px, seeds: 0." in text


@pytest.mark.parametrize(("metric", "best"), [("mae", 0.0003), ("mean_iou", 0.003)])
def test_the_best_rate_is_the_lowest_where_lower_is_better(outcome, tmp_path, metric, best):
    runner = _Runner(tmp_path, outcome.settings, {"metric": metric}, lambda tasks: (), lambda text: None)
    scores = {0.001: 0.5, 0.003: 0.6, 0.0003: 0.4}
    tried = {rate: {"validation": {metric: score}} for rate, score in scores.items()}
    assert runner._choose("lora", tried) == best
    tied = {rate: {"validation": {metric: 0.5}} for rate in scores}
    assert runner._choose("lora", tied) == 0.001  # the first


def test_a_result_belongs_to_its_configuration_and_not_to_its_place(tmp_path):
    """So a comparison may be moved, and never takes what another configuration gave."""

    def task(split="test", **changes):
        config = {"data": "a", "out": "b", "lr": 1e-3, **changes}
        return Task(Cell(parse_methods("lora")[0], 0), tmp_path, config, split)

    assert task(data="c", out="d").digest == task().digest
    assert len({task().digest, task(lr=3e-3).digest, task("val").digest}) == 3
    (tmp_path / "result.json").write_text(json.dumps({"digest": task().digest}))
    assert read_result(task(out="d")) is not None
    assert read_result(task(lr=3e-3)) is None


def test_where_the_logs_are_is_told_before_the_first_run(tmp_path):
    task, said = Task(Cell(parse_methods("lora")[0], 0), tmp_path, {}, "test"), []

    def engine(todo):
        said.append(f"{len(todo)} begin")
        yield from ((task, {"digest": task.digest, "error": "killed", "log": "x"}) for task in todo)

    list(run_tasks([task], engine, said.append))
    assert said[:2] == [f"1 to run; each writes a log, the first {tmp_path / 'log.txt'}", "1 begin"]
    (tmp_path / "result.json").write_text(json.dumps({"digest": task.digest}))
    said.clear()
    list(run_tasks([task], engine, said.append))
    assert said == ["1 of 1 runs are done already", "0 begin"]


def test_why_a_run_ended(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("step 1\nValueError: the reason\n\n")
    assert _reason(1, log) == "ValueError: the reason"
    assert _reason(-11, log) == "killed by signal 11"
    log.write_text("")
    assert _reason(3, log) == "ended with code 3"
