"""Ctrl-C, and the SIGTERM of a cluster or a container, that let the step at work end."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds in which signals are one: a launcher passes on what a terminal or a cluster sent to all already.
_TOGETHER = 2.0


@contextlib.contextmanager
def on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` on the first signal instead of breaking off; a later one breaks off."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return

    began: list[float] = []

    def called(number: int, frame: object) -> None:
        if not began:
            began.append(time.monotonic())
            handle()
        elif time.monotonic() - began[0] >= _TOGETHER:
            raise KeyboardInterrupt

    before = [signal.signal(each, called) for each in _SIGNALS]
    try:
        yield
    finally:
        for each, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(each, handler)
