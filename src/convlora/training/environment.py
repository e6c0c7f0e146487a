"""What a run was made with: versions and machine, for environment.json."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from convlora.run_files import ENVIRONMENT
from convlora.settings import as_typed

_PACKAGES = ("convlora", "torch", "numpy", "accelerate", "kornia", "pillow", "safetensors")


def describe_environment(
    device: torch.device, precision: str, command: Sequence[str] | None
) -> dict[str, object]:
    """Versions, device and the command, if it was one."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "command": None if command is None else list(command),
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def read_command(run: Path) -> str | None:
    """The command that a run was started with, as to be typed; a run that is resumed keeps it.

    None where it was started from Python, or where the file is not there or not ours.
    """
    argv = _read(run).get("command")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        return None
    return as_typed(["convlora", *argv[1:]])


def is_of_a_run(folder: Path) -> bool:
    """Whether the folder's environment.json was written by a run."""
    versions = _read(folder).get("versions")
    return isinstance(versions, dict) and "convlora" in versions


def _read(run: Path) -> dict[str, Any]:
    try:
        content = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
