"""Stopping in good order: SIGTERM (a cluster's notice) and Ctrl-C finish the step and save."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, Signals, getsignal, signal
from types import FrameType


class Stop:
    """Whether somebody has asked the run to stop.

    Attributes:
        signal: The signal that came, or `None`.
    """

    signal: Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stopping() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT instead of dying from them; a second one is obeyed at once."""
    stop = Stop()
    # Python delivers signals to the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: getsignal(number) for number in (SIGTERM, SIGINT)}

    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = Signals(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal(number, handler)

    for number in before:
        signal(number, note)
    try:
        yield stop
    finally:
        restore()
