"""Read zips into memory sequentially, ahead of the workers.

Shards are shuffled, so workers read a zip in random order: if it is not in memory, each entry costs
a disk seek or a network round trip. Here a zip is read from front to end while it is surveyed. A
zip too large for the memory is read in several passes, each for as many shards as fit. A task is
released once its data are in memory.
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

from shardify.storage.free_memory import available_memory
from shardify.storage.page_cache import CacheReader, ReadProgress
from shardify.storage.paths import PathOrUrl, local_files, total_size

T = TypeVar("T")
Rows = Callable[[], Iterable[NDArray[Any]]]

_MEMORY_FRACTION = 0.5
"""Fraction of the available memory to fill. The build writes about as much as it reads; with more,
what was read first would be evicted."""
_MIN_WANTED_FRACTION = 0.5
"""If the tasks want less than this fraction of the files, only what they want is read."""
_LOCAL_HEADER_SIZE = 1 << 10
"""Allowance for an entry's local header with its name. Bytes."""
_NO_SPANS = np.empty((0, 3), np.int64)


@contextmanager
def read_ahead(
    paths: Sequence[PathOrUrl], on_progress: Callable[[float], None] | None = None
) -> Iterator["ReadAhead"]:
    """Read files of this machine into the page cache until the block ends.

    Args:
        paths: Files, or folders with zips. URLs are ignored.
        on_progress: See ``ReadAhead``.
    """
    files = [file for file in local_files(paths) if file in paths or file.suffix == ".zip"]
    with closing(ReadAhead(files, on_progress)) as ahead:
        yield ahead


class ReadAhead:
    """Reads files ahead in one thread; starts at once if they all fit in memory.

    Args:
        files: Files to read.
        on_progress: Called now and then by the reading thread, with the fraction read of the data
            for the next tasks, in [0, 1].
    """

    def __init__(
        self, files: Sequence[Path], on_progress: Callable[[float], None] | None = None
    ) -> None:
        self._files = files
        self._size = total_size(files)
        self._room = _MEMORY_FRACTION * available_memory()
        self._idle = not self._size or not self._room
        self._progress = ReadProgress(on_progress)
        self._thread: threading.Thread | None = None
        if not self._idle and self._size <= self._room:
            self._start(self._read_all)

    def ready_tasks(
        self, tasks: Iterable[T], rows: Rows, sources: Sequence[str], *, max_in_flight: int
    ) -> Iterator[T | None]:
        """Yield each task once its data have been read ahead, or could not be.

        Args:
            tasks: All tasks, in order.
            rows: Returns the entries that each task reads, of ``catalog.ENTRY_DTYPE``. Also called
                in another thread.
            sources: Paths that ``rows`` numbers. Those that are not files here are ignored.
            max_in_flight: Most released tasks that may be running or queued.

        Yields:
            A task; or None if none is ready yet: ask again later.
        """
        if self._thread is not None and self._thread.is_alive():
            wanted = sum(int(entries["packed"].sum()) for entries in rows())
            if wanted < _MIN_WANTED_FRACTION * self._size:
                self.close()
        if self._thread is None and not self._idle:
            self._start(lambda: self._read_windows(rows(), sources, max_in_flight))
        ready = math.inf if self._idle else 0.0
        for task in tasks:
            if not ready:
                self._requests.release()
            while not ready:
                try:
                    ready = self._ready_counts.get_nowait()
                except queue.Empty:
                    yield None
            ready -= 1
            yield task

    def close(self) -> None:
        """Stop reading. Does nothing the second time."""
        if self._thread is not None:
            self._stop.set()
            self._requests.release()
            self._thread.join()
            self._thread = None

    def _start(self, read: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self._requests = threading.Semaphore(0)
        self._ready_counts: queue.SimpleQueue[float] = queue.SimpleQueue()

        def run() -> None:
            # A worker will report what cannot be read.
            try:
                with suppress(OSError):
                    read()
            finally:
                self._ready_counts.put(math.inf)

        thread = threading.Thread(target=run, name="shardify-ahead", daemon=True)
        thread.start()
        self._thread = thread

    def _read_all(self) -> None:
        self._progress.begin(self._size)
        for path in self._files:
            with suppress(OSError), self._reader(path) as reader:
                reader.read_all()

    def _reader(self, path: Path) -> CacheReader:
        return CacheReader(path, self._stop, self._progress)

    def _read_windows(
        self, rows: Iterable[NDArray[Any]], sources: Sequence[str], max_in_flight: int
    ) -> None:
        """Read for as many tasks at a time as fit in memory, whenever tasks are requested."""
        with ExitStack() as stack:
            readers = {
                number: stack.enter_context(self._reader(Path(path)))
                for number, path in enumerate(sources)
                if Path(path).is_file()
            }
            if self._size > self._room >= sum(map(CacheReader.uncached_size, readers.values())):
                return self._read_all()
            in_flight: deque[NDArray[np.int64]] = deque(maxlen=max_in_flight)
            for number, spans in enumerate(_windows(rows, self._room)):
                self._requests.acquire()
                if self._stop.is_set():
                    return
                self._read_window(readers, spans, in_flight, first=not number)
                self._ready_counts.put(len(spans))
                in_flight.extend(spans)

    def _read_window(
        self,
        readers: dict[int, CacheReader],
        spans: Sequence[NDArray[np.int64]],
        in_flight: Iterable[NDArray[np.int64]],
        *,
        first: bool,
    ) -> None:
        """Read the data of some tasks.

        Args:
            readers: Reader of each source, by the source's number.
            spans: Spans that each task reads.
            in_flight: Spans of the tasks before, which may still be running.
            first: Whether nothing was read before.
        """
        wanted, kept = np.concatenate(spans), np.concatenate([_NO_SPANS, *in_flight])
        parts = {number: wanted[wanted[:, 0] == number, 1:] for number in readers}
        runs = {number: reader.plan_runs(parts[number]) for number, reader in readers.items()}
        self._progress.begin(sum(int(np.diff(run).sum()) for run in runs.values()))
        for number, reader in readers.items():
            others = kept[kept[:, 0] == number, 1:]
            if not first:
                reader.evict(others)
            if len(parts[number]):
                reader.read_runs(runs[number], np.concatenate([parts[number], others]))


def _windows(rows: Iterable[NDArray[Any]], room: float) -> Iterator[list[NDArray[np.int64]]]:
    """Group tasks that together read at most ``room`` bytes; at least one task a group.

    Yields:
        Spans that each task reads, (n, 3): number of the source, first byte and end, whole pages.
    """
    window: list[NDArray[np.int64]] = []
    size = 0
    for entries in map(np.ravel, rows):
        begin = entries["offset"]
        end = np.minimum(begin + entries["packed"] + _LOCAL_HEADER_SIZE, entries["limit"])
        first, last = begin // PAGESIZE * PAGESIZE, -(-end // PAGESIZE) * PAGESIZE
        spans = np.stack([entries["source"].astype(np.int64), first, last], axis=1)
        added = int((spans[:, 2] - spans[:, 1]).sum())
        if window and size + added > room:
            yield window
            window, size = [], 0
        window.append(spans)
        size += added
    if window:
        yield window
