"""Tar archives, plain USTAR with constant times, owners and modes: equal files give equal bytes.

Writes to a file that it is given, in large pieces, and digests what it writes. Knows nothing of
samples.

Source: POSIX.1-1988 (USTAR), as in IEEE Std 1003.1, pax, "ustar Interchange Format".
"""

import errno
import hashlib
import os
from typing import BinaryIO

__all__ = ["NAMELESS", "TarWriter"]

_FLUSH = 1 << 20
"""Small enough to stay in a processor's cache from joining over digesting to writing. Bytes."""
_BLOCK = 512
_RECORD = 10240

_HEAD = b"0000644\0" + b"0000000\0" * 2
_TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
_MTIME = b"00000000000\0"
_BASE = sum(_HEAD) + sum(_MTIME) + 8 * 0x20 + sum(_TAIL)
_REMEMBERED = 50_000

_PADS = [bytes(-size % _BLOCK) for size in range(_BLOCK)]
"""What follows a payload, by its size modulo 512."""

NAMELESS = bytes(100) + _HEAD + b"0" * 11 + b"\0" + _MTIME + b" " * 6 + b"\0 " + _TAIL
"""A header without name, size and sum; where the sum will be, all but one of its blanks."""


class TarWriter:
    """A USTAR stream that is digested as it is written, in few large writes.

    Args:
        file: Unbuffered.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pieces: list[bytes] = []
        self._due = _FLUSH
        self._digest = hashlib.sha256()
        self._sizes: dict[int, tuple[bytes, int]] = {}
        self._sums: dict[int, bytes] = {}
        self.offset = 0
        """Bytes so far."""

    def add(self, name: bytes, data: bytes) -> int:
        """Append one file. Returns the offset of its first payload byte.

        Args:
            name: At most 100 bytes.
            data: Payload, under 8 GiB.
        """
        size = len(data)
        known = self._sizes.get(size)
        if known is None:
            known = self._size(size)
        digits, total = known
        total += sum(name)
        tail = self._sums.get(total)
        if tail is None:
            tail = self._sums[total] = b"%06o\0 " % total + _TAIL
        pad = _PADS[size % _BLOCK]
        self._pieces += (name.ljust(100, b"\0"), digits, tail, data, pad)
        start = self.offset + _BLOCK
        self.offset = stop = start + size + len(pad)
        if stop >= self._due:
            self._flush()
        return start

    def append(self, block: memoryview) -> None:
        """Append whole files, each with its header and padding, as they are.

        Args:
            block: A multiple of 512 bytes, or none. It is not kept.
        """
        self._flush()
        self._put(block)
        self.offset += len(block)
        self._due = self.offset + _FLUSH

    def finish(self) -> str:
        """Write the end of the archive. Returns the SHA-256 of all bytes."""
        end = 2 * _BLOCK
        end += -(self.offset + end) % _RECORD
        self._pieces.append(bytes(end))
        self.offset += end
        self._flush()
        return self._digest.hexdigest()

    def _size(self, size: int) -> tuple[bytes, int]:
        """What stands between name and checksum, and its share of the checksum."""
        digits = b"%011o" % size
        if len(self._sizes) >= _REMEMBERED:
            self._sizes.clear()
        known = _HEAD + digits + b"\0" + _MTIME, _BASE + sum(digits)
        self._sizes[size] = known
        return known

    def _flush(self) -> None:
        if self._pieces:
            self._put(memoryview(b"".join(self._pieces)))
            self._pieces.clear()
        self._due = self.offset + _FLUSH

    def _put(self, block: memoryview) -> None:
        self._digest.update(block)
        written = self._file.write(block)
        # A full disk may take a part, and say so only when asked again.
        while written < len(block):
            more = self._file.write(block[written:])
            if not more:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more
