"""What a run was made with: versions and machine, for environment.json."""

import json
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("convlora", "torch", "numpy", "accelerate", "kornia", "pillow", "safetensors")


def describe_environment(device: torch.device, precision: str) -> dict[str, object]:
    """Versions, device and command line."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "command": sys.argv,
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def read_command(run: Path) -> str:
    """The command that a run was started with, as to be typed; a run that is resumed keeps it."""
    argv = json.loads((run / "environment.json").read_text(encoding="utf-8"))["command"]
    return shlex.join(["convlora", *argv[1:]])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
