"""Where results go: checked before the work, never over a file that must stay, whole or not there at all."""

import errno
import hashlib
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convlora.errors import ConfigError, DataError, WriteError

CACHE = "CONVLORA_CACHE"
"""Environment variable: where the user wants what is kept between runs, and may be deleted."""
_LONGEST = 255  # bytes of a name, on most file systems
_WAITS = (0.1, 0.3, 1.0, 3.0)  # seconds
_UNFINISHED = ".part-by-convlora"  # in a folder that is being filled


def check_folder(folder: Path, name: str) -> None:
    """Check, without making it, that files can be written into a folder.

    Args:
        folder: may be missing, with its parents.
        name: what the message calls it, such as '--out'.

    Raises:
        ConfigError: it, or what stands where a parent should be, is a file or cannot be written into.
    """
    place = folder
    while not place.exists() and place != place.parent:
        if place.is_symlink():
            raise ConfigError(
                f"{name} {folder}: {place} is a link to nothing. Remove it, or give another place."
            )
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{name} {folder}: {place} is a file, not a folder. Give another place.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} {folder}: {place} is not writable for you. Give another place.")


def check_file(file: Path, name: str, ending: str = ".json") -> None:
    """Check that a file of results can be written; one of this ending that is there is written anew.

    Raises:
        ConfigError: it is a folder, not writable, or a file of another kind; or see `check_folder`.
    """
    if file.is_dir():
        raise ConfigError(
            f"{name} {file} is a folder; give the name of a file, such as {file / f'scores{ending}'}."
        )
    if file.exists() and file.suffix.lower() != ending:
        raise ConfigError(f"{name} {file} exists and is no {ending} file, so it is not written over.")
    if file.exists() and not os.access(file, os.W_OK):
        raise ConfigError(f"{name} {file} is not writable for you. Give another place.")
    check_folder(file.parent, name)


def cache_root() -> Path:
    """$CONVLORA_CACHE, or else convlora in the user's cache folder; it may be missing."""
    given = os.environ.get(CACHE)
    system = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else system / "convlora"


def same_name_key(file: Path) -> str:
    """Key that is equal for files which some file system takes for one: case and Unicode form left aside."""
    return unicodedata.normalize("NFC", os.path.realpath(file)).casefold()


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[Path], name: str) -> None:
    """Check that no output is an input: through links, hard links, or names that differ in case only.

    Raises:
        ConfigError: one is; nothing has been written.
    """
    sources = {key: file for file in inputs for key in _identities(file)}
    for output in outputs:
        for key in _identities(output):
            if key in sources:
                raise ConfigError(
                    f"{output} would overwrite an input, {sources[key]}. "
                    f"Give another {name} than {output.parent}."
                )


def check_new(outputs: Iterable[Path], fix: str) -> None:
    """Check that no output is there yet.

    Raises:
        ConfigError: some are; counts them and names the first.
    """
    there = [file for file in outputs if os.path.lexists(file)]
    if there:
        others = f" and {len(there) - 1} other outputs exist" if len(there) > 1 else " exists"
        raise ConfigError(f"{there[0]}{others} already, and nothing is written over unasked. {fix}")


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, then rename it: it is never there half-written.

    Args:
        file: its folder is made.
        write: writes to the path it is given.

    Raises:
        WriteError: the disk is full or the place is not writable; a file that was there is as before.
        DataError: the name is too long for a file.
    """
    with write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = _part(file)
        try:
            write(part)
            to_disk(part)
            put_in_place(part, file)
        finally:
            part.unlink(missing_ok=True)


def _part(file: Path) -> Path:
    """Where a file is written before it is renamed; the longest names leave no room for an ending."""
    name = f".{file.name}.part"
    if len(os.fsencode(name)) > _LONGEST:
        name = f".{hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16]}.part"
    return file.with_name(name)


def put_in_place(part: Path, final: Path) -> None:
    """Rename a file, or a folder to a name that is free.

    On Windows a virus scanner or an indexer opens what was just written, and no open file can be renamed.
    """
    for wait in _WAITS:
        try:
            part.replace(final)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(wait)
    part.replace(final)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

    Raises:
        WriteError: that is not possible.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_text(file: Path, text: str) -> None:
    """`write_whole` for text in UTF-8."""
    write_whole(file, lambda part: write_utf8(part, text))


def write_utf8(file: Path, text: str) -> None:
    """Write UTF-8, whatever the system's encoding; names that it could not read get their bytes back."""
    file.write_text(text, encoding="utf-8", errors="surrogateescape")


def to_disk(file: Path) -> None:
    """Wait until a file is on the disk, so that a rename after it cannot come first."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def part_of(folder: Path) -> Path:
    """Where a folder is written before `replace_folder`; nobody else gives such a name, so it may be deleted.

    `NAME.part`, or `NAME.old`, could be a folder of the user's own.
    """
    return _beside(folder, "part")


def replace_folder(part: Path, folder: Path) -> None:
    """Put the complete folder `part` in the place of `folder`.

    A folder cannot be replaced at once on every system. At every moment `folder`, or else the one that it
    replaces, under a name of our own beside it, is whole; `find_folder` tells which. What an earlier kill
    left there is removed, and nothing else.
    """
    old = _beside(folder, "replaced")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        put_in_place(folder, old)
    put_in_place(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """Check that nothing is in the place of a new folder but what a killed `filled_at_once` has left.

    Raises:
        DataError: it is a file, or holds something.
    """
    if folder.is_dir() and all(child.name == _UNFINISHED for child in folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise DataError(f"{folder} is not empty. Give a new folder, or empty it.")


@contextmanager
def filled_at_once(folder: Path) -> Iterator[Path]:
    """Give a place whose content comes into a new folder when all of it is written, or not at all.

    The place is in the folder itself, which may be '.', a mount, or in one that is not writable.
    """
    made = not folder.exists()
    part = folder / _UNFINISHED
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for child in sorted(part.iterdir()):  # the validation split last: without it nothing is trained
            put_in_place(child, folder / child.name)
        part.rmdir()
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


def find_folder(folder: Path) -> Path:
    """The folder, or the one before it where a kill came in the middle of `replace_folder`."""
    before = folder.with_name(f"{folder.name}.old")  # its name in runs of before: read, never deleted
    left = [old for old in (_beside(folder, "replaced"), before) if old.is_dir()]
    return left[0] if left and not folder.exists() else folder


def _beside(folder: Path, what: str) -> Path:
    place = Path(os.path.abspath(folder))  # noqa: PTH100  # '.' has no name, and '..' a wrong one
    return place.with_name(f".{place.name}.{what}-by-convlora")


@contextmanager
def write_errors(file: Path) -> Iterator[None]:
    """Make what the system says while a file or folder is written a `WriteError` that names it.

    Raises:
        WriteError: the disk is full or the place not writable.
        DataError: the name is too long for a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{file} cannot be written: its name has {len(os.fsencode(file.name))} bytes, more than a "
                "file may have here. Shorten the name that it is made of."
            ) from error
        raise WriteError(
            f"{file} cannot be written: {error.strerror or error}. What was complete before is kept; "
            "make room or choose another place."
        ) from error


def _identities(file: Path) -> Iterator[object]:
    yield same_name_key(file)
    try:
        status = file.stat()
    except OSError:
        return
    yield status.st_dev, status.st_ino
