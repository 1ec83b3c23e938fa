"""A private place for zips that were packed inside another: unpacked once, read, then deleted.

In a build it is a folder inside OUT, where a rerun finds what is whole; else files without a name
in the machine's temporary folder, gone with the process. Nothing in it is believed before its
checksum is found right. Knows nothing of what the zips hold.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast
from zlib import crc32 as _crc

from shardify.errors import ArchiveError, OutputError, StoreError
from shardify.storage.atomic_write import TEMPORARY
from shardify.storage.paths import Place
from shardify.storage.readers import Handle, pread
from shardify.zlib_backend import ERRORS, decompressobj

__all__ = ["Workshop"]

_FOLDER = "inner"
_BLOCK = 1 << 20


class Workshop:
    """Opened by ``with``. Nothing is made until something is unpacked.

    Args:
        state: The folder in OUT that only a rerun needs; None, or a URL, for files without a
            name.
        shared: Whether processes of other machines will read what is unpacked.
    """

    def __init__(self, state: Place | None = None, *, shared: bool = False) -> None:
        self._state = state if isinstance(state, Path) else None
        self._shared = shared
        self._stack = ExitStack()
        self._ready = False
        self._made = False

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        # Before a build has claimed OUT, nothing in it is worth keeping but after an interrupt.
        if (
            self._state is not None
            and self._ready
            and (error is None or isinstance(error, Exception))
            and not (self._state / "build.json").exists()
        ):
            shutil.rmtree(self._state / _FOLDER, ignore_errors=True)
            for folder in (self._state, self._state.parent):
                with suppress(OSError):
                    if folder is not self._state.parent or self._made:
                        folder.rmdir()

    def unpack(
        self, handle: Handle, start: int, packed: int, size: int, crc: int, *, name: str
    ) -> str:
        """Inflate one entry into a file. Returns a path that every worker can open.

        Args:
            handle: The open source that it lies in.
            start: First byte of its deflated data.
            packed: Length of these. Bytes.
            size: Its size, unpacked. No more is written. Bytes.
            crc: CRC-32 of what is unpacked.
            name: What to call it in an error.

        Raises:
            ArchiveError: It is damaged, or does not unpack to what it states.
            OutputError: Another build is at work in the same OUT.
            StoreError: Other machines could not see the file.
            OSError: The disk is full.
        """
        if self._state is None:
            if self._shared:
                raise StoreError(
                    f"{name}: a deflated zip inside a zip must be unpacked where every worker sees "
                    "it, and OUT is no folder; choose an OUT that is one, or unpack it first"
                )
            file = self._stack.enter_context(tempfile.TemporaryFile())
            _fits(Path(tempfile.gettempdir()), size, name)
            _inflate(handle, start, packed, size, crc, cast(BinaryIO, file), name)
            return f"/proc/{os.getpid()}/fd/{file.fileno()}"
        folder = self._prepare(self._state)
        digest = hashlib.sha256(f"{name} {size} {crc}".encode()).hexdigest()[:16]
        path = folder / f"{digest}.zip"
        if not _is_whole(path, size, crc):
            path.unlink(missing_ok=True)
            temporary = path.with_name(path.name + TEMPORARY)
            try:
                _fits(folder, size, name)
                with temporary.open("wb") as draft:
                    _inflate(handle, start, packed, size, crc, draft, name)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return str(path.absolute())

    def _prepare(self, state: Path) -> Path:
        """Make the folder, alone in it, without what a kill left behind."""
        folder = state / _FOLDER
        if not self._ready:
            self._made = not state.parent.exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock = self._stack.enter_context((folder / "lock").open("wb"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(
                    f"{state.parent}: another build is writing there; wait for it"
                ) from None
            self._ready = True
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        return folder


def _fits(folder: Path, size: int, name: str) -> None:
    """Raise OSError before any work, where the disk has no room."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"no room to unpack {name}: {size} bytes, {free} free", None)


def _inflate(
    handle: Handle, start: int, packed: int, size: int, crc: int, out: BinaryIO, name: str
) -> None:
    inflater = decompressobj(-15)
    read = written = found = 0
    try:
        while not inflater.eof:
            block = inflater.unconsumed_tail
            if not block:
                block = pread(handle, min(_BLOCK, packed - read), start + read)
                read += len(block)
            data = inflater.decompress(block, _BLOCK)
            written += len(data)
            if written > size or not (block or data):
                break
            found = _crc(data, found)
            out.write(data)
    except ERRORS:
        raise ArchiveError(f"{name}: bad deflate data; copy it again") from None
    if not inflater.eof or written != size or read != packed or inflater.unused_data:
        raise ArchiveError(
            f"{name}: unpacks to another size than stated ({size} bytes); it is damaged, or a zip "
            "bomb; copy it again"
        )
    if found != crc:
        raise ArchiveError(f"{name}: bad CRC; copy it again")
    out.flush()


def _is_whole(path: Path, size: int, crc: int) -> bool:
    """Whether an earlier run left exactly this."""
    try:
        if path.is_symlink() or path.stat().st_size != size:
            return False
        found = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found = _crc(block, found)
    except OSError:
        return False
    return found == crc
