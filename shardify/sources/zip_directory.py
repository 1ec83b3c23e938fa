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
from shardify.sources.entry_names import any_hostile, decode, is_hostile
from shardify.sources.zip_end_record import ALL_ONES, RECORD_SIZE, find_directory, read_at
from shardify.storage.readers import ReadHandle

__all__ = [
    "FAULTS",
    "MAX_ENTRY",
    "RefusedEntry",
    "SourceEntries",
    "read_zip",
    "select_regular_files",
]


_CHUNK_ENTRIES = 1 << 16
_SEPARATORS = (ord("/"), ord("\\"))


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedEntry:
    """An entry that is not part of the catalog, and the reason."""

    member: str
    reason: str


def select_regular_files(
    directory: bytes, kinds: NDArray[Any], start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[RefusedEntry], bytearray]:
    """Select the regular files with harmless, unique names.

    Args:
        directory: The central directory.
        kinds: (N,) Unix file type of each entry, 0 where it is unknown.
        start: (N,) first byte of its name in the directory.
        end: (N,) end of its name.

    Returns:
        Rows of the selected entries; the refused ones, without folders; the names of all N entries,
        joined.
    """
    count = len(kinds)
    keep = np.ones(count, bool)
    reasons: dict[int, str] = {}
    hashes = np.empty(count, np.int64)
    block = bytearray()
    raw = np.frombuffer(directory, np.uint8)
    for first in range(0, count, _CHUNK_ENTRIES):
        low, high = start[first : first + _CHUNK_ENTRIES], end[first : first + _CHUNK_ENTRIES]
        names = _slices(directory, low, high)
        block += b"".join(names)
        hashes[first : first + len(names)] = np.fromiter(map(hash, names), np.int64, len(names))
        lines = b"\n".join(names)
        if b"\\" in lines:
            lines = lines.replace(b"\\", b"/")
        if (
            (low == high).any()
            or np.isin(raw[high - 1], _SEPARATORS).any()
            or lines.count(b"\n") != len(names) - 1
            or any_hostile(lines)
        ):
            for row, name in enumerate(names, first):
                if not name:
                    reasons[row] = "has no name"
                elif is_hostile(name):
                    reasons[row] = "its name is absolute, climbs out, or has control characters"
                elif name.endswith((b"/", b"\\")):
                    keep[row] = False
    for row in np.flatnonzero(~np.isin(kinds, (0, stat.S_IFREG, stat.S_IFDIR))).tolist():
        kind = "a link" if kinds[row] == stat.S_IFLNK else "a device or pipe"
        reasons.setdefault(row, f"is {kind}, not a file")
    sorted_hashes = np.sort(hashes)
    if (sorted_hashes[1:] == sorted_hashes[:-1]).any():
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        seen: dict[bytes, list[int]] = {}
        for row in np.unique(order[np.concatenate((same, same + 1))]).tolist():
            if keep[row]:
                seen.setdefault(directory[int(start[row]) : int(end[row])], []).append(row)
        for rows in seen.values():
            if len(rows) > 1:
                for row in rows:
                    reasons.setdefault(row, "its name stands twice in the zip")
    keep[list(reasons)] = False
    refused = [
        RefusedEntry(member=decode(directory[int(start[row]) : int(end[row])]), reason=reason)
        for row, reason in sorted(reasons.items())
    ]
    return np.flatnonzero(keep), refused, block


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
_BOUNDS = ("start", "end")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntries:
    """The entries of one source, before they join those of others."""

    names: bytearray
    """All names, joined."""
    bounds: NDArray[np.int64]
    """(N + 1,): start of each name, and end of the last."""
    table: dict[str, NDArray[Any]]
    """The columns of ``Entries`` except ``source``."""
    refused: list[RefusedEntry]


def read_zip(handle: ReadHandle, total: int, path: str) -> tuple[int, str, SourceEntries]:
    """Read the central directory of an open zip.

    Args:
        handle: The zip.
        total: Its size. Bytes.
        path: Its name in an error.

    Returns:
        Entry count that the directory states, its SHA-256, and the entries.

    Raises:
        ArchiveError: It is not a zip, truncated or over a limit, or its entries overlap.
    """
    count, begin, length, shift = find_directory(handle, total, path)
    directory = read_at(handle, begin, length)
    if len(directory) != length:
        raise ArchiveError(f"{path}: shrank while it was read; copy it again")
    table, refused, names = _columns(directory, count, begin, shift, path)
    start, end = table.pop("start"), table.pop("end")
    bounds = np.zeros(len(start) + 1, np.int64)
    np.cumsum(end - start, out=bounds[1:])
    part = SourceEntries(names=names, bounds=bounds, table=table, refused=refused)
    return count, hashlib.sha256(directory).hexdigest(), part


def _columns(
    directory: bytes, count: int, begin: int, shift: int, path: str
) -> tuple[dict[str, NDArray[Any]], list[RefusedEntry], bytearray]:
    places = _walk(directory, count, path)
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
    offset += shift
    start = places + RECORD_SIZE
    end = start + heads["name"]

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
    del heads  # With a million entries each of these is 10 to 60 MB.
    keep, refused, names = select_regular_files(directory, kinds, start, end)
    table: dict[str, NDArray[Any]] = {
        "offset": offset, "limit": limit, "packed": packed, "size": size, "crc": crc,
        "fault": fault, "method": method, "start": start, "end": end,
    }  # fmt: skip
    if len(keep) < count:
        for name in table:
            table[name] = table[name][keep]
        names = bytearray().join(
            b"".join(
                _slices(
                    directory, *(table[edge][first : first + _CHUNK_ENTRIES] for edge in _BOUNDS)
                )
            )
            for first in range(0, len(keep), _CHUNK_ENTRIES)
        )
    return table, refused, names


def _walk(directory: bytes, count: int, path: str) -> NDArray[np.int64]:
    """Return the first byte of each of the ``count`` records; vectorised."""
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
    if not (len(starts) == count and np.array_equal(ends[:-1], starts[1:])):
        # A signature inside a name, extra field or comment: follow the records one by one.
        position = np.searchsorted(starts, ends)
        has_next = (np.append(starts, -1)[np.minimum(position, len(starts))] == ends).tolist()
        following = position.tolist()
        chain, record = [0], 0
        while has_next[record] and len(chain) <= count:
            record = following[record]
            chain.append(record)
        if len(chain) != count:
            raise damaged
        starts, ends = starts[chain], ends[chain]
    if int(ends[-1]) > len(directory):
        raise damaged
    return starts


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
        stop = at + int(heads["extra"][row])
        field = b""
        while at + 4 <= stop:
            tag, length = struct.unpack_from("<2H", directory, at)
            if tag == 1:
                field = directory[at + 4 : min(stop, at + 4 + length)]
                break
            at += 4 + length
        for column in (size, packed, offset):
            if column[row] == ALL_ONES and len(field) >= 8:
                value = int.from_bytes(field[:8], "little")
                if value >= 1 << 62:
                    raise ArchiveError(f"{path}: an entry of {value} bytes; it is damaged")
                column[row] = value
                field = field[8:]
