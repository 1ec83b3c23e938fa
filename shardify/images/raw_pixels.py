"""Byte layout of the raw codec: pack and unpack a role's pixels.

A raw member has no header; the manifest's role states width, height and bits.

- ``bg`` and ``fg_bg``: uint8, planar (3, H, W).
- ``mask``: the bits of (H, W), rows joined, most significant bit first, 1 where the object is; the
  last byte is filled up with 0.
- ``depth``: (H, W) uint8, or uint16 little-endian where the role has 16 bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.images.parser import MASK_THRESHOLD, ImageInfo


def pack_raw(plane: NDArray[Any], role: str) -> bytes:
    """Return the bytes of a raw member; ``plane`` is shaped as ``pixels.pixels`` gives it."""
    if role == "mask":
        return np.packbits(plane >= MASK_THRESHOLD).tobytes()
    if plane.ndim == 3:
        return plane.transpose(2, 0, 1).tobytes()
    return plane.astype("<u2" if plane.dtype == np.uint16 else "u1").tobytes()


def raw_length(picture: ImageInfo, role: str) -> int:
    """Return the number of bytes of a raw member of this size."""
    area = picture.width * picture.height
    if role == "mask":
        return -(-area // 8)
    return area * picture.channels * picture.bits // 8


def unpack_raw(data: bytes | NDArray[np.uint8], picture: ImageInfo, role: str) -> NDArray[Any]:
    """Return a raw member's pixels, shaped as ``pixels.pixels`` gives them; a mask is 0 or 255.

    Raises:
        ValueError: The length does not fit the size.
    """
    height, width = picture.height, picture.width
    if len(data) != (expected := raw_length(picture, role)):
        raise ValueError(f"{len(data)} bytes; {width}x{height} pixels take {expected}")
    if role == "mask":
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=height * width)
        return bits.reshape(height, width) * np.uint8(255)
    if picture.channels == 3:
        return np.frombuffer(data, np.uint8).reshape(3, height, width).transpose(1, 2, 0)
    kind = "<u2" if picture.bits == 16 else "u1"
    return np.frombuffer(data, kind).reshape(height, width)
