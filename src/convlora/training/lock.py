"""One run at a time in a run folder."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from convlora.errors import ConfigError

FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. A lock whose process is gone, as after a kill, is taken over.

    Raises:
        ConfigError: another process holds it, or one on another machine may.
    """
    file = folder / FILE
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())})
    for _ in range(2):
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(mine)
            break
        except FileExistsError:
            _remove_if_stale(file, folder)
    else:
        raise ConfigError(f"{folder} is being written by another run. Choose another --out.")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _remove_if_stale(file: Path, folder: Path) -> None:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        host, pid, started = holder["host"], int(holder["pid"]), holder["started"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # a kill in the middle of writing it
        file.unlink(missing_ok=True)
        return
    if host != socket.gethostname():
        raise ConfigError(
            f"{folder} is locked by process {pid} on {host}. If that run is gone, delete {file}; "
            "else choose another --out."
        )
    if _started(pid) == started:
        raise ConfigError(
            f"{folder} is being written by another run, process {pid}. Wait for it, stop it, or choose "
            "another --out."
        )
    file.unlink(missing_ok=True)


def _started(pid: int) -> float | None:
    """When a process began; a number is given to a new process sooner or later."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
