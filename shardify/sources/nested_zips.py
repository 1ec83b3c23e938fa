"""Open zips inside a zip: in place where they are stored, else unpacked once into a cache.

A stored inner zip is a byte range of the outer file, so its entries are entries of that file at
shifted offsets. A deflated one is unpacked by ``UnpackCache``. One level of nesting is supported.
Inner zips are recognised by ``.zip`` or, for names without an extension, by content.
"""

import errno
import hashlib
import os
import shutil
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
from shardify.sources.catalog import Source
from shardify.sources.entry_names import decode
from shardify.sources.file_types import is_junk, is_junk_folder
from shardify.sources.folder_listing import (
    MIN_ZIP_SIZE,
    ZIP_MAGIC,
    has_zip_name,
    without_zip_extension,
)
from shardify.sources.zip_directory import (
    BOMB_BYTES,
    BOMB_RATIO,
    FAULTS,
    RefusedEntry,
    SourceEntries,
    read_zip,
)
from shardify.sources.zip_extract import LOCAL_HEADER
from shardify.storage import locks
from shardify.storage.atomic_write import TEMPORARY, atomic_path
from shardify.storage.paths import PathOrUrl, as_path
from shardify.storage.readers import ReadHandle, SubReader, close_source, open_source, pread
from shardify.zlib_backend import ERRORS, decompressobj

_CACHE_FOLDER = "inner"
_BLOCK_BYTES = 1 << 20
_MAX_PROBED_NAMES = 1000
"""Most entries without an extension whose content is tested: the largest ones."""
_TOO_LARGE = 3
"""Key of ``FAULTS``; a zip may be larger than an image."""
_ENCRYPTED = 0x2041
"""Flag bits of an encrypted entry."""


class UnpackCache:
    """Unpacks zips that are deflated inside another. Use it in a ``with`` block.

    In a build the files are in a folder inside OUT, where a rerun finds the complete ones; their
    CRC-32 is checked before they are used again. Otherwise they are unnamed files in the machine's
    temporary folder. Nothing is created before something is unpacked.

    Args:
        state: OUT's state folder; None or a URL for unnamed files.
        shared: Whether processes of other machines will read the unpacked files.
    """

    def __init__(self, state: PathOrUrl | None = None, *, shared: bool = False) -> None:
        self._state = state if isinstance(state, Path) else None
        self._shared = shared
        self._stack = ExitStack()
        self._locked = False
        self._created_out = False

    def __enter__(self) -> "UnpackCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        # Delete the files of a build that failed before it wrote its state, to leave OUT as it was.
        # After an interrupt they are kept for the rerun.
        if (
            self._state is not None
            and self._locked
            and (error is None or isinstance(error, Exception))
            and not (self._state / "build.json").exists()
        ):
            shutil.rmtree(self._state / _CACHE_FOLDER, ignore_errors=True)
            for folder in (self._state, self._state.parent):
                with suppress(OSError):
                    if folder is not self._state.parent or self._created_out:
                        folder.rmdir()

    def unpack(
        self, handle: ReadHandle, start: int, packed: int, size: int, crc: int, *, name: str
    ) -> str:
        """Inflate one entry into a file and return a path that every worker can open.

        Args:
            handle: The open source that contains it.
            start: First byte of its deflated data.
            packed: Size of the deflated data. Bytes.
            size: Size of the unpacked data. No more is written. Bytes.
            crc: CRC-32 of the unpacked data.
            name: Name of the entry in an error.

        Raises:
            ArchiveError: It is damaged, or its size or CRC differs from the stated one.
            OutputError: Another build is running in the same OUT.
            StoreError: Other machines could not read the file.
            OSError: The disk is full.
        """
        if self._state is None:
            if self._shared:
                raise StoreError(
                    f"{name}: a deflated zip inside a zip must be unpacked where every worker sees "
                    "it, and OUT is no folder; choose an OUT that is one, or unpack it first"
                )
            file = self._stack.enter_context(tempfile.TemporaryFile())
            _check_disk_space(Path(tempfile.gettempdir()), size, name)
            _inflate(handle, start, packed, size, crc, cast(BinaryIO, file), name)
            return f"/proc/{os.getpid()}/fd/{file.fileno()}"
        folder = self._prepare(self._state)
        digest = hashlib.sha256(f"{name} {size} {crc}".encode()).hexdigest()[:16]
        path = folder / f"{digest}.zip"
        if not _is_whole(path, size, crc):
            path.unlink(missing_ok=True)
            with atomic_path(path) as temporary:
                _check_disk_space(folder, size, name)
                with temporary.open("wb") as output:
                    _inflate(handle, start, packed, size, crc, output, name)
        return str(path.absolute())

    def _prepare(self, state: Path) -> Path:
        """Create and lock the folder, and delete incomplete files of a killed run."""
        folder = state / _CACHE_FOLDER
        if not self._locked:
            self._created_out = not state.parent.exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock = self._stack.enter_context((folder / "lock").open("wb"))
            try:
                locks.lock(lock.fileno())
            except BlockingIOError:
                raise OutputError(
                    f"{state.parent}: another build is writing there; wait for it"
                ) from None
            self._locked = True
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        return folder


