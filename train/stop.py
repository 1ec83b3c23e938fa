"""SIGINT and SIGTERM, turned into a question that is asked between two steps.

A handler does no more than remember; what to save and how to leave is the trainer's.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop"]


class Stop:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the length of the block; a second one acts as it always did."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Only the main thread may handle signals; whoever runs us here decides.
            return
        before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _: FrameType | None) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        try:
            for name in before:
                signal.signal(name, ask)
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
