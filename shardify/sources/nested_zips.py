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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ArchiveError, OutputError, StoreError
from shardify.sources.catalog import Part, Source
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
    ENCRYPTED,
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

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
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
            with suppress(OSError):
                self._state.rmdir()
                if self._created_out:
                    self._state.parent.rmdir()

    def unpack(self, packed: SubReader, size: int, crc: int, *, name: str) -> str:
        """Inflate one entry into a file and return a path that every worker can open.

        Args:
            packed: Its deflated data.
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
            _inflate(packed, size, crc, cast(BinaryIO, file), name)
            return f"/proc/{os.getpid()}/fd/{file.fileno()}"
        folder = self._prepare(self._state)
        digest = hashlib.sha256(f"{name} {size} {crc}".encode()).hexdigest()[:16]
        path = folder / f"{digest}.zip"
        if not _is_whole(path, size, crc):
            path.unlink(missing_ok=True)
            with atomic_path(path) as temporary:
                _check_disk_space(folder, size, name)
                with temporary.open("wb") as output:
                    _inflate(packed, size, crc, output, name)
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


def _inflate(packed: SubReader, size: int, crc: int, out: BinaryIO, name: str) -> None:
    inflater = decompressobj(-15)
    read = written = actual_crc = 0
    try:
        while not inflater.eof:
            block = inflater.unconsumed_tail
            if not block:
                block = packed.read(_BLOCK_BYTES, read)
                read += len(block)
            data = inflater.decompress(block, _BLOCK_BYTES)
            written += len(data)
            if written > size or not (block or data):
                break
            actual_crc = crc32(data, actual_crc)
            out.write(data)
    except ERRORS:
        raise ArchiveError(f"{name}: bad deflate data; copy it again") from None
    if not inflater.eof or written != size or read != packed.size or inflater.unused_data:
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
                actual_crc = crc32(block, actual_crc)
    except OSError:
        return False
    return actual_crc == crc


def open_nested_zips(outer: Part, cache: UnpackCache) -> list[Part]:
    """Open the zips in a zip, and remove them from its entries.

    Args:
        outer: The outer zip; its entries are replaced.
        cache: Unpacks deflated inner zips.

    Returns:
        The inner zips, sorted by name.

    Raises:
        ArchiveError: One is damaged or contains zips itself, or together they unpack to more than
            ``BOMB_RATIO`` times the outer zip's size.
        OSError: The disk is full.
    """
    entries = outer.entries
    candidates = _candidates(entries)
    if not candidates:
        return []
    nested: list[Part] = []
    refused = list(entries.refused)
    keep = np.ones(len(entries), bool)
    budget = max(BOMB_BYTES, BOMB_RATIO * outer.source.bytes)
    handle = open_source(outer.source.path)
    try:
        for name, row in sorted(candidates):
            shown, fault = entries.name(row), int(entries.table["fault"][row])
            if fault not in (0, _TOO_LARGE):
                if has_zip_name(name):
                    keep[row] = False
                    refused.append(RefusedEntry(member=shown, reason=f"a zip, {FAULTS[fault]}"))
                continue
            start = _zip_start(handle, entries, row)
            if start is None:
                continue
            where = f"{as_path(outer.source.path).name}: {shown}"
            budget -= int(entries.table["size"][row])
            _check_budget(budget, where)
            inner = _open_nested(handle, outer, row, start, where, cache)
            budget -= int(np.minimum(inner.entries.table["size"], 1 << 50).sum())
            _check_budget(budget, where)
            nested.append(inner)
            keep[row] = False
    finally:
        close_source(handle)
    outer.entries = entries.select(np.flatnonzero(keep), refused)
    return nested


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


def _zip_start(handle: ReadHandle, entries: SourceEntries, row: int) -> int | None:
    """Return the position of an entry's data.

    None if they are not a zip, or if its local header contradicts the directory.
    """
    entry, name = entries.row(row), entries.stored_name(row)
    head = pread(handle, LOCAL_HEADER.size + len(name), entry["offset"])
    if len(head) < LOCAL_HEADER.size + len(name):
        return None
    signature, _, flags, method, _, _, _, _, _, names, extra = LOCAL_HEADER.unpack_from(head)
    start = entry["offset"] + LOCAL_HEADER.size + int(names) + int(extra)
    if (
        signature != b"PK\x03\x04"
        or head[LOCAL_HEADER.size : LOCAL_HEADER.size + names] != name
        or method != entry["method"]
        or flags & ENCRYPTED
        or start + entry["packed"] > entry["limit"]
    ):
        return None
    data = pread(handle, min(512, entry["packed"]), start)
    if method:
        try:
            data = decompressobj(-15).decompress(data, 4)
        except ERRORS:
            return None
    return start if data[:4] in ZIP_MAGIC else None


def _open_nested(
    handle: ReadHandle, outer: Part, row: int, start: int, where: str, cache: UnpackCache
) -> Part:
    entry, shown, source = outer.entries.row(row), outer.entries.name(row), outer.source
    size = entry["size"]
    reader: ReadHandle = SubReader(handle, start, size)
    if entry["method"]:
        packed = SubReader(handle, start, entry["packed"])
        unpacked = cache.unpack(packed, size, entry["crc"], name=where)
        reader = open_source(unpacked)
    try:
        _, digest, inner = read_zip(reader, size, where)
        for _, deeper in _candidates(inner):
            if _zip_start(reader, inner, deeper) is not None:
                raise ArchiveError(
                    f"{where}: holds {inner.name(deeper)}, a zip in a zip in a zip; expected one "
                    "level; unpack the outermost one and pass what is in it"
                )
    finally:
        close_source(reader)
    if entry["method"]:
        source = Source(path=unpacked, name=shown, bytes=size, entries=0, digest=digest, inner=True)
    else:
        for column in ("offset", "limit"):
            inner.table[column] += start
    path = without_zip_extension(shown)
    return Part(source=source, entries=inner, name=f"{outer.name}: {path}", path=path)
