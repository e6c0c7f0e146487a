"""Run cells: each in a child process, one after the other; what is done is not done again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from convlora.comparison.cell import CELL, RESULT
from convlora.comparison.entries import Cell, digest
from convlora.output import write_text

LOG = "log.txt"


@dataclass(frozen=True)
class Task:
    """A cell with its folder and whole configuration."""

    cell: Cell
    folder: Path
    config: dict[str, Any]
    split: str
    places: dict[str, Any] = field(default_factory=dict)  # of `config`, as other working folders need them

    @property
    def digest(self) -> str:
        """Hash of all that decides the result; places are left out, so that a comparison may be moved."""
        places = {"data", "out"}
        return digest({k: v for k, v in self.config.items() if k not in places} | {"split": self.split})

    def write(self) -> None:
        """Write cell.json, which `convlora.comparison.cell` reads."""
        content = {
            "config": {**self.config, **self.places},
            "digest": self.digest,
            "split": self.split,
            "tuning": self.cell.tuning,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / CELL, json.dumps(content, indent=2, default=str) + "\n")


def read_result(task: Task) -> dict[str, Any] | None:
    """What an earlier run of the same configuration gave; None if there is none, or it is not whole."""
    try:
        result = json.loads((task.folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("digest") == task.digest else None


def run_task(task: Task) -> dict[str, Any]:
    """Run a cell in a child process.

    Returns:
        Its result; where it failed, 'error' says why and 'log' where more is written.

    Raises:
        KeyboardInterrupt: the user stopped it; the run can be gone on with.
    """
    if _holds_another(task):
        reason = f"{task.folder} holds a run of another configuration. Remove the folder to run it anew."
        return {"digest": task.digest, "error": reason, "log": str(task.folder / LOG)}
    task.write()
    (task.folder / RESULT).unlink(missing_ok=True)
    log = task.folder / LOG
    command = [sys.executable, "-m", "convlora.comparison.cell", str(task.folder)]
    with log.open("ab") as file:
        code = _call(command, file)
    result = read_result(task)
    if code == 130:
        raise KeyboardInterrupt
    if result is None:
        result = {"digest": task.digest, "error": _reason(code, log)}
    if "error" in result:
        result["log"] = str(log)
        write_text(task.folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _call(command: Sequence[str], log: IO[bytes]) -> int:
    """Exit code of a child; it hears Ctrl-C as well, and is given the time to save."""
    # the code page of Windows may lack what the names of classes hold
    utf8 = {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}
    with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=utf8) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise


def _holds_another(task: Task) -> bool:
    try:
        return bool(json.loads((task.folder / CELL).read_text(encoding="utf-8"))["digest"] != task.digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


Engine = Callable[[Sequence[Task]], Iterable[tuple[Task, dict[str, Any]]]]


def one_by_one(tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Engine that runs the tasks here, in their order."""
    for task in tasks:
        yield task, run_task(task)


def run_tasks(
    tasks: Sequence[Task], engine: Engine, say: Callable[[str], None]
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Results of all tasks: those that are done already first, then the others as they come.

    A task that failed before is run again; one that fails does not stop the rest.
    """
    todo = []
    for task in tasks:
        result = read_result(task)
        if result is None or "error" in result:
            todo.append(task)
        else:
            yield task, result
    if len(todo) < len(tasks):
        say(f"{len(tasks) - len(todo)} of {len(tasks)} runs are done already")
    if todo:  # the first may take hours
        say(f"{len(todo)} to run; each writes a log, the first {todo[0].folder / LOG}")
    for number, (task, result) in enumerate(engine(todo), 1):
        if "error" in result:
            first = result["error"].strip().splitlines()[0]
            say(f"[{number}/{len(todo)}] {task.cell.name} FAILED: {first} ({result['log']})")
        else:
            say(f"[{number}/{len(todo)}] {task.cell.name}: {_headline(task, result)}")
        yield task, result


def _headline(task: Task, result: dict[str, Any]) -> str:
    metric = task.config["metric"]
    scores = result.get("scores", result["validation"])
    where = "validation" if "scores" not in result else task.split
    value = scores.get(metric)
    shown = "undefined" if value is None else f"{value:.4f}"
    return f"{where} {metric} {shown}, {result['step_seconds']:.2f} s a step"


def _reason(code: int, log: Path) -> str:
    """Why a child ended without a result: the last line it wrote, or the signal that killed it."""
    if code < 0:
        hint = " (perhaps for want of memory)" if code == -9 else ""
        return f"killed by signal {-code}{hint}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"
