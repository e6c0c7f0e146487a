"""How far some work on files is: a bar on a terminal, lines elsewhere; always on standard error."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Given the number of files, a context whose value is called after each of them, from any thread.
ShowProgress = Callable[[int], AbstractContextManager[Callable[[], None]]]

#: Fewer files than this are done before anyone would read a line about it.
_FEW = 200


@contextmanager
def no_progress(total: int) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


@contextmanager
def show_progress(
    total: int, doing: str = "checking files", done: str = "checked {} of {} files"
) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; elsewhere a line every 10 %, if there are many files.

    Of several processes that a launcher has started, only the first shows anything.

    Args:
        total: number of files.
        doing: words beside the bar.
        done: a line.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda: progress.advance(task)
        return
    yield _lines(total, done) if total >= _FEW else lambda: None


def _lines(total: int, line: str) -> Callable[[], None]:
    lock, done = threading.Lock(), 0

    def advance() -> None:
        nonlocal done
        with lock:
            before, done = done, done + 1
            if 10 * before // total < 10 * done // total:
                print(line.format(done, total), file=sys.stderr, flush=True)

    return advance
