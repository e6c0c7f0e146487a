"""On a device that is not the CPU everything computes what it does on the CPU; tests/other_device has how."""

import os
import subprocess
import sys
from pathlib import Path

import convlora

FOLDER = Path(__file__).parent / "other_device"
sys.path.insert(0, str(FOLDER))

from runs import OPTIONS, RUNS  # noqa: E402


def test_on_a_device_that_is_not_the_cpu(small_backbone, tmp_path, request):
    """In a process of its own: a device that is registered changes PyTorch for good."""
    for name, (data, options) in RUNS.items():
        place = request.getfixturevalue(data)
        convlora.train(place, tmp_path / name, backbone=str(small_backbone), **{**OPTIONS, **options})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", FOLDER]
    place = {"CONVLORA_RUNS_OF_THE_CPU": str(tmp_path)}
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
