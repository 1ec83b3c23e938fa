"""Parse an image's structure from header to end marker, without decoding pixels.

JPEG and PNG are parsed completely: enough to be sure that the file holds a whole picture of the
stated size. Of other formats (``formats``) only the header is read and the size limited.

Sources: ITU-T T.81 annex B (JPEG), ISO/IEC 15948 (PNG), CIPA DC-008 (EXIF).
"""

import re
from typing import NamedTuple

from shardify.errors import ImageError
from shardify.zlib_backend import crc32

MASK_THRESHOLD = 150
"""A mask's pixel is object if its 8-bit value is at least this."""

MAX_PIXELS = 1 << 26
"""Largest width times height. A header that states more is refused before any decoding."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


class ImageInfo(NamedTuple):
    """Format and size of a picture, from its header."""

    kind: str
    """``jpg`` or ``png``: also its extension in a shard; or a kind of ``formats``, which is
    converted."""
    width: int
    """Of the stored pixels, before an EXIF orientation is applied."""
    height: int
    channels: int
    """1 gray, 2 gray and alpha, 3 colour (or a palette), 4 colour and alpha or CMYK."""
    bits: int
    """Of one channel."""
    trait: str = ""
    """Why it must be converted: ``palette``, ``alpha``, ``CMYK``, ``rotated``; else empty."""
    orientation: int = 1
    """EXIF orientation: 2 to 8 if the picture is shown otherwise than its pixels are stored."""


def parse(data: bytes) -> ImageInfo:
    """Parse a picture's structure.

    Checks of a JPEG: the chain of segments, one frame, scan data, the end marker. Of a PNG: the
    chain of chunks with each CRC, IHDR first, IDAT, IEND. Bytes after the end are allowed.

    Raises:
        ImageError: Not a picture of a known format, truncated, damaged, or larger than
            ``MAX_PIXELS``. The message is only the reason.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _parse_jpeg(data)
    if data.startswith(_PNG):
        return _parse_png(data)
    # Most workers meet no other format, and start faster without its libraries.
    from shardify.images.formats import read_header

    return checked_info(*read_header(data))


def checked_info(
    kind: str,
    width: int,
    height: int,
    channels: int,
    bits: int,
    trait: str = "",
    orientation: int = 1,
) -> ImageInfo:
    """Return a picture's header. Raises ImageError if it is empty or over ``MAX_PIXELS``."""
    if not width or not height:
        raise ImageError(f"a picture of {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(f"over the limit of {MAX_PIXELS >> 20} megapixels")
    return ImageInfo(kind, width, height, channels, bits, trait, orientation)


def _parse_jpeg(data: bytes) -> ImageInfo:
    found: ImageInfo | None = None
    orientation = 1
    scans = 0
    at = 2
    length = len(data)
    while True:
        # A marker may be preceded by any number of fill bytes.
        if at + 4 > length:
            if data[at : at + 2] == b"\xff\xd9":
                break
            raise ImageError("truncated JPEG (no end marker)")
        if data[at] != 0xFF:
            raise ImageError("damaged JPEG (no marker where one must be)")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8 or marker == 0x00:
            raise ImageError("damaged JPEG (a marker out of place)")
        size = data[at + 2] << 8 | data[at + 3]
        if size < 2 or at + 2 + size > length:
            raise ImageError("truncated JPEG (a segment runs over the end)")
        if marker in _FRAMES:
            if found is not None or size < 11:
                raise ImageError("damaged JPEG (its frame header is wrong)")
            found = _frame(data, at, size)
        elif marker in _OTHER_FRAMES:
            raise ImageError("a lossless, hierarchical or arithmetic JPEG, which is not taken")
        elif marker == 0xE1 and orientation == 1:
            orientation = _exif_orientation(data[at + 4 : at + 2 + size])
        at += 2 + size
        if marker == 0xDA:
            if found is None:
                raise ImageError("damaged JPEG (a scan before its frame)")
            scans += 1
            match = _MARKER.search(data, at)
            if match is None:
                raise ImageError("truncated JPEG (no end marker)")
            if match.start() == at:
                raise ImageError("damaged JPEG (an empty scan)")
            at = match.start()
    if found is None or not scans:
        raise ImageError("damaged JPEG (no picture in it)")
    if orientation > 1:
        found = found._replace(trait="rotated", orientation=orientation)
    return found


def _frame(data: bytes, at: int, size: int) -> ImageInfo:
    bits, channels = data[at + 4], data[at + 9]
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    if bits != 8:
        raise ImageError(f"a JPEG of {bits} bits a channel, which is not taken")
    if channels not in (1, 3, 4) or size != 8 + 3 * channels:
        raise ImageError(f"a JPEG of {channels} channels, which is not taken")
    return checked_info("jpg", width, height, channels, 8, "CMYK" if channels == 4 else "")


def _exif_orientation(segment: bytes) -> int:
    """Return the orientation that an EXIF segment states, 1 to 8; 1 if it states none."""
    if not segment.startswith(b"Exif\x00\x00"):
        return 1
    block = segment[6:]
    if block[:2] not in (b"II", b"MM"):
        return 1
    order: str = "little" if block[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)  # type: ignore[arg-type]

    first = number(4, 4)
    for entry in range(min(number(first, 2), 200)):
        at = first + 2 + 12 * entry
        if number(at, 2) == 0x0112:
            stated = number(at + 8, 2)
            return stated if stated in range(2, 9) else 1
    return 1


def _parse_png(data: bytes) -> ImageInfo:
    length = len(data)
    if length < 33 or data[8:16] != b"\x00\x00\x00\rIHDR":
        raise ImageError("damaged PNG (no header)")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits, colour = data[24], data[25]
    if bits not in _DEPTHS.get(colour, ()) or data[26] or data[27] or data[28] > 1:
        raise ImageError("damaged PNG (its header states an unknown format)")
    pixels = False
    trait = {3: "palette", 4: "alpha", 6: "alpha"}.get(colour, "")
    palette = colour != 3
    orientation = 1
    at = 8
    while True:
        if at + 12 > length:
            raise ImageError("truncated PNG (no end marker)")
        size = int.from_bytes(data[at : at + 4], "big")
        stop = at + 12 + size
        if stop > length:
            raise ImageError("truncated PNG (a chunk runs over the end)")
        if crc32(data[at + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            raise ImageError("damaged PNG (a chunk's checksum is wrong)")
        kind = data[at + 4 : at + 8]
        if kind == b"IDAT":
            pixels = pixels or size > 0
        elif kind == b"PLTE":
            palette = True
        elif kind == b"tRNS":
            trait = trait or "alpha"
        elif kind == b"eXIf":
            orientation = _exif_orientation(b"Exif\x00\x00" + data[at + 8 : stop - 4])
            trait = trait or ("rotated" if orientation > 1 else "")
        elif kind == b"IEND":
            break
        at = stop
    if not pixels or not palette:
        raise ImageError("damaged PNG (no picture in it)")
    return checked_info("png", width, height, _CHANNELS[colour], bits, trait, orientation)
