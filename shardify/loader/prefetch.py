"""Work done ahead in a thread: an iterator whose next items are already being made.

Bounded, stoppable at any time, and honest about errors: what the maker raises, the taker gets, in
its turn. This module knows nothing of what is made.
"""

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Generator
from typing import Generic, TypeVar

__all__ = ["Prefetcher"]

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs a generator in a thread of its own, at most ``depth`` items ahead of the taker.

    The generator is closed in that thread, after its last item, on an error, or on ``close``.
    A taker that waits when it is closed from elsewhere gets the end. After a fork, the thread is
    the parent's: in the child there is nothing to take and nothing to close.
    """

    def __init__(self, maker: Generator[T, None, None], *, depth: int) -> None:
        self._maker = maker
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="shardline-ahead", daemon=True)
        # Also at the interpreter's end, which may not find the thread within a library: one that
        # asks for the interpreter's lock then aborts the process. Registered last, done first: the
        # libraries that the thread works with clean up after it.
        atexit.register(self.close)
        self._thread.start()

    def __iter__(self) -> "Prefetcher[T]":
        return self

    def __next__(self) -> T:
        item = None if self._stop.is_set() else self._queue.get()
        if isinstance(item, tuple):
            return item[0]
        self.close()
        if item is not None:
            raise item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread, wait for it, drop what it had made. Does nothing the second time."""
        if os.getpid() != self._process:
            return
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room: make some.
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)
        # A taker may be waiting for an item: one wakes up here, and wakes the next by its own call.
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        atexit.unregister(self.close)

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            # Asked first: a start that was interrupted may be stopped before it is seen to live.
            while not self._stop.is_set():
                self._put((next(self._maker),))
        except StopIteration:
            pass
        except BaseException as error:
            end = error
        try:
            self._maker.close()
        except BaseException as error:
            end = end or error
        self._put(end)

    def _put(self, item: tuple[T] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
