"""Parts of a file on their way into the system's page cache, and out of it.

Nothing is done with what is read: the system keeps it for those who read it next.
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

__all__ = ["Meter", "Reader", "joined"]

_STEP = 1 << 20
"""Read at once. Bytes."""
_PROBES = 4
"""Pages in each step that are looked at: where all are in memory, the step is not read."""
_AHEAD = 4
"""So many steps are asked for before the first of them is waited for: in their order, as a disk's
head moves, and several at a time, as a network disk answers."""
_ADVICE = 128 << 10
"""What Linux takes of one advice to read, unless it was told to read ahead less. Bytes."""
_GAP = 64 << 10
"""Bytes between two parts that are sooner read than passed over: a disk's head travels over them
in any case, and a network disk counts requests."""
_TAIL = 32
"""Of a file, the last such part is read first: a zip's directory stands there."""
_TELL = 0.2
"""Seconds."""
_NONE = np.empty((0, 2), np.int64)
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


def joined(spans: NDArray[np.int64], gap: int = 0) -> NDArray[np.int64]:
    """(n, 2) first bytes and ends, in order, as few as they may be with ``gap`` bytes between."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0])]
    ends = np.maximum.accumulate(spans[:, 1])
    new = np.flatnonzero(spans[1:, 0] > ends[:-1] + gap) + 1
    return np.stack([spans[np.append(0, new), 0], ends[np.append(new, len(ends)) - 1]], axis=1)


class Meter:
    """How far a reading is.

    Args:
        tell: Called by whoever reads, a few times a second but not at once, with the share in
            [0, 1] that is read.
    """

    def __init__(self, tell: Callable[[float], None] | None = None) -> None:
        self._tell = tell
        self.begin(0)

    def begin(self, total: int) -> None:
        """Begin anew. Bytes."""
        self._done, self._total = 0, total
        self._told = time.monotonic()

    def add(self, size: int) -> None:
        """Count what has been read. Bytes."""
        self._done += size
        if self._tell and time.monotonic() - self._told > _TELL:
            self._told = time.monotonic()
            self._tell(self._done / max(1, self._total))


class Reader:
    """A file that is read for the system's cache alone. Opened by ``with``.

    Args:
        path: The file.
        stop: Ends all reading, once it is set.
        meter: Counts what is read.
    """

    def __init__(self, path: Path, stop: threading.Event, meter: Meter) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._stop = stop
        self._meter = meter
        self._looks = 0
        self._buffer = memoryview(bytearray(_STEP))
        self.size = os.fstat(self._descriptor).st_size
        # The system must read no more than it is asked for: what it adds by itself stands between
        # parts, and large pieces of it cannot be forgotten in part.
        self._advise(0, 0, "RANDOM")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def missing(self) -> int:
        """How much is not in memory. Bytes, whole steps; everything where the system cannot say."""
        total = 0
        for first in range(0, self.size, _STEP):
            end = min(first + _STEP, self.size)
            total += 0 if self._stop.is_set() or self._there(first, end) else end - first
        return total

    def forget(self, kept: NDArray[np.int64]) -> None:
        """Let the system forget all but some parts: (n, 2), first byte and end of each.

        What is left of it here and there would break the next reading up into small requests.
        """
        ends = np.array([[0, 0], [self.size, self.size]])
        self._forget(_between(joined(np.concatenate([ends, kept]))))

    def read_runs(self, runs: NDArray[np.int64], wanted: NDArray[np.int64]) -> None:
        """Have parts in memory that some bytes stand between, and then forget those again.

        Args:
            runs: (n, 2): first byte and end of each, in order; from ``runs_of``.
            wanted: (m, 2), in any order: what is wanted of them, or of what was read before.
        """
        gaps = _between(joined(wanted))
        self._read(runs, gaps[gaps[:, 1] - gaps[:, 0] <= _GAP])

    @staticmethod
    def runs_of(parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is best read to have parts, (n, 2) in any order: those near each other as one."""
        return joined(parts, gap=_GAP)

    def read_all(self) -> None:
        """Have the whole file in memory."""
        last = self.size - self.size // _TAIL
        self._read(np.array([[last, self.size], [0, last]]), _NONE)

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
        under_way: deque[tuple[int, int]] = deque()
        for step in steps:
            if self._stop.is_set():
                return
            if self._there(*step):
                self._done(*step, gaps)
                continue
            for first in range(*step, _ADVICE):
                self._advise(first, min(first + _ADVICE, step[1]), "WILLNEED")
            under_way.append(step)
            if len(under_way) == _AHEAD:
                self._wait(*under_way.popleft(), gaps)
        while under_way and not self._stop.is_set():
            self._wait(*under_way.popleft(), gaps)

    def _wait(self, begin: int, end: int, gaps: NDArray[np.int64]) -> None:
        """Have a step in memory now: advice is dropped where too much of it is waiting."""
        os.preadv(self._descriptor, [self._buffer[: end - begin]], begin)
        self._done(begin, end, gaps)

    def _done(self, begin: int, end: int, gaps: NDArray[np.int64]) -> None:
        self._meter.add(end - begin)
        self._forget(gaps[slice(*np.searchsorted(gaps[:, 1], [begin, end], side="right"))])

    def _forget(self, parts: NDArray[np.int64]) -> None:
        for first, end in parts.tolist():
            self._advise(first, end, "DONTNEED")

    def _advise(self, begin: int, end: int, what: str) -> None:
        if hasattr(os, "posix_fadvise"):
            advice = getattr(os, f"POSIX_FADV_{what}")
            os.posix_fadvise(self._descriptor, begin, end - begin, advice)

    def _there(self, begin: int, end: int) -> bool:
        """Whether a part is in memory, by a byte here and there."""
        if _NOWAIT is None:
            return False
        with suppress(OSError, NotImplementedError):  # It is not, or the system cannot say.
            for quarter in range(_PROBES):
                first, last = (begin + (end - begin) * k // _PROBES for k in (quarter, quarter + 1))
                # Looking at a page may bring it in: another one is looked at each time.
                self._looks += 1
                place = first + PAGESIZE * (self._looks * 7919 % max(1, (last - first) // PAGESIZE))
                if not os.preadv(self._descriptor, [bytearray(1)], place, _NOWAIT):
                    return False
            return True
        return False


def _between(parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n - 1, 2): what lies between parts that are in order."""
    return np.stack([parts[:-1, 1], parts[1:, 0]], axis=1)
