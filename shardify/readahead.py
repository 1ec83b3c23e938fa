"""Zips on their way into memory while they are surveyed, from front to end.

Shards are shuffled, so workers read all over a zip: where it is not in memory yet, a disk's head or
a network's latency counts once an entry. Read in order it comes at the disk's full speed. Nothing
is done with what is read, and nothing for zips that would fill the memory.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from shardify.remote import Place

__all__ = ["reading_ahead"]

_STEP = 8 << 20
_SHARE = 0.5
"""Of the memory that is available: more would push out what was read first."""
_FILES = 64
"""So many of a folder's files are looked at: it may hold pictures by the million."""


@contextmanager
def reading_ahead(paths: Sequence[Place]) -> Iterator[None]:
    """Have the system read zips on this machine into its cache, until the block ends.

    Args:
        paths: Zips, or folders with zips. URLs are passed over.
    """
    zips = _zips_of(paths)
    if sum(size for _, size in zips) > _SHARE * _available() or not hasattr(os, "posix_fadvise"):
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_read, args=([path for path, _ in zips], stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _zips_of(paths: Sequence[Place]) -> list[tuple[Path, int]]:
    """Files and their sizes, in bytes; of a folder those that call themselves zips."""
    found = []
    for path in paths:
        # What cannot be looked at, the survey will name.
        with suppress(OSError):
            if isinstance(path, Path) and path.is_dir():
                inside = [each for each in islice(path.iterdir(), _FILES) if each.suffix == ".zip"]
                found += [(each, each.stat().st_size) for each in inside]
            elif isinstance(path, Path) and path.is_file():
                found.append((path, path.stat().st_size))
    return found


def _available() -> float:
    """Memory that can be had without pushing others out. Bytes; 0 where the system does not say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return 0.0


def _read(files: Sequence[Path], stop: threading.Event) -> None:
    with suppress(OSError):
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                for offset in range(0, os.fstat(descriptor).st_size, _STEP):
                    if stop.is_set():
                        return
                    os.posix_fadvise(descriptor, offset, _STEP, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
