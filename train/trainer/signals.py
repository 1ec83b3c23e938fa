"""SIGINT and SIGTERM, turned into a question that is asked between two steps.

A step may take longer than whoever sent the signal waits. So a thread hears signals too, even while
the main thread is deep inside a computation: when nobody has answered after ``GRACE`` seconds, or
at a second signal, it leaves the process itself, in a stretch of the program that the main thread
has declared safe to leave from. What to save there is the trainer's.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["GRACE", "StopSignal"]

GRACE = 2.0
"""How long the step at work may go on after the first signal. Seconds."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130

Rescue = Callable[[], str | None]
"""Saves what there is; returns the line to leave with, or None to stay."""


class StopSignal:
    """Whether somebody asked the run to end; and the end itself, if nobody listens."""

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        """Hear nothing yet.

        Args:
            leave: Ends the process, whatever its other threads do.
        """
        self.asked = False
        self._leave = leave
        # The main thread holds it but for the stretches that may be left: there, weights rest.
        self._busy = threading.Lock()
        self._over = False
        self._rescue: Rescue | None = None

    @contextmanager
    def listening(self, rescue: Rescue | None = None, *, several: bool = False) -> Iterator[None]:
        """Take the signals for the length of the block.

        Args:
            rescue: Called by another thread within a `stretch`, after the grace or at a second
                signal; then the process ends with 130. A third signal ends it at once. Without it,
                a second signal acts as it always did.
            several: Whether other processes train along. Then an error that leaves the block leaves
                SIGTERM unheard: whoever started them all ends them at the first loss, by SIGTERM
                and later by SIGKILL, and this one has yet to say what happened.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Only the main thread may handle signals; whoever runs us here decides.
            return
        before = {name: signal.getsignal(name) for name in SIGNALS}
        self._rescue, self._over = rescue, False
        here, there = socket.socketpair()
        there.setblocking(False)
        wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)

        def ask(number: int, _: FrameType | None) -> None:
            self.asked = True
            if rescue is None:
                signal.signal(number, before[signal.Signals(number)])

        self._busy.acquire()
        watch = threading.Thread(target=self._watch, args=(here,), name="signals", daemon=True)
        watch.start()
        try:
            for name in before:
                signal.signal(name, ask)
            yield
        except BaseException:
            if several:
                before[signal.SIGTERM] = signal.SIG_IGN
            raise
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
            signal.set_wakeup_fd(wakeup)
            self._over = True
            self._busy.release()
            there.close()  # Ends the watch.
            watch.join()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part of the program that the process may be left from, weights at rest.

        If that is happening when the block ends, it does not return.
        """
        if not self._busy.locked():  # Nobody listens.
            yield
            return
        self._busy.release()
        try:
            yield
        finally:
            self._busy.acquire()

    def _watch(self, signals: socket.socket) -> None:
        """Hear signals; the main thread may hear them much later."""
        heard, deadline = 0, None
        with signals:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if select.select([signals], [], [], left)[0]:
                    numbers = signals.recv(64)
                    if not numbers:
                        return
                    for number in numbers:
                        heard += number in SIGNALS
                    if heard and self._rescue is not None:
                        self.asked = True
                        deadline = time.monotonic() + GRACE if heard == 1 else time.monotonic()
                    if heard > 2 and self._rescue is not None:
                        self._end("stopped at once; --resume goes on from the last checkpoint")
                if deadline is not None and time.monotonic() >= deadline:
                    deadline = None
                    threading.Thread(target=self._save, name="rescue", daemon=True).start()

    def _save(self) -> None:
        """Leave, in the next stretch that allows it."""
        with self._busy:
            if not self._over and self._rescue is not None:
                line = self._rescue()
                if line is not None:
                    self._end(line)

    def _end(self, line: str) -> None:
        sys.stdout.flush()
        if line:
            print(line, file=sys.stderr, flush=True)
        self._leave(INTERRUPTED)
