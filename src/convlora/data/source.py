"""What was found in the place that a user calls DATA, whatever its form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convlora.data.layout import Folder
from convlora.data.report import Problem
from convlora.errors import DataError


@dataclass(frozen=True)
class Source:
    """Files and labels of a data set before they are checked.

    Args:
        layout: what was recognised, for people.
        base: folder where classes.txt and palette.txt are looked for.
        folders: the splits; one called 'all' where there are none.
        classes: names that the labels themselves come with, id 0 first.
        shapes: labels are painted from shapes: they are class ids, and no mask file exists.
        problems: found while reading.
        places: split of what problems name that is no file, such as rows of a table.
    """

    layout: str
    base: Path
    folders: list[Folder]
    classes: tuple[str, ...] | None = None
    shapes: bool = False
    problems: list[Problem] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)


def error(code: str, file: object, found: str, rule: str, fix: str) -> Problem:
    """A problem that stops a training."""
    return Problem("error", code, str(file), found, rule, fix)


def warning(code: str, file: object, found: str, rule: str, fix: str) -> Problem:
    """A problem to know of."""
    return Problem("warning", code, str(file), found, rule, fix)


def no_area(file: object, places: Sequence[str]) -> Problem:
    """Shapes that cover nothing."""
    listed = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
    rule = "A shape without an area paints nothing."
    return warning(
        "no-area", file, f"without an area: {listed}", rule, "Label these objects again, or remove them."
    )


def is_there(path: Path) -> bool:
    """Whether a file exists; a name that no file can have does not."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def with_background(names: Sequence[str], place: Path) -> tuple[str, ...]:
    """Put 'background' with id 0 before the classes of shapes.

    Raises:
        DataError: a class is called so already, or there are none or too many.
    """
    if not names:
        raise DataError(f"{place} names no class. Name those that the shapes are of.")
    clash = [name for name in names if name.strip().lower() == "background"]
    if clash:
        raise DataError(
            f"{place} names the class '{clash[0]}', but id 0 'background' is added for what no shape covers. "
            "Rename or remove that class."
        )
    return ("background", *names)
