"""Prefetch: run a generator ahead in a thread.

The number of items ahead is bounded, and the thread can be stopped at any time. An error of the
generator is raised to the consumer, after the items before it.
"""

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs a generator in its own thread, at most ``depth`` items ahead of the consumer.

    The generator is closed in that thread, after its last item, on an error, or on ``close``.
    A consumer that waits while another thread calls ``close`` gets the end of the iteration.
    After a fork, the thread belongs to the parent; in the child, ``close`` does nothing.
    """

    def __init__(self, source: Generator[T, None, None], *, depth: int) -> None:
        self._source = source
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="shardline-ahead", daemon=True)
        # Also close at interpreter exit: a thread inside a library that then asks for the GIL
        # would abort the process. Registered last, so called before the clean-up of the libraries
        # that the thread uses.
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
        """Stop the thread, wait for it, drop its items. A second call does nothing."""
        if os.getpid() != self._process:
            return
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room in the queue.
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)
        # Wake a consumer that waits for an item; it wakes the next one by its own call.
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        atexit.unregister(self.close)

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            # Check first: the prefetcher may be closed before the thread has started.
            while not self._stop.is_set():
                self._put((next(self._source),))
        except StopIteration:
            pass
        except BaseException as error:
            end = error
        try:
            self._source.close()
        except BaseException as error:
            end = end or error
        self._put(end)

    def _put(self, item: tuple[T] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
