"""A file in the making, at a path or at a URL: it appears whole when it is published.

At a path it is written beside its place and renamed; for a URL it is a file without a name in the
machine's temporary folder, gone with the process, and put as one object. Knows nothing of tars.
"""

import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from shardify.storage.atomic_write import TEMPORARY
from shardify.storage.paths import Place, Url

__all__ = ["Draft"]


class Draft:
    """Opened by ``with``; what is not published by its end is deleted.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
        StoreError: The store does not take it.
    """

    file: BinaryIO
    """Unbuffered, for writing."""

    def __init__(self, where: Place) -> None:
        self._where = where
        self._temporary: Path | None = None

    def __enter__(self) -> "Draft":
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
