"""Files that appear whole or not at all: write beside, flush to disk, rename; or put, at a URL.

Knows nothing of zips, tars or manifests. It never follows a name taken from an archive.

Files that appear whole or not at all: written beside their place, then renamed.

Knows nothing of what is in them.

A file in the making, at a path or at a URL: it appears whole when it is published.

At a path it is written beside its place and renamed; for a URL it is a file without a name in the
machine's temporary folder, gone with the process, and put as one object. Knows nothing of tars.
"""

import ctypes
import os
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from shardify.storage.paths import PathOrUrl, Url

__all__ = [
    "TEMPORARY",
    "AtomicFile",
    "BackgroundSync",
    "atomic_path",
    "publish",
    "sync_folder",
    "write_atomic",
    "write_quick",
    "write_text",
]


_AT_ONCE = 4
"""Files flushed side by side, which share what the disk must do for each."""

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of linux/fs.h: begin, and do not wait."""

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written; such files are never read as data."""


def write_atomic(path: PathOrUrl, data: bytes) -> None:
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


def write_quick(path: PathOrUrl, data: bytes) -> None:
    """The same without flushing to disk: ``BackgroundSync`` flushes it later, or digests guard it.

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


class BackgroundSync:
    """Finished files on their way to the disk, beside other work. Opened by ``with``.

    The system begins to write each at once; whether it has, is asked of all together at the end,
    for the filesystem writes its journal each time that it is asked. The files' names are on the
    disk only after ``sync_folder``.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._paths: list[Path] = []

    def __enter__(self) -> "BackgroundSync":
        return self

    def add(self, path: PathOrUrl) -> None:
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


def sync_folder(folder: PathOrUrl) -> None:
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


@contextmanager
def atomic_path(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside ``path`` for the block to write at; what is there at its end takes its place.

    After an error or an interrupt nothing is left of it, and what stood at ``path`` stands still.

    Args:
        path: The file.
        durable: Have it on the disk before it takes its place: then not even a loss of power
            leaves an empty one.

    Raises:
        OSError: No room, no permission.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, durably.

    Raises:
        OSError: No room, no permission.
    """
    with atomic_path(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


class AtomicFile:
    """Opened by ``with``; what is not published by its end is deleted.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
        StoreError: The store does not take it.
    """

    file: BinaryIO
    """Unbuffered, for writing."""

    def __init__(self, where: PathOrUrl) -> None:
        self._where = where
        self._temporary: Path | None = None

    def __enter__(self) -> "AtomicFile":
        if isinstance(self._where, Url):
            self.file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
        else:
            # A name of its own: on a cluster, a worker given up for dead may still be writing.
            name = f"{self._where.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
            self._temporary = self._where.with_name(name)
            self.file = cast(BinaryIO, self._temporary.open("wb", buffering=0))
        return self

    def publish(self) -> None:
        """Let the file appear in its place. What is there is replaced."""
        if isinstance(self._where, Url):
            self._where.put(self.file)
        elif self._temporary is not None:
            self._temporary.replace(self._where)
            self._temporary = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
