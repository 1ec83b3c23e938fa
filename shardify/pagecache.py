"""Parts of a file on their way into the system's page cache, and out of it.

Nothing is done with what is read: the system keeps it for those who read it next.
"""

import os
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Meter", "Reader"]

_STEP = 1 << 20
"""Read at once. Bytes."""
_PROBES = 4
"""Places in each step that are looked at: where all are in memory, the step is not read."""
_AHEAD = 4
"""So many steps are asked for before the first of them is waited for: in their order, as a disk's
head moves, and several at a time, as a network disk answers."""
_ADVICE = 128 << 10
"""The most that every Linux takes of one advice to read. Bytes."""
_GAP = 64 << 10
"""Bytes between two parts that are sooner read than passed over: a disk's head travels over them
in any case, and a network disk counts requests."""
_NONE = np.empty((0, 2), np.int64)


def joined(spans: NDArray[np.int64], gap: int = 0) -> NDArray[np.int64]:
    """(n, 2) first bytes and ends, in order, as few as they may be with ``gap`` bytes between."""
    spans = spans[np.argsort(spans[:, 0])]
    ends = np.maximum.accumulate(spans[:, 1])
    new = np.flatnonzero(spans[1:, 0] > ends[:-1] + gap) + 1
    return np.stack([spans[np.append(0, new), 0], ends[np.append(new, len(ends)) - 1]], axis=1)


@dataclass(slots=True)
class Meter:
    """How far a reading is. Written by one thread, read by any."""

    done: int = 0
    """Bytes."""
    total: int = 0

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.done / max(1, self.total)


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
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def there(self) -> bool:
        """Whether the whole file is in memory already."""
        return all(
            self._there(first, min(first + _STEP, self.size))
            for first in range(0, self.size, _STEP)
        )

    def forget(self, kept: NDArray[np.int64]) -> None:
        """Let the system forget all but some parts: (n, 2), first byte and end of each.

        What is left of it here and there would break the next reading up into small requests.
        """
        ends = np.array([[0, 0], [self.size, self.size]])
        self._forget(_between(joined(np.concatenate([ends, kept]))))

    def read_parts(self, parts: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
        """Have parts in memory, (n, 2) in any order, and nothing that lies between them.

        Args:
            parts: n > 0.
            kept: Parts that were read before and are wanted still.
        """
        gaps = _between(joined(np.concatenate([parts, kept])))
        runs = joined(parts, gap=_GAP)
        self._meter.total += int((runs[:, 1] - runs[:, 0]).sum())
        self._read(runs, gaps[gaps[:, 1] - gaps[:, 0] <= _GAP])

    def read_all(self) -> None:
        """Have the whole file in memory."""
        self._read(np.array([[0, self.size]]), _NONE)

    def _read(self, parts: NDArray[np.int64], gaps: NDArray[np.int64]) -> None:
        """Have parts in memory, unless reading is stopped meanwhile.

        Args:
            parts: (n, 2): first byte and end of each, in order.
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
                self._meter.done += step[1] - step[0]
            else:
                self._ask(*step)
                under_way.append(step)
            if len(under_way) == _AHEAD:
                self._wait(*under_way.popleft(), gaps)
        for step in under_way:
            self._wait(*step, gaps)

    def _ask(self, begin: int, end: int) -> None:
        # Linux takes no more of an advice than this, and drops it where too many are waiting.
        for first in range(begin, end, _ADVICE):
            os.posix_fadvise(self._descriptor, first, _ADVICE, os.POSIX_FADV_WILLNEED)

    def _wait(self, begin: int, end: int, gaps: NDArray[np.int64]) -> None:
        os.pread(self._descriptor, end - begin, begin)
        self._meter.done += end - begin
        self._forget(gaps[slice(*np.searchsorted(gaps[:, 1], [begin, end], side="right"))])

    def _forget(self, parts: NDArray[np.int64]) -> None:
        for first, end in parts.tolist():
            os.posix_fadvise(self._descriptor, first, end - first, os.POSIX_FADV_DONTNEED)

    def _there(self, begin: int, end: int) -> bool:
        """Whether a part is in memory, by a byte here and there."""
        with suppress(OSError):  # It is not, or the file system cannot tell.
            for place in range(begin, end, _STEP // _PROBES):
                if not os.preadv(self._descriptor, [bytearray(1)], place, os.RWF_NOWAIT):
                    return False
            return True
        return False


def _between(parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n - 1, 2): what lies between parts that are in order."""
    return np.stack([parts[:-1, 1], parts[1:, 0]], axis=1)
