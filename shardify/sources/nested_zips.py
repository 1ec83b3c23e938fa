"""Zips inside a zip: their entries beside those of the outer one, read in place where possible.

A stored inner zip is a stretch of the outer file, so its entries are entries of that file at other
places; a deflated one is unpacked once by a ``Workshop``. One level is taken. Told by ``.zip``, or,
for names without an extension, by content. Reads directories and first bytes alone.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ArchiveError
from shardify.layout.filenames import is_junk, is_junk_folder
from shardify.sources.catalog import FAULTS, Part, Refused, ZipSource, read_zip
from shardify.sources.entry_names import decode
from shardify.sources.folder_listing import looks_zipped
from shardify.sources.workshop import Workshop
from shardify.storage.paths import place
from shardify.storage.readers import Handle, Window, close_source, open_source, pread
from shardify.zlib_backend import ERRORS, decompressobj

__all__ = ["Inner", "open_inner"]

_LOCAL = struct.Struct("<4s5H3L2H")
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PROBED = 1000
"""Most names without an extension whose content is looked at: the largest."""
_LEAST = 22
_BOMB_RATIO, _BOMB_BYTES = 200, 1 << 30
_TOO_LARGE = 3
_ENCRYPTED = 0x2041


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """One zip that lies in another."""

    name: str
    """Its path in the outer zip, without ``.zip``."""
    part: Part
    source: ZipSource | None
    """The file it was unpacked into; None where it is read in place, from the outer file."""


def open_inner(source: ZipSource, part: Part, work: Workshop) -> tuple[Part, list[Inner]]:
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
        found: list[Inner] = []
        refused = list(part.refused)
        taken: list[int] = []
        budget = max(_BOMB_BYTES, _BOMB_RATIO * source.bytes)
        for name, row in sorted(rows):
            shown = decode(name)
            fault = int(part.table["fault"][row])
            if fault not in (0, _TOO_LARGE):
                if looks_zipped(name):
                    taken.append(row)
                    refused.append(Refused(member=shown, reason=f"a zip, {FAULTS[fault]}"))
                continue
            start = _data_of(handle, part, name, row)
            if start is None or _first_bytes(handle, part, row, start) not in _MAGIC:
                continue
            where = f"{place(source.path).name}: {shown}"
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


def _candidates(part: Part) -> list[tuple[bytes, int]]:
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


def _data_of(handle: Handle, part: Part, name: bytes, row: int) -> int | None:
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


def _first_bytes(handle: Handle, part: Part, row: int, start: int) -> bytes:
    """The first four bytes of an entry, unpacked."""
    data = pread(handle, min(512, int(part.table["packed"][row])), start)
    if int(part.table["method"][row]):
        try:
            data = decompressobj(-15).decompress(data, 4)
        except ERRORS:
            return b""
    return data[:4]


def _open(
    handle: Handle, part: Part, row: int, start: int, shown: str, where: str, work: Workshop
) -> Inner:
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
        source = ZipSource(path=path, name=shown, bytes=size, entries=0, digest=digest, inner=True)
    else:
        window = Window(handle, start, size)
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
    return Inner(name=name, part=inner, source=source)


def _zips_in(handle: Handle, part: Part) -> Iterator[str]:
    """Names of what are zips in an inner one."""
    for name, row in _candidates(part):
        start = _data_of(handle, part, name, row)
        if start is not None and _first_bytes(handle, part, row, start) in _MAGIC:
            yield decode(name)


def _without(part: Part, rows: list[int], refused: list[Refused]) -> Part:
    """The part without some of its entries."""
    keep = np.ones(len(part.bounds) - 1, bool)
    keep[rows] = False
    lengths = np.diff(part.bounds)
    names = np.frombuffer(part.names, np.uint8)[np.repeat(keep, lengths)]
    bounds = np.zeros(int(keep.sum()) + 1, np.int64)
    np.cumsum(lengths[keep], out=bounds[1:])
    return Part(
        names=bytearray(names.tobytes()),
        bounds=bounds,
        table={name: column[keep] for name, column in part.table.items()},
        refused=refused,
    )
