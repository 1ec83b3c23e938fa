"""Zips inside a zip: their entries beside those of the outer one, read in place where possible.

A stored inner zip is a stretch of the outer file, so its entries are entries of that file at other
places; a deflated one is unpacked once by a ``UnpackCache``. One level is taken. Told by ``.zip``,
or, for names without an extension, by content. Reads directories and first bytes alone.

A private place for zips that were packed inside another: unpacked once, read, then deleted.

In a build it is a folder inside OUT, where a rerun finds what is whole; else files without a name
in the machine's temporary folder, gone with the process. Nothing in it is believed before its
checksum is found right. Knows nothing of what the zips hold.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast
from zlib import crc32 as _crc

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ArchiveError, OutputError, StoreError
from shardify.sources.catalog import FAULTS, RefusedEntry, Source, SourceEntries, read_zip
from shardify.sources.entry_names import decode
from shardify.sources.file_types import is_junk, is_junk_folder
from shardify.sources.folder_listing import looks_zipped
from shardify.storage.atomic_write import TEMPORARY
from shardify.storage.paths import PathOrUrl, as_path
from shardify.storage.readers import ReadHandle, SubReader, close_source, open_source, pread
from shardify.zlib_backend import ERRORS, decompressobj

__all__ = ["NestedZip", "UnpackCache", "open_inner"]


_FOLDER = "inner"
_BLOCK = 1 << 20


class UnpackCache:
    """Opened by ``with``. Nothing is made until something is unpacked.

    Args:
        state: The folder in OUT that only a rerun needs; None, or a URL, for files without a
            name.
        shared: Whether processes of other machines will read what is unpacked.
    """

    def __init__(self, state: PathOrUrl | None = None, *, shared: bool = False) -> None:
        self._state = state if isinstance(state, Path) else None
        self._shared = shared
        self._stack = ExitStack()
        self._ready = False
        self._made = False

    def __enter__(self) -> "UnpackCache":
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
        self, handle: ReadHandle, start: int, packed: int, size: int, crc: int, *, name: str
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
    handle: ReadHandle, start: int, packed: int, size: int, crc: int, out: BinaryIO, name: str
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


_LOCAL = struct.Struct("<4s5H3L2H")
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PROBED = 1000
"""Most names without an extension whose content is looked at: the largest."""
_LEAST = 22
_BOMB_RATIO, _BOMB_BYTES = 200, 1 << 30
_TOO_LARGE = 3
_ENCRYPTED = 0x2041


@dataclass(frozen=True, kw_only=True, slots=True)
class NestedZip:
    """One zip that lies in another."""

    name: str
    """Its path in the outer zip, without ``.zip``."""
    part: SourceEntries
    source: Source | None
    """The file it was unpacked into; None where it is read in place, from the outer file."""


def open_inner(
    source: Source, part: SourceEntries, work: UnpackCache
) -> tuple[SourceEntries, list[NestedZip]]:
    """Find and open the zips in a zip.

    Args:
        source: The outer zip.
        part: Its entries.
        work: Where deflated ones are unpacked.

    Returns:
        The outer entries without the zips among them, and these, in the order of their names.

    Raises:
        ArchiveError: One is damaged, or holds zips in its turn; or all together unpack as a zip
            bomb does.
        OSError: The disk is full.
    """
    rows = _candidates(part)
    if not rows:
        return part, []
    handle = open_source(source.path)
    try:
        found: list[NestedZip] = []
        refused = list(part.refused)
        taken: list[int] = []
        budget = max(_BOMB_BYTES, _BOMB_RATIO * source.bytes)
        for name, row in sorted(rows):
            shown = decode(name)
            fault = int(part.table["fault"][row])
            if fault not in (0, _TOO_LARGE):
                if looks_zipped(name):
                    taken.append(row)
                    refused.append(RefusedEntry(member=shown, reason=f"a zip, {FAULTS[fault]}"))
                continue
            start = _data_of(handle, part, name, row)
            if start is None or _first_bytes(handle, part, row, start) not in _MAGIC:
                continue
            where = f"{as_path(source.path).name}: {shown}"
            budget -= int(part.table["size"][row])
            _check(budget, where)
            inner = _open(handle, part, row, start, shown, where, work)
            budget -= int(np.minimum(inner.part.table["size"], 1 << 50).sum())
            _check(budget, where)
            found.append(inner)
            taken.append(row)
    finally:
        close_source(handle)
    return _without(part, taken, refused), found


def _check(budget: int, where: str) -> None:
    if budget < 0:
        raise ArchiveError(
            f"{where}: with the zips in it, this zip unpacks to over {_BOMB_RATIO} times its own "
            "size, as a zip bomb does; refused"
        )


def _candidates(part: SourceEntries) -> list[tuple[bytes, int]]:
    """(name, row) of entries that may be zips, judged by their names."""
    names = np.frombuffer(part.names, np.uint8)
    if not len(names):
        return []
    ends, starts = part.bounds[1:], part.bounds[:-1]
    last = {mark: _last(names, ends, mark) for mark in (b".", b"/", b"\\")}
    slash = np.maximum(last[b"/"], last[b"\\"])
    bare = np.maximum(slash, starts - 1) >= last[b"."]
    four = names[np.maximum(ends[:, None] + np.arange(-4, 0), 0)] | 0x20
    zipped = (four == np.frombuffer(b".zip", np.uint8)).all(axis=1) & (ends - starts > 4)
    bare &= part.table["size"] >= _LEAST
    unsure = np.flatnonzero(bare & ~zipped)
    unsure = unsure[np.argsort(-part.table["size"][unsure], kind="stable")][:_PROBED]
    found = []
    for row in [*np.flatnonzero(zipped).tolist(), *unsure.tolist()]:
        name = bytes(part.names[int(starts[row]) : int(ends[row])])
        folder, _, base = decode(name).rpartition("/")
        if not is_junk(base) and not is_junk_folder(folder):
            found.append((name, row))
    return found


def _last(names: NDArray[np.uint8], ends: NDArray[np.int64], mark: bytes) -> NDArray[np.int64]:
    """Where, before each end, a byte stands last; -1 where nowhere."""
    places = np.append(-1, np.flatnonzero(names == mark[0]))
    found: NDArray[np.int64] = places[np.searchsorted(places, ends) - 1]
    return found


def _data_of(handle: ReadHandle, part: SourceEntries, name: bytes, row: int) -> int | None:
    """Where an entry's data begin; None if its local header is not what the directory promises."""
    table = part.table
    offset, limit = int(table["offset"][row]), int(table["limit"][row])
    head = pread(handle, _LOCAL.size + len(name), offset)
    if len(head) < _LOCAL.size + len(name):
        return None
    signature, _, flags, method, _, _, _, _, _, names, extra = _LOCAL.unpack_from(head)
    start = offset + _LOCAL.size + names + extra
    good = (
        signature == b"PK\x03\x04"
        and head[_LOCAL.size : _LOCAL.size + names] == name
        and method == int(table["method"][row])
        and not flags & _ENCRYPTED
        and start + int(table["packed"][row]) <= limit
    )
    return start if good else None


