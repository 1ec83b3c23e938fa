"""Files that appear whole or not at all: write beside, flush to disk, rename; or put, at a URL.

Knows nothing of zips, tars or manifests. It never follows a name taken from an archive.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from shardify.remote import Place, Url

__all__ = [
    "TEMPORARY",
    "Flushing",
    "publish",
    "sync_files",
    "sync_folder",
    "write_atomic",
    "write_quick",
]

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
    """The same without flushing to disk: for what ``sync_files`` flushes later, or digests guard.

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

    A head start for ``sync_files``, which flushes names and folders as well.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._due: list[Future[None]] = []

    def __enter__(self) -> "Flushing":
        return self

    def add(self, path: Place) -> None:
        """Flush a file soon. At a URL there is nothing to flush."""
        if isinstance(path, Path):
            self._due.append(self._pool.submit(_flush, path))

    def finish(self) -> None:
        """Wait for all. Raises OSError if one is missing, or the disk is full."""
        for each in self._due:
            each.result()
        self._due.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def sync_files(folder: Place, names: Iterable[str]) -> None:
    """Flush finished files of one folder to disk, several at a time, and the folder itself.

    Raises:
        OSError: One is missing, or the disk is full.
    """
    if isinstance(folder, Url):
        return  # What a store has taken, it keeps.
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(_flush, [folder / name for name in names]):
            pass
    sync_folder(folder)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, flushed file into place and make the rename itself durable."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable (a rename is not, until its folder is flushed)."""
    _flush(folder)


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
