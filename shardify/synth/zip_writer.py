"""Write zips whose bytes depend on their entries only: fixed times, zip64 where it is needed.

Entries arrive compressed, because the workers do that.
Format: PKWARE APPNOTE 6.3, sections 4.3 and 4.5.3.
"""

import shutil
import struct
import zlib
from array import array
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

ZIP64_SIZE = 0xFFFFFFFF
"""Offsets and sizes from here on need zip64. Bytes."""

ZIP64_COUNT = 0xFFFF
"""From so many entries on, the end record needs zip64."""

_DATE = 1 << 5 | 1
"""1 January 1980, the earliest that a zip can say."""

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64 = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")
_DEFLATED, _UTF8 = 8, 1 << 11


class Packed(NamedTuple):
    """One file's content as it goes into a zip."""

    data: bytes
    """Raw deflate stream."""
    crc: int
    size: int
    """Bytes before compression."""


def compress_entry(content: bytes) -> Packed:
    """Deflate at zlib's default level."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(content) + deflate.flush()
    return Packed(data, zlib.crc32(content), len(content))


class Section:
    """A run of entries in a file of its own, so that several can grow side by side."""

    file: BinaryIO

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._names: list[bytes] = []
        self._crc, self._packed, self._size = array("I"), array("I"), array("I")

    def add(self, name: str, entry: Packed) -> None:
        """Append one entry. Names must be new to the zip; that is the caller's duty."""
        raw = name.encode()
        crc, packed, size = entry.crc, len(entry.data), entry.size
        self.file.write(
            _LOCAL.pack(0x04034B50, 20, _UTF8, _DEFLATED, 0, _DATE, crc, packed, size, len(raw), 0)
        )
        self.file.write(raw)
        self.file.write(entry.data)
        self._names.append(raw)
        self._crc.append(crc)
        self._packed.append(packed)
        self._size.append(size)

    def __len__(self) -> int:
        return len(self._names)

    def copy_to(self, out: BinaryIO) -> None:
        """Append all entries to ``out``."""
        self.file.seek(0)
        shutil.copyfileobj(self.file, out, 1 << 20)

    def write_directory(self, out: BinaryIO, offset: int, wide: int) -> int:
        """Append this section's part of the central directory.

        ``offset`` is where its first entry lies in the zip; zip64 is used from offset ``wide`` on.
        Bytes.

        Returns:
            Where the byte after the section's last entry lies.
        """
        for raw, crc, packed, size in zip(
            self._names, self._crc, self._packed, self._size, strict=True
        ):
            extra = struct.pack("<HHQ", 1, 8, offset) if offset >= wide else b""
            out.write(
                _CENTRAL.pack(
                    0x02014B50, 3 << 8 | (45 if extra else 20), 45 if extra else 20, _UTF8,
                    _DEFLATED, 0, _DATE, crc, packed, size, len(raw), len(extra), 0, 0, 0,
                    0o100644 << 16, ZIP64_SIZE if extra else offset,
                )
            )  # fmt: skip
            out.write(raw)
            out.write(extra)
            offset += _LOCAL.size + len(raw) + packed
        return offset


def write_directory(
    sections: Sequence[Section], *, wide: int = ZIP64_SIZE, many: int = ZIP64_COUNT
) -> int:
    """Make the first section's file the zip: append the others, the directory, the end records.

    Args:
        sections: In the order in which their entries shall stand. The first one's file holds
            nothing but its entries.
        wide: From which size or offset on zip64 is used. Bytes.
        many: From how many entries on zip64 is used.

    Returns:
        The zip's size. Bytes.
    """
    out = sections[0].file
    for section in sections[1:]:
        section.copy_to(out)
    start, offset = out.tell(), 0
    for section in sections:
        offset = section.write_directory(out, offset, wide)
    entries, end = sum(map(len, sections)), out.tell()
    if entries >= many or start >= wide or end - start >= wide:
        out.write(
            _END64.pack(0x06064B50, 44, 3 << 8 | 45, 45, 0, 0, entries, entries, end - start, start)
        )
        out.write(_LOCATOR.pack(0x07064B50, 0, end, 1))
        out.write(_END.pack(0x06054B50, 0, 0, ZIP64_COUNT, ZIP64_COUNT, ZIP64_SIZE, ZIP64_SIZE, 0))
    else:
        out.write(_END.pack(0x06054B50, 0, 0, entries, entries, end - start, start, 0))
    return out.tell()
