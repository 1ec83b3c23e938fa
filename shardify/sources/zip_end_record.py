"""Locate a zip's central directory from its end record, zip64 included.

Reads the last bytes of a file only. A zip that different readers would read differently raises
ArchiveError. Must not import NumPy: it is imported before the workers start.

Source: PKWARE APPNOTE 6.3.10, sections 4.3.14 to 4.3.16.
"""

import re
import struct
from typing import NamedTuple

from shardify.errors import ArchiveError
from shardify.storage.readers import ReadHandle, pread

RECORD_SIZE = 46
"""Size of one entry in the directory, without its name, extra field and comment. Bytes."""
ALL_ONES = 0xFFFFFFFF
"""Placeholder for a number whose 64-bit value is in a zip64 field."""
MAX_ENTRIES = 20_000_000
MAX_DIRECTORY = 4 << 30

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


def read_at(handle: ReadHandle, offset: int, length: int) -> bytes:
    """Read ``length`` bytes, fewer at the end of the file; also over 2 GiB, pread's limit."""
    pieces = []
    while length:
        piece = pread(handle, min(length, 1 << 30), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Directory(NamedTuple):
    """Where a zip's central directory lies."""

    entries: int
    """Number of its entries; without zip64 possibly modulo 65,536."""
    begin: int
    """Its first byte."""
    length: int
    """Bytes."""
    shift: int
    """What must be added to its offsets: bytes prepended to the zip, or multiples of 4 GiB that
    have no room in 32 bits."""
    zip64: bool


def find_directory(handle: ReadHandle, total: int, path: str) -> Directory:
    """Locate the central directory.

    Args:
        handle: The zip.
        total: Its size. Bytes.
        path: Its name in an error.

    Raises:
        ArchiveError: It is not a zip, truncated, damaged, ambiguous or over a limit.
    """
    if total == 0:
        raise ArchiveError(f"{path}: an empty file (0 bytes); expected a zip; copy it again")
    reach = min(total, _END.size + 0xFFFF + _END64_LOCATOR.size)
    tail = read_at(handle, total - reach, reach)
    ends = []
    for match in re.finditer(b"PK\x05\x06", tail):
        start = match.start()
        comment = int.from_bytes(tail[start + 20 : start + 22], "little")
        if start + _END.size + comment == len(tail):
            ends.append(start)
    if not ends:
        if read_at(handle, 0, 4) in (b"PK\x03\x04", b"PK\x07\x08"):
            raise ArchiveError(
                f"{path}: a zip without its end (no central directory); it was cut, or bytes were "
                "added to it; copy or download it again"
            )
        raise ArchiveError(f"{path}: not a zip; expected one with a central directory at its end")
    if len(ends) > 1:
        raise ArchiveError(
            f"{path}: {len(ends)} end records, one hidden in another's comment; readers disagree "
            "about such a zip; pack it again"
        )
    end = ends[0]
    _, disk, first_disk, _, count, length, stated, _ = _END.unpack_from(tail, end)
    position = total - reach + end
    zip64 = None
    if end >= _END64_LOCATOR.size and tail[end - 20 : end - 16] == b"PK\x06\x07":
        zip64 = _read_zip64_record(handle, tail, end, position)
    if zip64 is not None:
        count, length, stated, position = zip64
    elif count == 0xFFFF or length == ALL_ONES or stated == ALL_ONES:
        raise ArchiveError(f"{path}: its zip64 end record is missing or damaged; copy it again")
    elif disk or first_disk:
        raise ArchiveError(f"{path}: one part of a zip split over several files; join them first")
    begin = position - length
    shift = begin - stated
    if begin < 0 or shift < 0 or length < count * RECORD_SIZE:
        raise ArchiveError(
            f"{path}: states a directory of {count} entries in {length} bytes at byte {stated}, "
            "which does not fit in; it was cut or damaged; copy it again"
        )
    if count > MAX_ENTRIES or length > MAX_DIRECTORY:
        raise ArchiveError(f"{path}: {count} entries; at most {MAX_ENTRIES} are taken; split it")
    return Directory(count, begin, length, shift, zip64 is not None)


def _read_zip64_record(
    handle: ReadHandle, tail: bytes, end: int, position: int
) -> tuple[int, int, int, int] | None:
    """Return entries, length, stated offset and end of the directory; None if it is damaged."""
    _, _, stated_at, disks = _END64_LOCATOR.unpack_from(tail, end - _END64_LOCATOR.size)
    locator = position - _END64_LOCATOR.size
    # Prepended bytes shift the record; without an extensible part it ends where the locator begins.
    for at in (stated_at, locator - _END64.size):
        if 0 <= at <= locator - _END64.size:
            record = read_at(handle, at, _END64.size)
            if len(record) == _END64.size and record.startswith(b"PK\x06\x06"):
                _, extent, _, _, disk, first_disk, _, count, length, stated = _END64.unpack(record)
                if disk or first_disk or disks > 1:
                    break
                if at + 12 + extent == locator:
                    return count, length, stated, at
    return None
