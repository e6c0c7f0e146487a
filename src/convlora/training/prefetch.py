"""Read the next micro-batches while a device that is not the CPU computes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """The items in their order, read by one thread, so that up to `ahead` of them wait.

    A thread shares the images that are kept in memory, and needs no start as processes (`workers`) do; most
    of reading, decoding and turning leaves the interpreter's lock free. Beside a model on the CPU it would
    take the processors that compute.

    An exception of the reading is raised in the place of its item. Closing the iterator ends the thread.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, source, _END) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, source, _END))
            yield item  # type: ignore[misc]  # _END is no item
    finally:
        pool.shutdown(cancel_futures=True)
