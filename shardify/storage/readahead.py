"""Zips on their way into memory, in the order in which they lie on a disk, ahead of the workers.

Shards are shuffled, so workers read all over a zip: where it is not in memory yet, a disk's head or
a network's latency counts once an entry. Here a zip is read from front to end while it is surveyed;
one that would fill the memory is read in several passes, each for as many shards as have room.
Tasks are given out once what they read is there.
"""

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardify.storage.free_memory import spare_memory
from shardify.storage.page_cache import Meter, Reader
from shardify.storage.paths import PathOrUrl, files_at, size_of

__all__ = ["ReadAhead", "reading_ahead"]

T = TypeVar("T")
Rows = Callable[[], Iterable[NDArray[Any]]]

_SHARE = 0.5
"""Of the memory that is available: as much is written meanwhile, and more would push out what was
read first."""
_LITTLE = 0.5
"""Of the files: where less is wanted, that alone is read."""
_SLACK = 1 << 10
"""Of a local header, beyond what the directory tells. Bytes."""
_NONE = np.empty((0, 3), np.int64)


@contextmanager
def reading_ahead(
    paths: Sequence[PathOrUrl], tell: Callable[[float], None] | None = None
) -> Iterator["ReadAhead"]:
    """Have files on this machine read into the system's cache, until the block ends.

    Args:
        paths: Files, or folders with zips. URLs are passed over.
        tell: See ``ReadAhead``.
    """
    files = [each for each in files_at(paths) if each in paths or each.suffix == ".zip"]
    with closing(ReadAhead(files, tell)) as ahead:
        yield ahead


class ReadAhead:
    """A thread that reads; at most one. It begins at once where there is room for everything.

    Args:
        files: What will be read.
        tell: Called now and then while it is read, by that thread, with the share in [0, 1] of
            what can be given out next.
    """

    def __init__(self, files: Sequence[Path], tell: Callable[[float], None] | None = None) -> None:
        self._files = files
        self._size = size_of(files)
        self._room = _SHARE * spare_memory()
        self._idle = not self._size or not self._room
        self._meter = Meter(tell)
        self._thread: threading.Thread | None = None
        if not self._idle and self._size <= self._room:
            self._start(self._read_all)

    def paced(
        self, tasks: Iterable[T], rows: Rows, sources: Sequence[str], *, under_way: int
    ) -> Iterator[T | None]:
        """Give out each task once what it reads has been read ahead, or could not be.

        Args:
            tasks: In their order.
            rows: Gives what each of them reads, of ``tasks.ROW``; also called in another thread.
            sources: Paths that ``rows`` numbers. Those that are no files here are passed over.
            under_way: Tasks that may be at work, or wait for it, after they were given out.

        Yields:
            A task; or None: there is none yet, ask again later.
        """
        if self._thread is not None and self._thread.is_alive():
            wanted = sum(int(each["packed"].sum()) for each in rows())
            if wanted < _LITTLE * self._size:
                self.close()
        if self._thread is None and not self._idle:
            self._start(lambda: self._read_windows(rows(), sources, under_way))
        left = math.inf if self._idle else 0.0
        for task in tasks:
            if not left:
                self._asked.release()
            while not left:
                try:
                    left = self._turns.get_nowait()
                except queue.Empty:
                    yield None
            left -= 1
            yield task

    def close(self) -> None:
        """Stop reading. Does nothing the second time."""
        if self._thread is not None:
            self._stop.set()
            self._asked.release()
            self._thread.join()
            self._thread = None

    def _start(self, read: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self._asked = threading.Semaphore(0)
        self._turns: queue.SimpleQueue[float] = queue.SimpleQueue()

        def run() -> None:
            # What cannot be read here, a worker will name.
            try:
                with suppress(OSError):
                    read()
            finally:
                self._turns.put(math.inf)

        thread = threading.Thread(target=run, name="shardify-ahead", daemon=True)
        thread.start()
        self._thread = thread

    def _read_all(self) -> None:
        self._meter.begin(self._size)
        for path in self._files:
            with suppress(OSError), self._reader(path) as reader:
                reader.read_all()

    def _reader(self, path: Path) -> Reader:
        return Reader(path, self._stop, self._meter)

    def _read_windows(
        self, rows: Iterable[NDArray[Any]], sources: Sequence[str], under_way: int
    ) -> None:
        """Read for as many tasks at a time as there is room for, whenever they are asked for."""
        with ExitStack() as stack:
            readers = {
                number: stack.enter_context(self._reader(Path(path)))
                for number, path in enumerate(sources)
                if Path(path).is_file()
            }
            if self._size > self._room >= sum(each.missing() for each in readers.values()):
                return self._read_all()
            last: deque[NDArray[np.int64]] = deque(maxlen=under_way)
            for number, spans in enumerate(_windows(rows, self._room)):
                self._asked.acquire()
                if self._stop.is_set():
                    return
                self._read_window(readers, spans, last, first=not number)
                self._turns.put(len(spans))
                last.extend(spans)

    def _read_window(
        self,
        readers: dict[int, Reader],
        spans: Sequence[NDArray[np.int64]],
        last: Iterable[NDArray[np.int64]],
        *,
        first: bool,
    ) -> None:
        """Read for some tasks.

        Args:
            readers: By the source's number.
            spans: Of each task.
            last: Of the tasks before, which may be at work still.
            first: Whether nothing was read before.
        """
        wanted, kept = np.concatenate(spans), np.concatenate([_NONE, *last])
        parts = {number: wanted[wanted[:, 0] == number, 1:] for number in readers}
        runs = {number: reader.runs_of(parts[number]) for number, reader in readers.items()}
        self._meter.begin(sum(int((each[:, 1] - each[:, 0]).sum()) for each in runs.values()))
        for number, reader in readers.items():
            others = kept[kept[:, 0] == number, 1:]
            if not first:
                reader.forget(others)
            if len(parts[number]):
                reader.read_runs(runs[number], np.concatenate([parts[number], others]))


def _windows(rows: Iterable[NDArray[Any]], room: float) -> Iterator[list[NDArray[np.int64]]]:
    """Tasks that together read no more than there is room for, but at least one.

    Yields:
        What each of them reads, (n, 3): number of the source, first byte and end, whole pages.
    """
    held: list[NDArray[np.int64]] = []
    size = 0
    for each in rows:
        spans = np.empty((each.size, 3), np.int64)
        begin = each["offset"].ravel()
        end = np.minimum(begin + each["packed"].ravel() + _SLACK, each["limit"].ravel())
        spans[:, 0] = each["source"].ravel()
        spans[:, 1] = begin // PAGESIZE * PAGESIZE
        spans[:, 2] = -(-end // PAGESIZE) * PAGESIZE
        more = int((spans[:, 2] - spans[:, 1]).sum())
        if held and size + more > room:
            yield held
            held, size = [], 0
        held.append(spans)
        size += more
    if held:
        yield held
