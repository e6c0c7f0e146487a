"""Ctrl-C, and the SIGTERM of a cluster or a container, that let the step at work end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` on the first signal instead of breaking off; the second one breaks off."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return

    def first(number: int, frame: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.default_int_handler)
        handle()

    before = [signal.signal(each, first) for each in _SIGNALS]
    try:
        yield
    finally:
        for each, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(each, handler)
