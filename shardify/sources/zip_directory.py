"""Parse a zip's central directory into NumPy columns, and check it before any payload is read.

Parses zip64 too; about ten times faster and smaller than ``zipfile``: 1.2 million entries take 60
MB of arrays beside the directory's own bytes. Detects entries over a limit, overlaps, hostile and
duplicate names, links and devices.

Source: PKWARE APPNOTE 6.3.10, sections 4.3 (layout) and 4.5.3 (zip64).
"""

import hashlib
import stat
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ArchiveError
from shardify.sources.entry_names import (
    JoinedNames,
    any_hostile,
    clean_names,
    decode,
    is_hostile,
    select_names,
)
from shardify.sources.zip_end_record import (
    ALL_ONES,
    RECORD_SIZE,
    Directory,
    find_directory,
    read_at,
)
from shardify.storage.readers import ReadHandle
from shardify.zlib_backend import crc32

_CHUNK_ENTRIES = 1 << 16
_NARROW = 1 << 32
"""Offsets without zip64 are modulo this."""
_MAX_EXTRA_FIELDS = 16
"""Fields of one entry among which its Unicode name is looked for."""
_PROBED_HEADERS = 64
"""Local headers that are looked at to prove that offsets were unwrapped rightly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedEntry:
    """An entry that is not part of the catalog, and the reason."""

    member: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Selection:
    """The regular files with harmless, unique names."""

    rows: NDArray[np.int64]
    names: JoinedNames
    """Names of the selected entries as they are used, clean."""
    stored: JoinedNames | None
    """Names as the zip has them; None if all are clean."""
    refused: list[RefusedEntry]
    """The refused entries, without folders."""
    doubled: int
    """Number of entries left out because an equal one is selected."""


def _select_regular_files(
    directory: bytes,
    kinds: NDArray[Any],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    content: NDArray[np.uint64],
    fault: NDArray[np.uint8],
    unicode_names: dict[int, bytes],
) -> _Selection:
    """Select the regular files with harmless, unique names.

    Args:
        directory: The central directory.
        kinds: (N,) Unix file type of each entry, 0 where it is unknown.
        start: (N,) first byte of its name in the directory.
        end: (N,) end of its name.
        content: (N,) its size and CRC.
        fault: (N,) key of ``FAULTS`` or 0.
        unicode_names: Row -> name in UTF-8, of those with such an extra field.
    """
    count = len(kinds)
    keep = np.ones(count, bool)
    reasons: dict[int, str] = {}
    hashes = np.empty(count, np.int64)
    stored = bytearray()
    changed: list[tuple[slice, list[bytes]]] = []
    for row in np.flatnonzero(start == end).tolist():
        reasons[row] = "has no name"
    for first in range(0, count, _CHUNK_ENTRIES):
        chunk = slice(first, first + _CHUNK_ENTRIES)
        names = _slices(directory, start[chunk], end[chunk])
        stored += b"".join(names)
        replaced = unicode_names.keys() & range(first, first + len(names))
        for row in replaced:
            names[row - first] = unicode_names[row]
        cleaned = clean_names(names)
        if replaced or cleaned is not None:
            names = cleaned or names
            changed.append((chunk, names))
        hashes[first : first + len(names)] = np.fromiter(map(hash, names), np.int64, len(names))
        lines = b"\n%b\n" % b"\n".join(names)
        if (
            b"/\n" in lines
            or b"\n\n" in lines
            or lines.count(b"\n") != len(names) + 1
            or any_hostile(lines[1:-1])
        ):
            for row, name in enumerate(names, first):
                if not name or name.endswith(b"/"):
                    keep[row] = False
                elif is_hostile(name):
                    reasons[row] = "its name climbs out, names a drive, or has control characters"
    for row in np.flatnonzero(~np.isin(kinds, (0, stat.S_IFREG, stat.S_IFDIR))).tolist():
        kind = "a link" if kinds[row] == stat.S_IFLNK else "a device or pipe"
        reasons.setdefault(row, f"is {kind}, not a file")
    keep[list(reasons)] = False
    doubled, differing = _find_doubled(hashes, keep, content, fault)
    for row in differing.tolist():
        reasons[row] = "its name stands twice in the zip, with different content"
    keep[doubled] = keep[differing] = False
    own: JoinedNames = (stored, np.append(0, np.cumsum(end - start)))
    clean = _replace_names(own, changed) if changed else own
    refused = [
        RefusedEntry(member=_name(clean, row), reason=reason)
        for row, reason in sorted(reasons.items())
    ]
    rows = np.flatnonzero(keep)
    if len(rows) < count:
        own, clean = (
            select_names(own, rows),
            select_names(clean, rows) if changed else own,
        )
    return _Selection(
        rows=rows,
        names=clean if changed else own,
        stored=own if changed else None,
        refused=refused,
        doubled=len(doubled),
    )


def _replace_names(own: JoinedNames, changed: list[tuple[slice, list[bytes]]]) -> JoinedNames:
    """Return the names with some slices of them replaced."""
    block, bounds = own
    lengths = np.diff(bounds)
    clean, done = bytearray(), 0
    for chunk, names in changed:
        clean += block[int(bounds[done]) : int(bounds[chunk.start])]
        clean += b"".join(names)
        done = chunk.start + len(names)
        lengths[chunk] = np.fromiter(map(len, names), np.int64, len(names))
    clean += block[int(bounds[done]) :]
    return clean, np.append(0, np.cumsum(lengths))


def _find_doubled(
    hashes: NDArray[np.int64],
    keep: NDArray[np.bool_],
    content: NDArray[np.uint64],
    fault: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows whose name stands more than once.

    Of those with the same content the last is taken, as ``unzip`` does.

    Returns:
        Rows that repeat one that is taken, and rows of which none is taken.
    """
    none = np.zeros(0, np.int64)
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return none, none
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    is_first = np.append(True, np.diff(hashes[rows]) != 0)
    starts = np.flatnonzero(is_first)
    if len(starts) == len(rows):
        return none, none
    group = np.cumsum(is_first) - 1
    least, most = (each.reduceat(content[rows], starts) for each in (np.minimum, np.maximum))
    equal = (least == most)[group]
    # The last one, but rather one without a fault.
    rank = rows + np.where(fault[rows] == 0, len(hashes), 0)
    taken = rank == np.maximum.reduceat(rank, starts)[group]
    single = np.diff(starts, append=len(rows))[group] == 1
    return rows[equal & ~taken], rows[~equal & ~single]


