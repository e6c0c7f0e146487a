"""Run the study of docs/results.md, or go on with it.

    python benchmarks/study/run.py DATA [--part methods] [--set nuclei] [--minutes 60] [--runs 8] [--jobs 2]

DATA holds the sets (nuclei, cracks, camvid), each in convlora's layout. Every part of plan.yaml on every set
is one comparison. What has been measured is kept in benchmarks/study/results/PART-SET.json, run by run, with
the commit, the machine and the backbone's fingerprint; runs that are there, of the same configuration and
backbone, are not run again, on any machine and in any part. `--jobs` runs go on at once, each with its share
of the cores. Then: python benchmarks/study/report.py
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))  # what the benchmarks share

from kept import Kept

from convlora.comparison.compare import compare
from convlora.comparison.launch import Task, run_task
from convlora.comparison.settings import Settings, make_settings
from convlora.config import RunConfig, make_config

HERE = Path(__file__).parent


class OutOfTimeError(Exception):
    """The time, or the number of runs, that was given is used up; the runs that have ended are kept."""


class Budget:
    """What all comparisons of a call may take together: new runs begin only while there is some left."""

    def __init__(self, minutes: float, runs: float) -> None:
        self.deadline, self.runs = time.monotonic() + 60 * minutes, runs

    def take(self) -> bool:
        """Whether one more run may begin; it is counted then."""
        granted = time.monotonic() < self.deadline and self.runs > 0
        self.runs -= granted
        return granted


class Jobs:
    """Engine that makes some runs at once, until the budget is used up; keeps each as it ends."""

    def __init__(self, jobs: int, budget: Budget, kept: Kept) -> None:
        self.jobs, self.budget, self.kept = jobs, budget, kept

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """See `convlora.comparison.launch.Engine`."""
        waiting = []
        for task in tasks:
            known = self.kept.adopt(task)
            if known is None:
                waiting.append(task)
            else:
                yield task, known
        running: dict[Future[dict[str, Any]], Task] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            while waiting or running:
                while waiting and len(running) < self.jobs and self.budget.take():
                    task = waiting.pop(0)
                    running[pool.submit(run_task, task)] = task
                if not running:
                    raise OutOfTimeError
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(done)
                    self.kept.add(task.cell, done.result())
                    yield task, done.result()


def comparison(plan: dict[str, Any], part: str, data: Path, out: Path) -> tuple[RunConfig, Settings]:
    """What `convlora compare` gets for a part of the plan on one set."""
    common, own = dict(plan["common"]), plan["parts"][part]
    metrics = common.pop("metrics")
    config = make_config({"data": data, "out": out, **common, **own.get("options", {})})
    settings = make_settings(
        own["methods"],
        own["seeds"],
        str(own.get("train_sizes", "all")),
        reference=own.get("reference"),
        metrics=metrics,
        split=own.get("split", "test"),
        tune_lr=own.get("tune_lr", False),
        first_seed=own.get("first_seed", 0),
    )
    return config, settings


def run_part(plan: dict[str, Any], part: str, name: str, options: argparse.Namespace, budget: Budget) -> None:
    """One comparison, with what is known of it."""
    out = options.work / f"{part}-{name}"
    config, settings = comparison(plan, part, options.data / name, out)
    kept = Kept(HERE / "results" / f"{part}-{name}.json", out, config.backbone)
    kept.restore()
    engine = Jobs(options.jobs, budget, kept)
    try:
        outcome = compare(
            config, settings, engine, say=lambda text: print(f"{part} {name}: {text}", flush=True)
        )
        kept.finish(outcome.to_dict())
    finally:
        kept.write()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--part", action="append", help="only these parts; may be given several times")
    made.add_argument("--set", action="append", help="only these sets")
    made.add_argument("--minutes", type=float, default=float("inf"))
    made.add_argument("--runs", type=float, default=float("inf"), help="start no more than these")
    made.add_argument("--jobs", type=int, default=1)
    made.add_argument("--work", type=Path, default=Path("study"), help="folder of the runs")
    options = made.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // options.jobs))
    budget = Budget(options.minutes, options.runs)
    plan = yaml.safe_load((HERE / "plan.yaml").read_text())
    try:
        for part, own in plan["parts"].items():
            for name in own["sets"]:
                if part in (options.part or [part]) and name in (options.set or [name]):
                    run_part(plan, part, name, options, budget)
    except OutOfTimeError:
        print("What was given is used up; the same command goes on.")
    print(json.dumps({"results": sorted(str(f.name) for f in (HERE / "results").glob("*.json"))}))


if __name__ == "__main__":
    main()
