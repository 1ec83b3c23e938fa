"""What a payload is, from its header to its end marker, and its pixels where they are asked for.

Parses JPEG and PNG itself, without decoding a pixel: enough to be sure that a decoder will find
a whole picture of the stated size. Decides no policy: whether a picture may stand for a role is
for others to say.

Sources: ITU-T T.81 annex B (JPEG), ISO/IEC 15948 (PNG).
"""

import io
import re
import warnings
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from shardify.errors import ImageError

__all__ = ["MASK_THRESHOLD", "MAX_PIXELS", "Picture", "decode", "measure", "parse"]

MASK_THRESHOLD = 150
"""A mask's pixel is object where its 8-bit value is at least this."""

MAX_PIXELS = 1 << 26
"""Width times height. A header may claim billions; no decoder gets to see it."""

_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_OTHERS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x93NUMPY", "NumPy array"),
)


class Picture(NamedTuple):
    """A picture, as its header states it."""

    kind: str
    """``jpg`` or ``png``: also the extension that it gets in a shard."""
    width: int
    height: int
    channels: int
    """1 gray, 2 gray and alpha, 3 colour (or a palette), 4 colour and alpha or CMYK."""
    bits: int
    """Of one channel."""


def parse(data: bytes) -> Picture:
    """Read a JPEG's or PNG's structure from its first byte to its end marker.

    Checks for JPEG: the chain of segments, one frame, scan data, the end marker. For PNG: the
    chunk chain with each CRC, IHDR first, IDAT, IEND. Bytes behind the end are allowed.

    Raises:
        ImageError: Not a JPEG or PNG, truncated, damaged, or larger than ``MAX_PIXELS``. The
            message is the reason alone.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _parse_jpeg(data)
    if data.startswith(_PNG):
        return _parse_png(data)
    raise ImageError(_foreign(data))


def decode(data: bytes, *, mode: str) -> NDArray[Any]:
    """All pixels of a picture.

    Args:
        data: The file's bytes.
        mode: ``RGB``, ``L`` (8-bit gray) or ``I;16`` (16-bit gray).

    Returns:
        (H, W, 3) or (H, W) uint8, or (H, W) uint16.

    Raises:
        ImageError: It cannot be decoded whole.
    """
    from PIL import Image

    # Pillow raises nearly anything on damaged input, and warns of what parse() has bounded.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if mode == "I;16":
                    return np.asarray(image).astype(np.uint16)
                return np.asarray(image.convert(mode))
    except Exception as error:
        raise ImageError(f"cannot be decoded ({type(error).__name__})") from error


def measure(data: bytes, picture: Picture, role: str) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of one picture, in [0, 1] of its full range.

    A mask is thresholded first; a depth map counts as one channel; all else as RGB.

    Raises:
        ImageError: It cannot be decoded whole.
    """
    if role == "mask":
        plane = decode(data, mode="L") >= MASK_THRESHOLD
        mean = float(plane.mean())
        return [mean], [(mean * (1 - mean)) ** 0.5]
    if role == "depth":
        wide = picture.bits == 16
        depth = decode(data, mode="I;16" if wide else "L")
        scale = 65535.0 if wide else 255.0
        return [float(depth.mean()) / scale], [float(depth.std(dtype=np.float64)) / scale]
    # Moments from a histogram are exact and several times faster than float arrays.
    levels = np.arange(256, dtype=np.float64) / 255
    means, deviations = [], []
    for channel in np.moveaxis(decode(data, mode="RGB"), 2, 0):
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean = float(share @ levels)
        means.append(mean)
        deviations.append(max(0.0, float(share @ levels**2) - mean * mean) ** 0.5)
    return means, deviations


def _foreign(data: bytes) -> str:
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return f"a {name} file, which is not taken"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP file, which is not taken"
    if not data.strip(b"\x00"):
        return "all zero bytes"
    return "not an image (no known signature)"


def _parse_jpeg(data: bytes) -> Picture:
    found: Picture | None = None
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
            at = match.end() - 2
    if found is None or not scans:
        raise ImageError("damaged JPEG (no picture in it)")
    return found


def _frame(data: bytes, at: int, size: int) -> Picture:
    bits, channels = data[at + 4], data[at + 9]
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    if bits != 8:
        raise ImageError(f"a JPEG of {bits} bits a channel, which is not taken")
    if channels not in (1, 3, 4) or size != 8 + 3 * channels:
        raise ImageError(f"a JPEG of {channels} channels, which is not taken")
    return _bounded("jpg", width, height, channels, 8)


def _parse_png(data: bytes) -> Picture:
    length = len(data)
    if length < 33 or data[8:16] != b"\x00\x00\x00\rIHDR":
        raise ImageError("damaged PNG (no header)")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits, colour = data[24], data[25]
    if bits not in _DEPTHS.get(colour, ()) or data[26] or data[27] or data[28] > 1:
        raise ImageError("damaged PNG (its header states an unknown format)")
    crc32 = isal_zlib.crc32
    pixels = False
    palette = colour != 3
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
        elif kind == b"IEND":
            break
        at = stop
    if not pixels or not palette:
        raise ImageError("damaged PNG (no picture in it)")
    return _bounded("png", width, height, _CHANNELS[colour], bits)


def _bounded(kind: str, width: int, height: int, channels: int, bits: int) -> Picture:
    if not width or not height:
        raise ImageError(f"a picture of {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(f"over the limit of {MAX_PIXELS >> 20} megapixels")
    return Picture(kind, width, height, channels, bits)
