"""One run at a time in a run folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from convlora.errors import ConfigError

#: Stays in the folder, empty: who deletes a lock's file may delete that of the next holder.
FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system drops it when the process ends, in whatever way.

    Raises:
        ConfigError: another process holds it.
    """
    file = folder / FILE
    lock = FileLock(file)
    try:
        try:
            lock.acquire(blocking=False)
        except NotImplementedError:  # a file system without locks, as older filelocks tell it
            lock = SoftFileLock(file)
            lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"{folder} is being written by another run, which holds {file}. Wait for it, stop it, or choose "
            "another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()
