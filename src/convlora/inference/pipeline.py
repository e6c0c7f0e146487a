"""Work on items in three steps that overlap: read the next, compute this one, finish the last."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Data = TypeVar("Data")
Result = TypeVar("Result")


def one_by_one(
    items: Iterable[Item],
    read: Callable[[Item], Data],
    compute: Callable[[Item, Data], Result],
    finish: Callable[[Item, Result], None],
) -> None:
    """Take the three steps for one item after the other; nothing is held but that item."""
    for item in items:
        finish(item, compute(item, read(item)))


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Data],
    compute: Callable[[Item, Data], Result],
    finish: Callable[[Item, Result], None],
) -> None:
    """`one_by_one` with the same calls and results, but the steps of three neighbours run at the same time.

    One thread reads the next item and one finishes the item before, while `compute` runs in the caller's
    thread. So each step sees the items in order, never two at once, and at most three items are held. The
    first item is finished before the second is computed: a place that cannot be written shows at once.

    An exception ends the work: steps that have begun are completed, later items are not begun, and of several
    exceptions the one of the earliest item is raised. After Ctrl-C too no thread is left and no step is cut
    off.

    Args:
        items: what to work on; it is iterated in the caller's thread, one item ahead.
        read: called in a thread of its own.
        compute: called in the caller's thread, as models and progress bars want it.
        finish: called in a thread of its own.
    """
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "finish") as finisher:
        coming = ((item, reader.submit(read, item)) for item in items)
        _run(coming, compute, lambda item, results: finisher.submit(_finish, finish, item, results))


def _run(
    coming: Iterator[tuple[Item, Future[Data]]],
    compute: Callable[[Item, Data], Result],
    submit: Callable[[Item, list[Result]], Future[None]],
) -> None:
    before: Future[None] | None = None
    following = next(coming, None)
    while following is not None:
        item, reading = following
        try:
            data = reading.result()
            following = next(coming, None)  # starts to read
            del reading  # it holds what was read
            results = [compute(item, data)]
            del data
        except Exception:  # whatever it is: it goes on, after the error of what came before it
            if before is not None:
                before.result()
            raise
        if before is None:
            before = submit(item, results)
            before.result()
        else:
            before.result()
            before = submit(item, results)
    if before is not None:
        before.result()


def _finish(finish: Callable[[Item, Result], None], item: Item, results: list[Result]) -> None:
    """Take the result out of the list, so that nobody else keeps it alive."""
    finish(item, results.pop())
