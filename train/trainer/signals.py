"""Handle signals that end a run: set a flag that the training loop checks between steps.

Python runs signal handlers in the main thread, after the current step. So a second thread watches
for signals too. If the main thread has not stopped ``GRACE`` seconds after a signal, or at a second
signal, this thread saves and ends the process, but only while the main thread is in an
`interruptible` block.
"""

import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

GRACE = 2.0
"""How long the current step may continue after the first signal. Seconds."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; a scheduler or container that ends the job; a closed terminal; a scheduler's warning."""
EXIT_CODE = 130

Save = Callable[[], str | None]
"""Saves the state; returns the last line to print, or None to keep the process."""


class StopSignal:
    """Stop request by signal; ends the process if the main thread does not react in time."""

    def __init__(self, exit_process: Callable[[int], object] = os._exit) -> None:
        """Create the object; no signal is handled yet.

        Args:
            exit_process: Ends the process with an exit code, without waiting for other threads.
        """
        self.requested = False
        """Whether a signal asked the run to stop."""
        self._exit_process = exit_process
        # The main thread holds the lock except in `interruptible` blocks.
        self._busy = threading.Lock()
        self._finished = False
        self._save: Save | None = None

    @contextmanager
    def handle_signals(
        self, save: Save | None = None, *, several_ranks: bool = False
    ) -> Iterator[None]:
        """Handle `SIGNALS` for the length of the block, except those that the process ignores.

        A run started by nohup, for example, ignores SIGHUP and is not stopped by it.

        Args:
            save: Called by another thread within an `interruptible` block, after the grace period
                or at a second signal; then the process ends with 130. A third signal ends it at
                once. Without ``save``, a second signal has its previous effect.
            several_ranks: After an error in the block, ignore SIGTERM: torchrun sends it to all
                ranks when one fails, and later SIGKILL, but this rank must still print its error.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python allows signal handlers in the main thread only.
            return
        handlers = {name: signal.getsignal(name) for name in SIGNALS}
        before = {name: old for name, old in handlers.items() if old is not signal.SIG_IGN}
        self._save, self._finished = save, False
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

        def request(number: int, _: FrameType | None) -> None:
            self.requested = True
            if number == signal.SIGHUP:
                _leave_terminal()
            if save is None:
                signal.signal(number, before[signal.Signals(number)])

        self._busy.acquire()
        watch = threading.Thread(target=self._watch, args=(receiver,), name="signals", daemon=True)
        watch.start()
        try:
            for name in before:
                signal.signal(name, request)
            yield
        except BaseException:
            if several_ranks:
                before[signal.SIGTERM] = signal.SIG_IGN
            raise
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
            signal.set_wakeup_fd(wakeup)
            self._finished = True
            self._busy.release()
            sender.close()  # Ends the thread.
            watch.join()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Allow the other thread to save and end the process during the block.

        If the other thread is saving when the block ends, the block waits for it.
        """
        if not self._busy.locked():  # Signals are not handled.
            yield
            return
        self._busy.release()
        try:
            yield
        finally:
            self._busy.acquire()

    def _watch(self, signals: socket.socket) -> None:
        """Count signals and start the saving thread when the time is up."""
        count, deadline = 0, None
        with signals:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if select.select([signals], [], [], left)[0]:
                    numbers = signals.recv(64)
                    if not numbers:
                        return
                    count += sum(number in SIGNALS for number in numbers)
                    if signal.SIGHUP in numbers:
                        _leave_terminal()
                    if count and self._save is not None:
                        self.requested = True
                        deadline = time.monotonic() + (GRACE if count == 1 else 0)
                    if count > 2 and self._save is not None:
                        self._end("stopped at once; --resume continues from the last checkpoint")
                if deadline is not None and time.monotonic() >= deadline:
                    deadline = None
                    threading.Thread(target=self._save_and_end, name="save", daemon=True).start()

    def _save_and_end(self) -> None:
        """Save and end the process, in the next `interruptible` block."""
        with self._busy:
            if not self._finished and self._save is not None:
                line = self._save()
                if line is not None:
                    self._end(line)

    def _end(self, line: str) -> None:
        with suppress(OSError):  # The reader of a pipe may have ended as well.
            if sys.stdout is not None:
                sys.stdout.flush()
            if line:
                print(line, file=sys.stderr, flush=True)
        self._exit_process(EXIT_CODE)


def _leave_terminal() -> None:
    """Discard output to the terminal, which was closed: writing to it would end the run.

    Output to files and pipes is kept.
    """
    with Path(os.devnull).open("wb") as nowhere:
        for descriptor in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere.fileno(), descriptor)