def _check_disk_space(folder: Path, size: int, name: str) -> None:
    """Raise OSError if the disk has less than ``size`` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"no room to unpack {name}: {size} bytes, {free} free", None)


def _inflate(
    handle: ReadHandle, start: int, packed: int, size: int, crc: int, out: BinaryIO, name: str
) -> None:
    inflater = decompressobj(-15)
    read = written = actual_crc = 0
    try:
        while not inflater.eof:
            block = inflater.unconsumed_tail
            if not block:
                block = pread(handle, min(_BLOCK_BYTES, packed - read), start + read)
                read += len(block)
            data = inflater.decompress(block, _BLOCK_BYTES)
            written += len(data)
            if written > size or not (block or data):
                break
            actual_crc = _crc(data, actual_crc)
            out.write(data)
    except ERRORS:
        raise ArchiveError(f"{name}: bad deflate data; copy it again") from None
    if not inflater.eof or written != size or read != packed or inflater.unused_data:
        raise ArchiveError(
            f"{name}: unpacks to another size than stated ({size} bytes); it is damaged, or a zip "
            "bomb; copy it again"
        )
    if actual_crc != crc:
        raise ArchiveError(f"{name}: bad CRC; copy it again")
    out.flush()


def _is_whole(path: Path, size: int, crc: int) -> bool:
    """Whether an earlier run left the complete file: its size and CRC-32 are right."""
    try:
        if path.is_symlink() or path.stat().st_size != size:
            return False
        actual_crc = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                actual_crc = _crc(block, actual_crc)
    except OSError:
        return False
    return actual_crc == crc


@dataclass(frozen=True, kw_only=True, slots=True)
class NestedZip:
    """One zip inside another."""

    name: str
    """Its path in the outer zip, without ``.zip``."""
    part: SourceEntries
    source: Source | None
    """The file it was unpacked into; None if it is read in place, from the outer file."""


def open_nested_zips(
    source: Source, part: SourceEntries, work: UnpackCache
) -> tuple[SourceEntries, list[NestedZip]]:
    """Find and open the zips in a zip.

    Args:
        source: The outer zip.
        part: Its entries.
        work: Unpacks deflated inner zips.

    Returns:
        The outer entries without the zips among them, and these zips, sorted by name.

    Raises:
        ArchiveError: One is damaged or contains zips itself, or together they unpack to more than
            ``BOMB_RATIO`` times the outer zip's size.
        OSError: The disk is full.
    """
    rows = _candidates(part)
    if not rows:
        return part, []
    handle = open_source(source.path)
    try:
        nested: list[NestedZip] = []
        refused = list(part.refused)
        dropped: list[int] = []
        budget = max(BOMB_BYTES, BOMB_RATIO * source.bytes)
        for name, row in sorted(rows):
            shown = part.name(row)
            fault = int(part.table["fault"][row])
            if fault not in (0, _TOO_LARGE):
                if has_zip_name(name):
                    dropped.append(row)
                    refused.append(RefusedEntry(member=shown, reason=f"a zip, {FAULTS[fault]}"))
                continue
            start = _data_start(handle, part, row)
            if start is None or _first_bytes(handle, part, row, start) not in ZIP_MAGIC:
                continue
            where = f"{as_path(source.path).name}: {shown}"
            budget -= int(part.table["size"][row])
            _check_budget(budget, where)
            inner = _open_nested(handle, part, row, start, shown, where, work)
            budget -= int(np.minimum(inner.part.table["size"], 1 << 50).sum())
            _check_budget(budget, where)
            nested.append(inner)
            dropped.append(row)
    finally:
        close_source(handle)
    keep = np.ones(len(part), bool)
    keep[dropped] = False
    return part.select(np.flatnonzero(keep), refused), nested


def _check_budget(budget: int, where: str) -> None:
    if budget < 0:
        raise ArchiveError(
            f"{where}: with the zips in it, this zip unpacks to over {BOMB_RATIO} times its own "
            "size, as a zip bomb does; refused"
        )


def _candidates(part: SourceEntries) -> list[tuple[bytes, int]]:
    """Return (name, row) of the entries that may be zips by their names."""
    block, bounds = part.names
    names = np.frombuffer(block, np.uint8)
    if not len(names):
        return []
    ends, starts = bounds[1:], bounds[:-1]
    last = {char: _last_position(names, ends, char) for char in (b".", b"/")}
    no_extension = np.maximum(last[b"/"], starts - 1) >= last[b"."]
    lower_tail = names[np.maximum(ends[:, None] + np.arange(-4, 0), 0)] | 0x20
    zipped = (lower_tail == np.frombuffer(b".zip", np.uint8)).all(axis=1) & (ends - starts > 4)
    no_extension &= part.table["size"] >= MIN_ZIP_SIZE
    unsure = np.flatnonzero(no_extension & ~zipped)
    unsure = unsure[np.argsort(-part.table["size"][unsure], kind="stable")][:_MAX_PROBED_NAMES]
    candidates = []
    for row in [*np.flatnonzero(zipped).tolist(), *unsure.tolist()]:
        name = bytes(block[int(starts[row]) : int(ends[row])])
        folder, _, base = decode(name).rpartition("/")
        if not is_junk(base) and not is_junk_folder(folder):
            candidates.append((name, row))
    return candidates


def _last_position(
    names: NDArray[np.uint8], ends: NDArray[np.int64], char: bytes
) -> NDArray[np.int64]:
    """Return the last position of a byte before each end; -1 if there is none."""
    positions = np.append(-1, np.flatnonzero(names == char[0]))
    last: NDArray[np.int64] = positions[np.searchsorted(positions, ends) - 1]
    return last


def _data_start(handle: ReadHandle, part: SourceEntries, row: int) -> int | None:
    """Return where an entry's data begin; None if its local header contradicts the directory."""
    table, name = part.table, part.stored_name(row)
    offset, limit = int(table["offset"][row]), int(table["limit"][row])
    head = pread(handle, LOCAL_HEADER.size + len(name), offset)
    if len(head) < LOCAL_HEADER.size + len(name):
        return None
    signature, _, flags, method, _, _, _, _, _, names, extra = LOCAL_HEADER.unpack_from(head)
    start = offset + LOCAL_HEADER.size + names + extra
    good = (
        signature == b"PK\x03\x04"
        and head[LOCAL_HEADER.size : LOCAL_HEADER.size + names] == name
        and method == int(table["method"][row])
        and not flags & _ENCRYPTED
        and start + int(table["packed"][row]) <= limit
    )
    return start if good else None


