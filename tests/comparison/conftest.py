"""What the tests of comparisons share."""

import sys

import pytest

from convlora.comparison.cell import run_cell
from convlora.comparison.launch import read_result
from convlora.errors import ConfigError

STEPS = ["--max-steps", "2", "--image-size", "64", "--batch-size", "2", "--set", "previews=0"]


@pytest.fixture
def in_process(monkeypatch):
    """Cells run here, not in a child: the same code without the time that a start takes."""
    calls = []

    def run(task):
        calls.append(task.cell.name)
        monkeypatch.setattr(sys, "argv", ["cell", str(task.folder)])
        task.write()
        try:
            run_cell(task.folder)
        except ConfigError as error:
            return {"digest": task.digest, "error": str(error), "log": "log"}
        return read_result(task)

    monkeypatch.setattr("convlora.comparison.launch.run_task", run)
    return calls


@pytest.fixture
def call(command, binary_data, small_backbone, tmp_path):
    def run(*arguments, out=tmp_path / "out"):
        return command("compare", binary_data, "--out", out, "--backbone", small_backbone, *STEPS, *arguments)

    return run
