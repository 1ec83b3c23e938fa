"""Files that appear whole or not at all: write beside, flush to disk, rename; or put, at a URL.

Knows nothing of zips, tars or manifests. It never follows a name taken from an archive.
"""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from shardify.storage.paths import Place, Url

__all__ = [
    "TEMPORARY",
    "Flushing",
    "publish",
    "sync_folder",
    "write_atomic",
    "write_quick",
]

_AT_ONCE = 4
"""Files flushed side by side, which share what the disk must do for each."""

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of linux/fs.h: begin, and do not wait."""

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written; such files are never read as data."""


def write_atomic(path: Place, data: bytes) -> None:
    """Put ``data`` at ``path`` so that a reader sees the old file or the new one, never half.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
        StoreError: The object store does not take it.
    """
    if isinstance(path, Url):
        path.write_bytes(data)
        return
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    with _gone_if_unfinished(temporary):
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)


def write_quick(path: Place, data: bytes) -> None:
    """The same without flushing to disk: for what ``Flushing`` flushes later, or digests guard.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
    """
    if isinstance(path, Url):
        path.write_bytes(data)
        return
    temporary = path.with_name(path.name + TEMPORARY)
    with _gone_if_unfinished(temporary):
        temporary.write_bytes(data)
        temporary.replace(path)


class Flushing:
    """Finished files on their way to the disk, beside other work. Opened by ``with``.

    The system begins to write each at once; whether it has, is asked of all together at the end,
    for the filesystem writes its journal each time that it is asked. The files' names are on the
    disk only after ``sync_folder``.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._paths: list[Path] = []

    def __enter__(self) -> "Flushing":
        return self

    def add(self, path: Place) -> None:
        """Have a file flushed. At a URL there is nothing to flush."""
        if isinstance(path, Path):
            self._paths.append(path)
            self._pool.submit(_begin, path)

    def finish(self) -> None:
        """Wait for all. Raises OSError if one is missing, or the disk is full."""
        for _ in self._pool.map(_flush, self._paths):
            pass
        self._paths.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, flushed file into place and make the rename itself durable."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Place) -> None:
    """Make a folder's entries durable (a rename is not, until its folder is flushed).

    What a store has taken, it keeps.
    """
    if isinstance(folder, Path):
        _flush(folder)


def _begin(path: Path) -> None:
    """Have the system begin to write a file, where it can be told to; what fails, ``_flush`` says.

    Source: sync_file_range(2), Linux.
    """
    with suppress(OSError, AttributeError):
        begin = ctypes.CDLL(None).sync_file_range
        begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            begin(descriptor, 0, 0, _WRITE)
        finally:
            os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _gone_if_unfinished(temporary: Path) -> Iterator[None]:
    """Delete what could not be written, as on a full disk: its room is wanted."""
    try:
        yield
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
