"""Decode images at a small size for comparison; an image that cannot be decoded is None."""

import io
import struct
import warnings
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.images.formats import open_picture
from shardify.images.mask_values import alpha_of

if TYPE_CHECKING:
    from PIL import Image

GRID = 48
"""Height and width of thumbnails: small enough to average out JPEG noise, not positions."""

MAX_PIXELS = 1 << 26
"""Largest image, in pixels, that is decoded to detect a layout."""

DECODE_ERRORS = (
    ShardifyError, OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError,
    TypeError, OverflowError, ZeroDivisionError,
)  # fmt: skip
"""Errors that Pillow and NumPy raise for damaged files."""


def shrink(picture: "Image.Image") -> npt.NDArray[np.int16]:
    """Resize a picture to a square: (GRID, GRID) or (GRID, GRID, 3) int16, in [0, 255]."""
    from PIL.Image import Resampling

    small = picture.resize((GRID, GRID), Resampling.BOX)
    return np.asarray(small).astype(np.int16)


def open_mask(data: bytes, min_side: int | None) -> "Image.Image | None":
    """Decode a mask in gray, 0 outside the object; None if it cannot be decoded.

    A trimap (1 object, 2 background, 3 border) becomes 0 for background, else 255.
    """
    # Colour type in a PNG's header: palette, or with alpha.
    may_have_alpha = data.startswith(b"\x89PNG") and data[25:26] in (b"\3", b"\4", b"\6")
    gray = open_small(data, "LA" if may_have_alpha else "L", min_side)
    if gray is None:
        return None
    if gray.mode == "LA":
        gray = alpha_of(gray) or gray.getchannel("L")
    low, high = cast(tuple[int, int], gray.getextrema())
    if 1 <= low < high <= 3:
        return gray.point([0 if level == 2 else 255 for level in range(256)])
    return gray


def open_small(data: bytes, mode: str, min_side: int | None) -> "Image.Image | None":
    """Decode an image, at a size reduced to at least ``min_side`` pixels; None if that fails."""
    # Imported here: detection by names alone needs no Pillow.
    from PIL import Image, ImageOps

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            if data.startswith(b"\x93NUMPY"):
                return _open_array(data, mode)
            picture = open_picture(data)
            if picture.width * picture.height > MAX_PIXELS:
                return None
            if min_side:
                picture.draft(mode, (min_side, min_side))
            # Apply the EXIF rotation, as the build does.
            upright = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
            return upright.convert(mode)
    except (*DECODE_ERRORS, *bombs):
        return None


def _open_array(data: bytes, mode: str) -> "Image.Image | None":
    from PIL import Image

    plane = np.load(io.BytesIO(data), allow_pickle=False)
    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8)
    if plane.dtype != np.uint8 or plane.ndim not in (2, 3) or plane.size > MAX_PIXELS:
        return None
    picture = plane[..., 0] if plane.shape[2:] == (1,) else plane[..., :3]
    return Image.fromarray(plane if plane.ndim == 2 else picture).convert(mode)
