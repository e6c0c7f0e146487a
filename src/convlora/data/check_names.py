"""Which names the classes have, where several places name them."""

from collections.abc import Sequence
from pathlib import Path

from convlora.data.classes import check_names, names_in_yaml, read_class_lines, read_class_names, read_mapping
from convlora.data.palette import Palette
from convlora.data.report import Problem
from convlora.data.source import Source
from convlora.errors import DataError


def class_names(
    source: Source, palette: Palette | None, asked: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, list[Problem]]:
    """Names of the classes, id 0 first, and warnings; what labels or palette say cannot be overruled.

    Raises:
        DataError: a list is not valid, or two of them do not agree.
    """
    lines_file = source.base / "classes.txt"
    if lines_file.is_dir():
        raise DataError(f"{lines_file} is a folder. It must be a text file with a class name a line.")
    given = check_names(asked, "--classes") if asked is not None else None
    own = palette.classes if palette else source.classes
    if own is None:
        return _from_files(source.base, given)
    other = given or read_class_lines(source.base)
    if other is not None and other != own and not (source.shapes and other == own[1:]):
        place = "the classes asked for are" if given else f"{lines_file} says"
        raise DataError(
            f"{palette.source if palette else source.layout} names the classes {', '.join(own)}, but {place} "
            f"{', '.join(other)}. Both must be the same, in the same order."
        )
    return own, []


def own_names(source: Source) -> tuple[str, ...] | None:
    """Names that the data itself gives its classes, id 0 first; None without any, or where they are wrong."""
    try:
        return source.classes or read_class_names(source.base)
    except (DataError, OSError):
        return None  # `class_names` says it


def _from_files(base: Path, given: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, list[Problem]]:
    lines = read_class_lines(base)
    for file in (base / "data.yaml", base / "data.yml"):
        if lines and file.is_file():
            other = check_names(names_in_yaml(read_mapping(file), file), file)
            if other != lines:
                raise DataError(
                    f"{file} names the classes {', '.join(other)}, but classes.txt says {', '.join(lines)}. "
                    "Both must be the same, in the same order; or remove one."
                )
    known = lines or read_class_names(base)
    if given is None or known is None or given == known:
        return given or known, []
    file = base / "classes.txt" if lines else next(f for f in base.glob("data.y*ml"))
    told = f"{file} names the classes {', '.join(known)}, but those asked for are {', '.join(given)}"
    fix = "Both must be the same, in the same order: leave out --classes, or correct the file."
    if len(given) != len(known) or set(given) == set(known):
        raise DataError(f"{told}. {fix}")
    return given, [Problem("warning", "class-names", str(file), told, "The names asked for are taken.", fix)]
