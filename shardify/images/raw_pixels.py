"""Byte layout of the raw codec: pack and unpack a role's pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.images.parser import MASK_THRESHOLD, ImageInfo

__all__ = ["pack_raw", "unpack_raw"]


def unpack_raw(data: bytes, picture: ImageInfo, role: str) -> NDArray[Any]:
    """Return the pixels of a raw member, shaped as ``pixels.pixels`` returns them.

    Raises:
        ValueError: The length does not fit the size.
    """
    height, width = picture.height, picture.width
    if role == "mask":
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        if not 0 <= len(bits) - height * width < 8:
            raise ValueError(f"{len(data)} bytes; expected the bits of {width}x{height}")
        return bits[: height * width].reshape(height, width) * np.uint8(255)
    if picture.channels == 3:
        return np.frombuffer(data, np.uint8).reshape(3, height, width).transpose(1, 2, 0)
    kind = "<u2" if picture.bits == 16 else "u1"
    return np.frombuffer(data, kind).reshape(height, width)


def pack_raw(plane: NDArray[Any], role: str) -> bytes:
    """Pack pixels as ``pixels.pixels`` returns them; the layout is that of ``codecs``."""
    if role == "mask":
        return np.packbits(plane >= MASK_THRESHOLD).tobytes()
    if plane.ndim == 3:
        return plane.transpose(2, 0, 1).tobytes()
    return plane.astype("<u2" if plane.dtype == np.uint16 else "u1").tobytes()
