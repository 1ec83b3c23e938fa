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

__all__ = ["files_at", "reading_ahead"]

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
    zips = [each for each in files_at(paths) if each in paths or each.suffix == ".zip"]
    if _size_of(zips) > _SHARE * _available() or not hasattr(os, "posix_fadvise"):
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_read, args=(zips, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def files_at(paths: Sequence[Place]) -> list[Path]:
    """Files on this machine that are named, or lie in a folder that is; of a folder's the first."""
    found: list[Path] = []
    for path in paths:
        # What cannot be looked at, the survey will name.
        with suppress(OSError):
            if isinstance(path, Path):
                inside = islice(path.iterdir(), _FILES) if path.is_dir() else [path]
                found += [each for each in inside if each.is_file()]
    return found


def _size_of(files: Sequence[Path]) -> int:
    """Bytes; of what cannot be looked at, none."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return total


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
