"""Pictures that begin as one seen before: told by that and by their end, in a fraction of the time.

An encoder gives all pictures of one size and quality the same header and the same tables. What is
left to check of such a one is its payload. Nothing is refused here: what is not recognised is
parsed by ``images``, which says what is wrong with it.
"""

import re
from collections.abc import Callable

from shardify.images import Picture, parse
from shardify.inflate import crc32

__all__ = ["Beginnings"]

_KNOWN = 8
_ENDING = re.compile(rb"\xff[^\x00]").search
_EOI = b"\xff\xd9"
_IHDR = 33
"""Signature and header chunk of a PNG. Bytes."""
_IEND = b"\0\0\0\0IEND\xaeB`\x82"


class Beginnings:
    """How some pictures began, such as those of one role."""

    def __init__(self) -> None:
        self._known: list[tuple[bytes, Callable[[bytes, int], bool], Picture]] = []

    def parse(self, data: bytes) -> Picture:
        """As ``images.parse``: the same answer, the same errors."""
        for head, is_whole, picture in self._known:
            if data.startswith(head):
                if is_whole(data, len(head)):
                    return picture
                break
        picture = parse(data)
        if picture.kind == "jpg":
            self._remember(data[: _scan_of(data)], _is_whole_jpeg, data, picture)
        elif picture.kind == "png":
            self._remember(data[:_IHDR], _is_whole_png, data, picture)
        return picture

    def _remember(
        self, head: bytes, is_whole: Callable[[bytes, int], bool], data: bytes, picture: Picture
    ) -> None:
        # One with more in it, such as another scan or a palette, says nothing of its likes.
        if is_whole(data, len(head)):
            self._known = [(head, is_whole, picture), *self._known][:_KNOWN]


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
