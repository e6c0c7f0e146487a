"""Converted models on the disk: found by what they were made from, whole or not there, intact or not read."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convlora._version import __version__
from convlora.errors import WriteError
from convlora.inference.openvino.runtime import version
from convlora.model import SegmentationModel
from convlora.output import CACHE, cache_root, replace_folder, to_disk, write_text
from convlora.weight_files import file_digest

FORMAT = 1
"""Goes up when the conversion changes without a new version of the package."""

_DAY = 24 * 3600.0  # seconds
MODEL, WEIGHTS, _RECORD = "model.xml", "model.bin", "record.json"


@dataclass(frozen=True)
class Converted:
    """A converted model on the disk."""

    folder: Path

    @property
    def model(self) -> Path:
        """The IR to compile."""
        return self.folder / MODEL

    @property
    def megabytes(self) -> float:
        """Size of the folder."""
        return sum(file.stat().st_size for file in self.folder.iterdir()) / 1e6

    def was_checked(self, how: str) -> bool:
        """Whether it was compared with PyTorch, and agreed, with this precision on this processor."""
        return how in (_read_record(self.folder) or {}).get("checked", {})

    def record_check(self, how: str, found: dict[str, float]) -> None:
        """Keep that it agreed; where that cannot be written, the next process compares again."""
        record = _read_record(self.folder) or {}
        record["checked"] = {**record.get("checked", {}), how: found}
        with suppress(WriteError):
            write_text(self.folder / _RECORD, json.dumps(record, indent=2) + "\n")


def cache_folder() -> Path:
    """Folder of the converted models."""
    return cache_root() / "openvino"


def fingerprint(model: SegmentationModel, size: tuple[int, int]) -> str:
    """SHA-256 of all that a conversion is made from: every weight, the configuration, size and versions."""
    digest = hashlib.sha256()
    made_by = [FORMAT, __version__, version(), torch.__version__]
    digest.update(json.dumps([model.config.to_dict(), size, made_by], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def converted(key: str, convert: Callable[[Path], None], tell: Callable[[str], None]) -> Converted:
    """The conversion of this key from the cache; it is made where it is not there, or is damaged.

    Args:
        key: see `fingerprint`.
        convert: writes NAME.xml and NAME.bin, given NAME.xml.
        tell: is told where a new conversion lies and how large it is, or that one was damaged.

    Raises:
        WriteError: the cache cannot be written.
    """
    folder = cache_folder() / key[:32]
    if folder.is_dir():
        if _is_intact(folder):
            return Converted(folder)
        tell(f"{folder} is damaged; the model is converted again.")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        _remove_leftovers(folder.parent)
        part.mkdir(parents=True)
        convert(part / MODEL)
        record = {"files": {name: file_digest(part / name) for name in (MODEL, WEIGHTS)}, "checked": {}}
        (part / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in part.iterdir():
            to_disk(file)
        replace_folder(part, folder)
    except OSError as error:
        raise WriteError(
            f"The converted model cannot be written to {folder}: {error.strerror or error}. Make room, name "
            f"another folder in the variable {CACHE}, or use engine torch."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    made = Converted(folder)
    tell(f"The model was converted for OpenVINO, once: {folder} ({made.megabytes:.0f} MB, may be deleted).")
    return made


def _remove_leftovers(cache: Path) -> None:
    """Remove what conversions that were killed have left, a day ago or more: younger ones may be at work."""
    for part in cache.glob("*.part"):
        with contextlib.suppress(OSError):  # another process has renamed it just now
            if time.time() - part.stat().st_mtime > _DAY:
                shutil.rmtree(part, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    files = (_read_record(folder) or {}).get("files", {})
    try:
        return set(files) == {MODEL, WEIGHTS} and all(file_digest(folder / n) == d for n, d in files.items())
    except OSError:
        return False


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