def _first_bytes(handle: ReadHandle, part: SourceEntries, row: int, start: int) -> bytes:
    """The first four bytes of an entry, unpacked."""
    data = pread(handle, min(512, int(part.table["packed"][row])), start)
    if int(part.table["method"][row]):
        try:
            data = decompressobj(-15).decompress(data, 4)
        except ERRORS:
            return b""
    return data[:4]


def _open(
    handle: ReadHandle,
    part: SourceEntries,
    row: int,
    start: int,
    shown: str,
    where: str,
    work: UnpackCache,
) -> NestedZip:
    table = part.table
    packed, size = int(table["packed"][row]), int(table["size"][row])
    source = None
    if int(table["method"][row]):
        path = work.unpack(handle, start, packed, size, int(table["crc"][row]), name=where)
        file = open_source(path)
        try:
            _, digest, inner = read_zip(file, size, where)
            deeper = next(_zips_in(file, inner), None)
        finally:
            close_source(file)
        source = Source(path=path, name=shown, bytes=size, entries=0, digest=digest, inner=True)
    else:
        window = SubReader(handle, start, size)
        _, _, inner = read_zip(window, size, where)
        deeper = next(_zips_in(window, inner), None)
        for column in ("offset", "limit"):
            inner.table[column] += start
    if deeper is not None:
        raise ArchiveError(
            f"{where}: holds {deeper}, a zip in a zip in a zip; expected one level; unpack the "
            f"outermost one and pass what is in it"
        )
    name = shown[:-4] if shown.lower().endswith(".zip") else shown
    return NestedZip(name=name, part=inner, source=source)


def _zips_in(handle: ReadHandle, part: SourceEntries) -> Iterator[str]:
    """Names of what are zips in an inner one."""
    for name, row in _candidates(part):
        start = _data_of(handle, part, name, row)
        if start is not None and _first_bytes(handle, part, row, start) in _MAGIC:
            yield decode(name)


def _without(part: SourceEntries, rows: list[int], refused: list[RefusedEntry]) -> SourceEntries:
    """The part without some of its entries."""
    keep = np.ones(len(part.bounds) - 1, bool)
    keep[rows] = False
    lengths = np.diff(part.bounds)
    names = np.frombuffer(part.names, np.uint8)[np.repeat(keep, lengths)]
    bounds = np.zeros(int(keep.sum()) + 1, np.int64)
    np.cumsum(lengths[keep], out=bounds[1:])
    return SourceEntries(
        names=bytearray(names.tobytes()),
        bounds=bounds,
        table={name: column[keep] for name, column in part.table.items()},
        refused=refused,
    )
