"""Pictures that begin as one seen before: told by that and by their end, in a fraction of the time.

An encoder gives all pictures of one size and quality the same header and the same tables. What is
left to check of such a one is its payload: here it is said where that begins, of a picture that
``images`` has parsed; ``kernel`` does the checking.
"""

import re

from shardify.images import Picture
from shardify.inflate import crc32

__all__ = ["beginning"]

_ENDING = re.compile(rb"\xff[^\x00]").search
_EOI = b"\xff\xd9"
_IHDR = 33
"""Signature and header chunk of a PNG. Bytes."""
_IEND = b"\0\0\0\0IEND\xaeB`\x82"


def beginning(data: bytes, picture: Picture) -> int:
    """How many bytes tell what a picture is, if all that follows is its payload and its end.

    Args:
        data: A whole picture.
        picture: What ``images.parse`` made of it.

    Returns:
        0 where there is more in it, such as another scan, a palette, or bytes behind the end: it
        says nothing of its likes.
    """
    if picture.kind == "jpg":
        start = _scan_of(data)
        return start if _is_whole_jpeg(data, start) else 0
    return _IHDR if picture.kind == "png" and _is_whole_png(data, _IHDR) else 0


def _scan_of(data: bytes) -> int:
    """Where the first scan's data begin in a JPEG that was parsed."""
    at = 2
    while True:
        if data[at + 1] == 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:
            return at


def _is_whole_jpeg(data: bytes, start: int) -> bool:
    """Whether the rest is one scan and the end marker: in a scan 0xFF stands before 0 only."""
    end = _ENDING(data, start)
    return end is not None and end.start() == len(data) - 2 > start and data.endswith(_EOI)


def _is_whole_png(data: bytes, start: int) -> bool:
    """Whether the rest is one chunk of pixels, with its checksum, and the end chunk."""
    size = len(data) - start - 12 - len(_IEND)
    return (
        size > 0
        and data.startswith(b"IDAT", start + 4)
        and data.endswith(_IEND)
        and int.from_bytes(data[start : start + 4], "big") == size
        and crc32(data[start + 4 : -16]) == int.from_bytes(data[-16:-12], "big")
    )
