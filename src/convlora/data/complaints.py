"""What Pillow warns of while it reads a file: gathered by file, not printed as Python prints warnings."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from PIL import Image

#: Warnings of how a picture is converted, which is decided here and documented.
_OURS = ("Palette images with Transparency", "Couldn't allocate palette entry")

_local = threading.local()


@contextmanager
def listening() -> Iterator[None]:
    """Hold back Pillow's warnings in all threads; those of files within `of_file` go there."""

    def keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        told: list[Warning] | None = getattr(_local, "told", None)
        if "PIL" not in filename:
            before(message, category, filename, lineno, file, line)
        elif told is not None and isinstance(message, Warning):
            told.append(message)

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.filterwarnings("always", module=r"PIL\.")
        warnings.showwarning = keep
        yield


@contextmanager
def of_file() -> Iterator[list[Warning]]:
    """The warnings of one file, which this thread reads."""
    told: list[Warning] = []
    _local.told = told
    try:
        yield told
    finally:
        del _local.told


def is_large(warning: Warning) -> bool:
    """Whether a file has more pixels than Pillow takes for harmless."""
    return isinstance(warning, Image.DecompressionBombWarning)


def texts(told: list[Warning]) -> tuple[str, ...]:
    """What was said of damaged metadata, each once."""
    said = [" ".join(str(warning).split()) for warning in told if not is_large(warning)]
    return tuple(dict.fromkeys(text for text in said if not text.startswith(_OURS)))