def _name(names: JoinedNames, row: int) -> str:
    block, bounds = names
    return decode(block[int(bounds[row]) : int(bounds[row + 1])])


def _slices(directory: bytes, low: NDArray[np.int64], high: NDArray[np.int64]) -> list[bytes]:
    """Return the bytes between each of N pairs of ``low`` and ``high``."""
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [directory[start:end] for start, end in pairs]


MAX_ENTRY = 256 << 20
"""Largest unpacked payload that is accepted. Bytes."""
MAX_RATIO = 1032
"""Deflate cannot expand data by more than this factor; an entry that states more is wrong."""
BOMB_RATIO, BOMB_BYTES = 200, 1 << 30
"""A zip that unpacks to more than both, ratio and bytes, is refused."""

FAULTS = {
    1: "encrypted",
    2: "compressed with a method other than deflate or none",
    3: f"larger than {MAX_ENTRY >> 20} MiB unpacked",
    4: "states a size that its packed bytes cannot unpack to",
    5: "empty (0 bytes)",
    6: "lies beyond the end of the zip",
}
"""Reasons for ``rejected.jsonl`` by the value of column ``fault``; 0 is no fault."""

_CENTRAL = np.dtype(
    [
        ("signature", "<u4"), ("made", "<u2"), ("need", "<u2"), ("flags", "<u2"),
        ("method", "<u2"), ("time", "<u2"), ("date", "<u2"), ("crc", "<u4"), ("packed", "<u4"),
        ("size", "<u4"), ("name", "<u2"), ("extra", "<u2"), ("comment", "<u2"), ("disk", "<u2"),
        ("internal", "<u2"), ("attributes", "<u4"), ("offset", "<u4"),
    ]
)  # fmt: skip
_SIGNATURE = int.from_bytes(b"PK\x01\x02", "little")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntries:
    """The entries of one source, before they join those of others."""

    names: JoinedNames
    """All names as they are used: UTF-8 (NFC) where they can be decoded, and clean."""
    stored: JoinedNames | None = None
    """The names as the zip or folder has them; None if they are the same."""
    table: dict[str, NDArray[Any]]
    """The columns of ``Entries`` except ``source``."""
    refused: list[RefusedEntry]
    doubled: int = 0
    """Entries that stood more than once with the same content, and are taken once."""

    def __len__(self) -> int:
        return len(self.names[1]) - 1

    def name(self, row: int) -> str:
        """Return the name of one entry as it is used."""
        return _name(self.names, row)

    def stored_name(self, row: int) -> bytes:
        """Return the name of one entry as the zip or folder has it."""
        block, bounds = self.stored or self.names
        return bytes(block[int(bounds[row]) : int(bounds[row + 1])])

    def select(self, rows: NDArray[Any], refused: list[RefusedEntry]) -> "SourceEntries":
        """Return some of the entries."""
        return SourceEntries(
            names=select_names(self.names, rows),
            stored=select_names(self.stored, rows) if self.stored else None,
            table={name: column[rows] for name, column in self.table.items()},
            refused=refused,
            doubled=self.doubled,
        )


