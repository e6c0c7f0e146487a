"""Ctrl-C that lets the step at work end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` on the first Ctrl-C instead of breaking off; the second one breaks off."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
