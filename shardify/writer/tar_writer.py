"""Write deterministic USTAR archives and compute their SHA-256.

Times, owners and modes are constant, so equal files give equal bytes.

Source: POSIX.1-1988 (USTAR), as in IEEE Std 1003.1, pax, "ustar Interchange Format".
"""

import errno
import hashlib
import os
from typing import BinaryIO

_FLUSH_BYTES = 1 << 20
"""Small enough to stay in the CPU cache while it is joined, hashed and written. Bytes."""
_BLOCK = 512
_RECORD = 10240

_MODE_AND_OWNER = b"0000644\0" + b"0000000\0" * 2
_HEADER_END = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
_MTIME = b"00000000000\0"
_BASE_CHECKSUM = sum(_MODE_AND_OWNER) + sum(_MTIME) + 8 * 0x20 + sum(_HEADER_END)
_MAX_CACHED_SIZES = 50_000

_PADDING = [bytes(-size % _BLOCK) for size in range(_BLOCK)]
"""Padding after a payload, by its size modulo 512."""

HEADER_TEMPLATE = (
    bytes(100) + _MODE_AND_OWNER + b"0" * 11 + b"\0" + _MTIME + b" " * 6 + b"\0 " + _HEADER_END
)
"""A tar header without name, size and checksum. The checksum field holds seven of its eight
spaces."""


class TarWriter:
    """Writes a USTAR archive in few large writes and computes its SHA-256.

    Args:
        file: Unbuffered binary file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pieces: list[bytes] = []
        self._flush_at = _FLUSH_BYTES
        self._digest = hashlib.sha256()
        self._sizes: dict[int, tuple[bytes, int]] = {}
        self._sums: dict[int, bytes] = {}
        self.offset = 0
        """Bytes added so far."""

    def add(self, name: bytes, data: bytes) -> int:
        """Append one file and return the offset of its first payload byte.

        Args:
            name: At most 100 bytes.
            data: Payload, under 8 GiB.
        """
        size = len(data)
        digits, total = self._sizes.get(size) or self._size_fields(size)
        total += sum(name)
        tail = self._sums.get(total)
        if tail is None:
            tail = self._sums[total] = b"%06o\0 " % total + _HEADER_END
        pad = _PADDING[size % _BLOCK]
        self._pieces += (name.ljust(100, b"\0"), digits, tail, data, pad)
        start = self.offset + _BLOCK
        self.offset = stop = start + size + len(pad)
        if stop >= self._flush_at:
            self._flush()
        return start

    def append(self, block: memoryview) -> None:
        """Append complete files, each with its header and padding.

        Args:
            block: A multiple of 512 bytes; may be empty. No reference is kept.
        """
        self._flush()
        self._write(block)
        self.offset += len(block)
        self._flush_at = self.offset + _FLUSH_BYTES

    def finish(self) -> str:
        """Write the end of the archive and return the SHA-256 of all bytes."""
        end = 2 * _BLOCK
        end += -(self.offset + end) % _RECORD
        self._pieces.append(bytes(end))
        self.offset += end
        self._flush()
        return self._digest.hexdigest()

    def _size_fields(self, size: int) -> tuple[bytes, int]:
        """Return the header fields between name and checksum, and their part of the checksum."""
        digits = b"%011o" % size
        if len(self._sizes) >= _MAX_CACHED_SIZES:
            self._sizes.clear()
        fields = _MODE_AND_OWNER + digits + b"\0" + _MTIME, _BASE_CHECKSUM + sum(digits)
        self._sizes[size] = fields
        return fields

    def _flush(self) -> None:
        if self._pieces:
            self._write(memoryview(b"".join(self._pieces)))
            self._pieces.clear()
        self._flush_at = self.offset + _FLUSH_BYTES

    def _write(self, block: memoryview) -> None:
        self._digest.update(block)
        written = self._file.write(block)
        # A full disk may accept a part and fail only at the next write.
        while written < len(block):
            more = self._file.write(block[written:])
            if not more:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more