def read_zip(handle: ReadHandle, total: int, path: str) -> tuple[int, str, SourceEntries]:
    """Read the central directory of an open zip.

    Args:
        handle: The zip.
        total: Its size. Bytes.
        path: Its name in an error.

    Returns:
        Number of entries in the directory, its SHA-256, and the entries.

    Raises:
        ArchiveError: It is not a zip, truncated or over a limit, or its entries overlap.
    """
    found = find_directory(handle, total, path)
    directory = read_at(handle, found.begin, found.length)
    if len(directory) != found.length:
        raise ArchiveError(f"{path}: shrank while it was read; copy it again")
    places = _walk(directory, found, path)
    part = _parse_entries(handle, directory, places, found, path)
    return len(places), hashlib.sha256(directory).hexdigest(), part


def _parse_entries(
    handle: ReadHandle, directory: bytes, places: NDArray[np.int64], found: Directory, path: str
) -> SourceEntries:
    """Parse and check the records that begin at ``places``."""
    count, begin = len(places), found.begin
    window = np.lib.stride_tricks.as_strided(
        np.frombuffer(directory, np.uint8),
        (max(0, len(directory) - RECORD_SIZE + 1), RECORD_SIZE),
        (1, 1),
        writeable=False,
    )
    heads = np.empty(count, _CENTRAL)
    for first in range(0, count, _CHUNK_ENTRIES):
        rows = window[places[first : first + _CHUNK_ENTRIES]]
        heads[first : first + _CHUNK_ENTRIES] = rows.view(_CENTRAL)[:, 0]
    offset, packed, size = (heads[name].astype(np.int64) for name in ("offset", "packed", "size"))
    _apply_zip64(directory, heads, places, offset, packed, size, path)
    if not _unwrap(handle, offset, found, path):
        offset += found.shift
    start = places + RECORD_SIZE
    end = start + heads["name"]
    unicode_names = _unicode_names(directory, start, end, heads["extra"])

    # Every entry must end before the next one in the file begins.
    order = np.argsort(offset, kind="stable")
    limit = np.empty(count, np.int64)
    limit[order] = np.append(offset[order][1:], begin)[:count]
    np.minimum(limit, begin, out=limit)
    least = offset + 30 + heads["name"] + packed
    if count and (int(offset.min()) < 0 or bool(np.any((least > limit) & (limit < begin)))):
        raise ArchiveError(
            f"{path}: entries overlap, as in a zip bomb; each must have its own bytes; "
            "pack it again"
        )
    total = int(np.minimum(size, 1 << 50).sum())
    if total > BOMB_BYTES and total > BOMB_RATIO * max(1, begin):
        raise ArchiveError(
            f"{path}: unpacks to {total} bytes, over {BOMB_RATIO} times its own size, as a zip "
            "bomb does; refused"
        )

    fault = np.zeros(count, np.uint8)
    fault[size == 0] = 5
    stored, deflated = heads["method"] == 0, heads["method"] == 8
    fault[(deflated & (size > packed * MAX_RATIO)) | (stored & (size != packed))] = 4
    fault[size > MAX_ENTRY] = 3
    fault[~stored & ~deflated] = 2
    fault[(heads["flags"] & 0x2041) != 0] = 1
    fault[least > limit] = 6

    del stored, deflated, least, order, places
    crc, method = heads["crc"].astype(np.uint32), heads["method"].astype(np.uint16)
    kinds = np.where(heads["made"] >> 8 == 3, heads["attributes"] >> 16 & 0o170000, 0)
    content = size.astype(np.uint64) << np.uint64(32) | crc
    del heads  # With a million entries each of these is 10 to 60 MB.
    selected = _select_regular_files(directory, kinds, start, end, content, fault, unicode_names)
    table: dict[str, NDArray[Any]] = {
        "offset": offset, "limit": limit, "packed": packed, "size": size, "crc": crc,
        "fault": fault, "method": method,
    }  # fmt: skip
    if len(selected.rows) < count:
        for name in table:
            table[name] = table[name][selected.rows]
    return SourceEntries(
        names=selected.names,
        stored=selected.stored,
        table=table,
        refused=selected.refused,
        doubled=selected.doubled,
    )


