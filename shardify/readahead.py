"""Zips on their way into memory, in the order in which they lie on a disk, ahead of the workers.

Shards are shuffled, so workers read all over a zip: where it is not in memory yet, a disk's head or
a network's latency counts once an entry. Here a zip is read from front to end while it is surveyed;
one that would fill the memory is read in several passes, each for as many shards as have room.
Tasks are given out once what they read is there.
"""

import math
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardify.local import files_at, size_of
from shardify.pagecache import Meter, Reader
from shardify.remote import Place
from shardify.spare import spare_memory

__all__ = ["ReadAhead", "reading_ahead"]

T = TypeVar("T")

_SHARE = 0.5
"""Of the memory that is available: as much is written meanwhile, and more would push out what was
read first."""
_GLANCE = 0.2
"""Seconds between two looks at how far it is."""
_SLACK = 1 << 10
"""Of a local header, beyond what the directory tells. Bytes."""
_PAGE = 4096
_NONE = np.empty((0, 3), np.int64)


@contextmanager
def reading_ahead(paths: Sequence[Place]) -> Iterator["ReadAhead"]:
    """Have files on this machine read into the system's cache, until the block ends.

    Args:
        paths: Files, or folders with zips. URLs are passed over.
    """
    files = [each for each in files_at(paths) if each in paths or each.suffix == ".zip"]
    ahead = ReadAhead(files)
    try:
        yield ahead
    finally:
        ahead.close()


class ReadAhead:
    """A thread that reads; at most one. It begins at once where there is room for everything.

    Args:
        files: What will be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._room = _SHARE * spare_memory()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._turns: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._asked = threading.Semaphore(0)
        self._left: float = 0
        self._meter = Meter()
        if not files or not self._room:
            self._left = math.inf
        elif size_of(files) <= self._room:
            self._start(lambda: self._read_all(files))

    def paced(
        self,
        tasks: Iterable[T],
        rows: Iterable[NDArray[Any]],
        sources: Sequence[str],
        waiting: Callable[[float], None] | None = None,
    ) -> Iterator[T]:
        """Give out each task once what it reads has been read ahead, or could not be.

        Args:
            tasks: In their order.
            rows: What each of them reads, of ``tasks.ROW``; iterated in another thread.
            sources: Paths that ``rows`` numbers. Those that are no files here are passed over.
            waiting: Called now and then while a task must wait, with the share in [0, 1] that has
                been read of what it waits for.
        """
        if self._thread is None and not self._left:
            self._start(lambda: self._read_windows(rows, sources))
        for task in tasks:
            if not self._left:
                self._left = self._turn(waiting)
            self._left -= 1
            yield task

    def _turn(self, waiting: Callable[[float], None] | None) -> float:
        """Wait for the next window. Returns the number of its tasks."""
        self._asked.release()
        while True:
            with suppress(queue.Empty):
                return self._turns.get(timeout=_GLANCE)
            if waiting:
                waiting(self._meter.share)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._asked.release()
        if self._thread is not None:
            self._thread.join()

    def _start(self, read: Callable[[], object]) -> None:
        def run() -> None:
            # What cannot be read here, a worker will name.
            try:
                with suppress(OSError):
                    read()
            finally:
                self._turns.put(math.inf)

        self._thread = threading.Thread(target=run, name="shardify-ahead", daemon=True)
        self._thread.start()

    def _read_all(self, files: Sequence[Path]) -> None:
        with ExitStack() as stack:
            readers = [stack.enter_context(self._reader(path)) for path in files]
            self._meter.total = sum(reader.size for reader in readers)
            for reader in readers:
                reader.read_all()

    def _reader(self, path: Path) -> Reader:
        return Reader(path, self._stop, self._meter)

    def _read_windows(self, rows: Iterable[NDArray[Any]], sources: Sequence[str]) -> None:
        """Read for as many tasks at a time as there is room for, whenever they are asked for."""
        with ExitStack() as stack:
            readers = {
                number: stack.enter_context(self._reader(Path(path)))
                for number, path in enumerate(sources)
                if Path(path).is_file()
            }
            if all(reader.there() for reader in readers.values()):
                return
            kept = _NONE
            for count, wanted, last in _windows(rows, self._room):
                self._asked.acquire()
                self._meter.done = self._meter.total = 0
                for number, reader in readers.items():
                    mine, others = (each[each[:, 0] == number, 1:] for each in (wanted, kept))
                    if len(kept):
                        reader.forget(others)
                    if len(mine):
                        reader.read_parts(mine, others)
                if self._stop.is_set():
                    return
                self._turns.put(count)
                kept = last


def _windows(
    rows: Iterable[NDArray[Any]], room: float
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Tasks that together read no more than there is room for, but at least one.

    Returns:
        How many; (n, 3) what they read: number of the source, first byte and end, whole pages; and
        what of it the last of them read, which may be at work still when the next are asked for.
    """
    held: list[NDArray[np.int64]] = []
    size = 0
    for each in rows:
        spans = np.empty((each.size, 3), np.int64)
        begin = each["offset"].ravel()
        end = np.minimum(begin + each["packed"].ravel() + _SLACK, each["limit"].ravel())
        spans[:, 0] = each["source"].ravel()
        spans[:, 1] = begin // _PAGE * _PAGE
        spans[:, 2] = -(-end // _PAGE) * _PAGE
        more = int((spans[:, 2] - spans[:, 1]).sum())
        if held and size + more > room:
            yield len(held), np.concatenate(held), np.concatenate(held[-_under_way() :])
            held, size = [], 0
        held.append(spans)
        size += more
    if held:
        yield len(held), np.concatenate(held), _NONE


def _under_way() -> int:
    """Tasks that workers may hold: the one at hand, and the next."""
    return 2 * (os.cpu_count() or 1)
