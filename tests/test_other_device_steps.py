"""On a device that is not the CPU every step computes what it does on the CPU; tests/other_device has how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "other_device"))

from launch import run_there


def test_steps_on_a_device_that_is_not_the_cpu(tmp_path):
    run_there("test_steps.py", tmp_path)
