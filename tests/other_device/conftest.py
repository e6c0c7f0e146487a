"""Registers the device before anything of these tests runs."""

import os
from pathlib import Path

import pytest
from device import NAME, register

from convlora.adapters.experts import WITHOUT_FLOAT64

libraries = register()
WITHOUT_FLOAT64.add(NAME)  # as Apple's GPUs, and stricter than others


@pytest.fixture(scope="session")
def runs_of_the_cpu() -> Path:
    """Folder with the runs of runs.py, made by tests/test_other_device_runs.py."""
    return Path(os.environ["CONVLORA_RUNS_OF_THE_CPU"])
