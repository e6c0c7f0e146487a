"""On a device that is not the CPU whole runs end as on the CPU; tests/other_device has how."""

import sys
from pathlib import Path

import convlora

sys.path.insert(0, str(Path(__file__).parent / "other_device"))

from launch import run_there
from runs import OPTIONS, RUNS


def test_runs_on_a_device_that_is_not_the_cpu(small_backbone, tmp_path, request):
    for name, (data, options) in RUNS.items():
        place = request.getfixturevalue(data)
        convlora.train(place, tmp_path / name, backbone=str(small_backbone), **{**OPTIONS, **options})
    run_there("test_runs.py", tmp_path)
