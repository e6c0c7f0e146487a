"""Tests of this folder in a process of their own: a device that is registered changes PyTorch for good."""

import os
import subprocess
import sys
from pathlib import Path


def run_there(name: str, runs: Path) -> None:
    """Run tests/other_device/NAME; `runs` holds what was trained on the CPU."""
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", file]
    place = {"CONVLORA_RUNS_OF_THE_CPU": str(runs)}
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