def _walk(directory: bytes, found: Directory, path: str) -> NDArray[np.int64]:
    """Return the first byte of each record; vectorised.

    The number of records must be the one that the end record states. That of macOS's Archive
    Utility is modulo 65,536; there, the records must fill the directory to its last byte.
    """
    count = found.entries
    damaged = ArchiveError(
        f"{path}: its central directory is damaged (it does not hold the {count} entries that it "
        "states); copy it again"
    )
    starts = _signatures(directory)
    starts = starts[starts <= len(directory) - RECORD_SIZE]
    if not len(starts):
        if count or len(directory):
            raise damaged
        return starts
    raw = np.frombuffer(directory, np.uint8)
    ends = starts + RECORD_SIZE
    for field in (28, 30, 32):  # The lengths of name, extra field and comment.
        ends += raw[starts + field].astype(np.int64)
        ends += raw[starts + field + 1].astype(np.int64) << 8
    if starts[0] != 0:
        raise damaged
    if not np.array_equal(ends[:-1], starts[1:]):
        # A signature inside a name, extra field or comment: follow the records one by one.
        position = np.searchsorted(starts, ends)
        has_next = (np.append(starts, -1)[np.minimum(position, len(starts))] == ends).tolist()
        following = position.tolist()
        chain, record = [0], 0
        while has_next[record]:
            record = following[record]
            chain.append(record)
        starts, ends = starts[chain], ends[chain]
    wrapped = (
        not found.zip64
        and len(starts) > count
        and (len(starts) - count) % 0x10000 == 0
        and int(ends[-1]) == len(directory)
    )
    if (len(starts) != count and not wrapped) or int(ends[-1]) > len(directory):
        raise damaged
    return starts