def _first_bytes(handle: ReadHandle, part: SourceEntries, row: int, start: int) -> bytes:
    """Return the first four bytes of an entry, unpacked."""
    data = pread(handle, min(512, int(part.table["packed"][row])), start)
    if int(part.table["method"][row]):
        try:
            data = decompressobj(-15).decompress(data, 4)
        except ERRORS:
            return b""
    return data[:4]


def _open_nested(
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
            deeper = next(_inner_zips(file, inner), None)
        finally:
            close_source(file)
        source = Source(path=path, name=shown, bytes=size, entries=0, digest=digest, inner=True)
    else:
        window = SubReader(handle, start, size)
        _, _, inner = read_zip(window, size, where)
        deeper = next(_inner_zips(window, inner), None)
        for column in ("offset", "limit"):
            inner.table[column] += start
    if deeper is not None:
        raise ArchiveError(
            f"{where}: holds {deeper}, a zip in a zip in a zip; expected one level; unpack the "
            f"outermost one and pass what is in it"
        )
    return NestedZip(name=without_zip_extension(shown), part=inner, source=source)


def _inner_zips(handle: ReadHandle, part: SourceEntries) -> Iterator[str]:
    """Yield the names of the zips inside an inner zip."""
    for _, row in _candidates(part):
        start = _data_start(handle, part, row)
        if start is not None and _first_bytes(handle, part, row, start) in ZIP_MAGIC:
            yield part.name(row)
