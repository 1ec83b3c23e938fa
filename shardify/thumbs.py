"""Small pictures of payloads, for comparing; what cannot be decoded is None, never an error.

Says nothing of what a picture shows.
"""

import io
import struct
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shardify.errors import ShardifyError

__all__ = ["GRID", "looks_binary", "open_small", "shrink"]

GRID = 48
"""Pictures are compared at this height and width: JPEG's loss averages out, places do not."""

_PIXELS = 1 << 26
_BROKEN = (
    ShardifyError, OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError,
    TypeError, OverflowError, ZeroDivisionError, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


def looks_binary(data: bytes) -> bool | None:
    """Whether a picture has next to nothing between its darkest and brightest value.

    Returns:
        None where it cannot be decoded.
    """
    gray = open_small(data, "L", None)
    if gray is None:
        return None
    pixels = np.asarray(gray).astype(np.int16)
    low, high = int(pixels.min()), int(pixels.max())
    edge = max(1, (high - low) // 8)
    return bool(((pixels - low < edge) | (high - pixels < edge)).mean() > 0.9)


def shrink(picture: Image.Image) -> npt.NDArray[np.int16]:
    """(GRID, GRID) or (GRID, GRID, 3): the picture squashed to a square."""
    small = picture.resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small).astype(np.int16)


def open_small(data: bytes, mode: str, about: int | None) -> Image.Image | None:
    """Decode, at a reduced size if ``about`` (pixels) allows; None where that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > _PIXELS:
                return None
            if about:
                picture.draft(mode, (about, about))
            # As readers see it, and as a turned JPEG is stored.
            turned = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
            return turned.convert(mode)
    except _BROKEN:
        return None
