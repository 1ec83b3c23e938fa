"""Write files that appear complete or not at all.

A local file is written under a temporary name beside its target, flushed to disk where that is
asked for, and renamed. An object of a store is put as a whole.
"""

import ctypes
import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from shardify.storage.paths import PathOrUrl, Url

_SYNC_THREADS = 4
"""Files flushed at the same time: they share the filesystem's journal writes."""

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

_SYNC_FILE_RANGE_WRITE = 2
"""From linux/fs.h: start writing, do not wait."""

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written; such files are never read as data."""


def write_atomic(path: PathOrUrl, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path``: a reader sees the old file or the new one, never a mixture.

    Args:
        path: The file.
        data: Its content.
        durable: Flush the file and its folder to disk before returning. Pass False where
            ``BackgroundSync`` flushes the file later, or a checksum protects it.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
        StoreError: The object store refuses it.
    """
    if isinstance(path, Url):
        path.write_bytes(data)
        return
    with _replacement(path, f"{path.name}{TEMPORARY}", durable=durable) as temporary:
        temporary.write_bytes(data)
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file and flush it to disk before it appears.

    Raises:
        OSError: The disk is full, or the folder is not writable.
    """
    with atomic_path(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_path(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end of the block it replaces ``path``.

    After an error or an interrupt the temporary file is deleted and ``path`` is unchanged.

    Args:
        path: The file.
        durable: Flush the new file to disk before it replaces the old one. Without this, a loss of
            power can leave an empty file.

    Raises:
        OSError: The disk is full, or the folder is not writable.
    """
    with _replacement(path, f".{path.name}{TEMPORARY}", durable=durable) as temporary:
        yield temporary


@contextmanager
def _replacement(path: Path, name: str, *, durable: bool) -> Iterator[Path]:
    """Yield the path ``name`` beside ``path``; see ``atomic_path``."""
    temporary = path.with_name(name)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


class AtomicFile:
    """A file open for writing; it appears at ``target`` when ``publish`` is called.

    Use it in a ``with`` block; without ``publish`` the data are deleted at the end of the block.
    For a URL the data are kept in an unnamed file in the machine's temporary folder.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
        StoreError: The object store refuses it.
    """

    file: BinaryIO
    """Unbuffered, for writing."""

    def __init__(self, target: PathOrUrl) -> None:
        self._target = target
        self._temporary: Path | None = None

    def __enter__(self) -> "AtomicFile":
        if isinstance(self._target, Url):
            self.file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
        else:
            # The name is unique: on a cluster, a worker presumed dead may still be writing.
            name = f"{self._target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
            temporary = self._target.with_name(name)
            self.file = cast(BinaryIO, temporary.open("wb", buffering=0))
            self._temporary = temporary
        return self

    def publish(self) -> None:
        """Make the file appear at its target. An existing file is replaced."""
        if isinstance(self._target, Url):
            self._target.put(self.file)
        elif self._temporary is not None:
            rename(self._temporary, self._target)
            self._temporary = None

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()


class BackgroundSync:
    """Flush finished files to disk while other work goes on. Use it in a ``with`` block.

    The system starts to write each file when it is added. ``finish`` waits for all files together,
    because every wait makes the filesystem write its journal. The files' names are on disk only
    after ``sync_folder``.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_SYNC_THREADS)
        self._paths: list[Path] = []

    def __enter__(self) -> "BackgroundSync":
        return self

    def add(self, path: PathOrUrl) -> None:
        """Flush one file. An object of a store needs no flush."""
        if isinstance(path, Path):
            self._paths.append(path)
            self._pool.submit(_start_sync, path)

    def finish(self) -> None:
        """Wait for all files. Raises OSError if one is missing, or the disk is full."""
        for _ in self._pool.map(_sync, self._paths):
            pass
        self._paths.clear()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, flushed file or folder to ``path`` and make the rename durable."""
    rename(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: PathOrUrl) -> None:
    """Flush a folder's entries: only then is a rename durable. A store needs no flush.

    Some file systems (FUSE, Lustre, SMB) cannot flush a folder; nothing is done there.
    """
    if isinstance(folder, Path):
        try:
            _sync(folder)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise


def rename(temporary: Path, path: Path) -> None:
    """Rename a file or folder to ``path``.

    Raises:
        OSError: The error names the file, and for a file system that cannot rename the remedy.
    """
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV):
            raise
        raise OSError(
            error.errno,
            f"{temporary.name} cannot be renamed to {path.name} ({error.strerror}); write to "
            "another disk, or to another folder of this one",
            str(path),
        ) from error


def _start_sync(path: Path) -> None:
    """Start writing a file to disk, on systems that can. ``_sync`` reports failures.

    Source: sync_file_range(2), Linux.
    """
    with suppress(OSError, AttributeError):
        sync_file_range = ctypes.CDLL(None).sync_file_range
        sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