def _unwrap(handle: ReadHandle, offset: NDArray[np.int64], found: Directory, path: str) -> bool:
    """Add to each offset the multiples of 4 GiB that it lacks, in place.

    macOS's Archive Utility writes zips over 4 GiB without zip64 records. Its entries stand in the
    order of their offsets, so an offset less than the one before has passed 4 GiB.

    Returns:
        False if this is not such a zip.

    Raises:
        ArchiveError: It is one, but its local headers are not where that says.
    """
    if found.zip64 or not found.shift or found.shift % _NARROW or not len(offset):
        return False
    if _has_header(handle, int(offset[0]) + found.shift):
        return False  # 4 GiB were prepended.
    turns = np.cumsum(np.diff(offset, prepend=offset[0]) < 0)
    offset += turns * _NARROW
    edges = np.flatnonzero(np.diff(turns))
    rows = np.linspace(0, len(offset) - 1, _PROBED_HEADERS).astype(np.int64)
    rows = np.unique(np.concatenate([rows, edges[:_PROBED_HEADERS], edges[:_PROBED_HEADERS] + 1]))
    if int(offset[-1]) >= found.begin or not all(
        _has_header(handle, at) for at in offset[rows].tolist()
    ):
        raise ArchiveError(
            f"{path}: a zip over 4 GiB without zip64 records, as macOS's Archive Utility writes, "
            "and its entries are not where its directory says; pack it again with `zip -r`"
        )
    return True


def _has_header(handle: ReadHandle, at: int) -> bool:
    return read_at(handle, at, 4) == b"PK\x03\x04"


def _unicode_names(
    directory: bytes, start: NDArray[np.int64], end: NDArray[np.int64], extra: NDArray[Any]
) -> dict[int, bytes]:
    """Return row -> name of the entries with a valid Unicode path field (0x7075).

    Source: APPNOTE 4.6.9. The field counts if it has the CRC of the stored name.
    """
    names: dict[int, bytes] = {}
    raw = np.frombuffer(directory, np.uint8)
    rows = np.flatnonzero(extra > 9)
    at, stop = end[rows], end[rows] + extra[rows]
    for _ in range(_MAX_EXTRA_FIELDS):
        inside = at + 4 <= stop
        rows, at, stop = rows[inside], at[inside], stop[inside]
        if not len(rows):
            break
        tag, size = (raw[at + n] | raw[at + n + 1].astype(np.int64) << 8 for n in (0, 2))
        fits = (tag == 0x7075) & (size > 5) & (at + 4 + size <= stop)
        for place in np.flatnonzero(fits).tolist():
            row, begin = int(rows[place]), int(at[place]) + 4
            field = directory[begin : begin + int(size[place])]
            stored = directory[int(start[row]) : int(end[row])]
            if field[0] == 1 and field[1:5] == crc32(stored).to_bytes(4, "little"):
                names[row] = field[5:]
        at = at + 4 + size
    return names


def _extra_field(directory: bytes, at: int, length: int, wanted: int) -> bytes:
    """Return the content of one extra field; empty if it is not there."""
    stop = at + length
    while at + 4 <= stop:
        tag, size = struct.unpack_from("<2H", directory, at)
        if tag == wanted:
            return directory[at + 4 : min(stop, at + 4 + size)]
        at += 4 + size
    return b""


def _signatures(directory: bytes) -> NDArray[np.int64]:
    """Return every position of a record's signature, also of those inside a name or field."""
    positions = [np.empty(0, np.int64)]
    for shift in range(min(4, len(directory) - 3)):
        words = np.frombuffer(directory, "<u4", (len(directory) - shift) // 4, shift)
        positions.append(np.flatnonzero(words == _SIGNATURE) * 4 + shift)
    return np.sort(np.concatenate(positions))


def _apply_zip64(
    directory: bytes,
    heads: NDArray[Any],
    places: NDArray[np.int64],
    offset: NDArray[np.int64],
    packed: NDArray[np.int64],
    size: NDArray[np.int64],
    path: str,
) -> None:
    """Replace placeholders by the values of the zip64 extra fields, in place."""
    wide = (size == ALL_ONES) | (packed == ALL_ONES) | (offset == ALL_ONES)
    for row in np.flatnonzero(wide).tolist():
        at = int(places[row]) + RECORD_SIZE + int(heads["name"][row])
        field = _extra_field(directory, at, int(heads["extra"][row]), 1)
        for column in (size, packed, offset):
            if column[row] == ALL_ONES and len(field) >= 8:
                value = int.from_bytes(field[:8], "little")
                if value >= 1 << 62:
                    raise ArchiveError(f"{path}: an entry of {value} bytes; it is damaged")
                column[row] = value
                field = field[8:]
