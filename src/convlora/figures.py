"""Charts with matplotlib, an optional dependency."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from convlora.errors import MissingExtraError
from convlora.output import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib(feature: str, extra: str) -> None:
    """Check, before hours of work, that charts can be drawn.

    Args:
        feature: what needs them, for the message.
        extra: of this package, that brings matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(feature, extra, "matplotlib") from error


def write_figure(file: Path, size: tuple[float, float], draw: "Callable[[Figure], None]") -> None:
    """Draw a figure of this size in inches and write it as PNG.

    Raises:
        WriteError: the disk is full or not writable.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    write_whole(file, partial(figure.savefig, format="png", dpi=150))
