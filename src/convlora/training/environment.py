"""What a run was made with: versions and machine, for environment.json."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
