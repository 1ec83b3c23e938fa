"""Read parts of a file into the system's page cache, and evict others from it.

The bytes that are read are discarded: the system keeps them for the next reader.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_STEP = 1 << 20
"""Size of one read. Bytes."""
_PROBES = 4
"""Pages tested in each step: a step whose pages are all cached is not read."""
_STEPS_IN_FLIGHT = 4
"""Steps requested before the first is waited for. They are requested in order, as a disk's head
moves; several at a time, because a network disk answers several at a time."""
_MAX_ADVICE = 128 << 10
"""Most bytes that Linux reads for one WILLNEED, with its default read-ahead setting."""
_MAX_GAP = 64 << 10
"""Largest gap between two parts that is read and not skipped: a disk's head passes over it in any
case, and on a network disk each request costs time. Bytes."""
_TAIL_FRACTION = 32
"""The last 1/32 of a file is read first: a zip's directory is there."""
_PROGRESS_SECONDS = 0.2
_NO_SPANS = np.empty((0, 2), np.int64)
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


def merge_spans(spans: NDArray[np.int64], gap: int = 0) -> NDArray[np.int64]:
    """Sort (n, 2) spans of first byte and end, and merge those at most ``gap`` bytes apart."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0])]
    ends = np.maximum.accumulate(spans[:, 1])
    new = np.flatnonzero(spans[1:, 0] > ends[:-1] + gap) + 1
    return np.stack([spans[np.append(0, new), 0], ends[np.append(new, len(ends)) - 1]], axis=1)


class ReadProgress:
    """Count the bytes read, and report the fraction.

    Args:
        on_progress: Called in the reading thread with the fraction read, in [0, 1]; a few times a
            second, the first time after 0.2 s.
    """

    def __init__(self, on_progress: Callable[[float], None] | None = None) -> None:
        self._on_progress = on_progress
        self.begin(0)

    def begin(self, total: int) -> None:
        """Restart from 0 of ``total`` bytes."""
        self._done, self._total = 0, total
        self._last_report = time.monotonic()

    def add(self, size: int) -> None:
        """Count ``size`` bytes as read."""
        self._done += size
        if self._on_progress and time.monotonic() - self._last_report > _PROGRESS_SECONDS:
            self._last_report = time.monotonic()
            self._on_progress(self._done / max(1, self._total))


class CacheReader:
    """Reads a file into the page cache. Use it in a ``with`` block.

    Args:
        path: The file.
        stop: Once it is set, reading ends.
        progress: Counts the bytes read.
    """

    def __init__(self, path: Path, stop: threading.Event, progress: ReadProgress) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._stop = stop
        self._progress = progress
        self._probe_count = 0
        self._buffer = memoryview(bytearray(_STEP))
        self.size = os.fstat(self._descriptor).st_size
        # The system must read no more than it is asked for: its own read-ahead fills the gaps
        # between parts, in large pieces that cannot be evicted in part.
        self._advise(0, 0, "RANDOM")

    def __enter__(self) -> "CacheReader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def uncached_size(self) -> int:
        """Return the bytes not in memory, in whole steps; all where the system cannot tell."""
        total = 0
        for first in range(0, self.size, _STEP):
            end = min(first + _STEP, self.size)
            total += 0 if self._stop.is_set() or self._is_cached(first, end) else end - first
        return total

    def evict(self, kept: NDArray[np.int64]) -> None:
        """Evict the file from the page cache, except the ``kept`` (n, 2) spans.

        Scattered leftover pages would split the next read into small requests.
        """
        ends = np.array([[0, 0], [self.size, self.size]])
        self._evict(_gaps(merge_spans(np.concatenate([ends, kept]))))

    def read_runs(self, runs: NDArray[np.int64], wanted: NDArray[np.int64]) -> None:
        """Read runs into memory, then evict the small gaps in them that nobody wants.

        Args:
            runs: (n, 2) first byte and end of each, in order; from ``plan_runs``.
            wanted: (m, 2) spans to keep, of this read or of an earlier one; in any order.
        """
        gaps = _gaps(merge_spans(wanted))
        self._read(runs, gaps[gaps[:, 1] - gaps[:, 0] <= _MAX_GAP])

    @staticmethod
    def plan_runs(parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the runs to read for (n, 2) parts in any order: parts near each other as one."""
        return merge_spans(parts, gap=_MAX_GAP)

    def read_all(self) -> None:
        """Read the whole file into memory, its end first."""
        last = self.size - self.size // _TAIL_FRACTION
        self._read(np.array([[last, self.size], [0, last]]), _NO_SPANS)

    def _read(self, parts: NDArray[np.int64], gaps: NDArray[np.int64]) -> None:
        """Have parts in memory, unless reading is stopped meanwhile.

        Args:
            parts: (n, 2): first byte and end of each; taken one after the other.
            gaps: (m, 2), in order: what the system shall forget again.
        """
        steps = (
            (first, min(first + _STEP, end))
            for begin, end in parts.tolist()
            for first in range(begin, end, _STEP)
        )
        in_flight: deque[tuple[int, int]] = deque()
        for step in steps:
            if self._stop.is_set():
                return
            if self._is_cached(*step):
                self._finish_step(*step, gaps)
                continue
            for first in range(*step, _MAX_ADVICE):
                self._advise(first, min(first + _MAX_ADVICE, step[1]), "WILLNEED")
            in_flight.append(step)
            if len(in_flight) == _STEPS_IN_FLIGHT:
                self._wait(*in_flight.popleft(), gaps)
        while in_flight and not self._stop.is_set():
            self._wait(*in_flight.popleft(), gaps)

    def _wait(self, begin: int, end: int, gaps: NDArray[np.int64]) -> None:
        """Read a step, because Linux drops advice where too much of it is queued."""
        os.preadv(self._descriptor, [self._buffer[: end - begin]], begin)
        self._finish_step(begin, end, gaps)

    def _finish_step(self, begin: int, end: int, gaps: NDArray[np.int64]) -> None:
        self._progress.add(end - begin)
        self._evict(gaps[slice(*np.searchsorted(gaps[:, 1], [begin, end], side="right"))])

    def _evict(self, parts: NDArray[np.int64]) -> None:
        for first, end in parts.tolist():
            self._advise(first, end, "DONTNEED")

    def _advise(self, begin: int, end: int, name: str) -> None:
        if hasattr(os, "posix_fadvise"):
            advice = getattr(os, f"POSIX_FADV_{name}")
            os.posix_fadvise(self._descriptor, begin, end - begin, advice)

    def _is_cached(self, begin: int, end: int) -> bool:
        """Test a few pages of a part: whether all are in memory."""
        if _NOWAIT is None:
            return False
        with suppress(OSError, NotImplementedError):  # Not cached, or the system cannot tell.
            for quarter in range(_PROBES):
                first, last = (begin + (end - begin) * k // _PROBES for k in (quarter, quarter + 1))
                # A test may bring its page into memory, so each test takes another page.
                self._probe_count += 1
                page = self._probe_count * 7919 % max(1, (last - first) // PAGESIZE)
                position = first + PAGESIZE * page
                if not os.preadv(self._descriptor, [bytearray(1)], position, _NOWAIT):
                    return False
            return True
        return False


def _gaps(parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the gaps between n sorted parts: (n - 1, 2)."""
    return np.stack([parts[:-1, 1], parts[1:, 0]], axis=1)
