"""Small pictures of payloads, for comparing; what cannot be decoded is None, never an error.

Says nothing of what a picture shows.
"""

import io
import struct
import warnings
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.images.pixels import alpha_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BROKEN", "GRID", "open_mask", "open_small", "shrink"]

GRID = 48
"""Pictures are compared at this height and width: JPEG's loss averages out, places do not."""

_PIXELS = 1 << 26
BROKEN = (
    ShardifyError, OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError,
    TypeError, OverflowError, ZeroDivisionError,
)  # fmt: skip
"""What Pillow and NumPy raise of files that are damaged."""


def shrink(picture: "Image.Image") -> npt.NDArray[np.int16]:
    """(GRID, GRID) or (GRID, GRID, 3): the picture squashed to a square."""
    from PIL.Image import Resampling

    small = picture.resize((GRID, GRID), Resampling.BOX)
    return np.asarray(small).astype(np.int16)


def open_mask(data: bytes, about: int | None) -> "Image.Image | None":
    """A mask in gray, in which all that is no object is 0; None where it cannot be decoded.

    A trimap (1 object, 2 ground, 3 border) becomes 0 where it is ground, else 255.
    """
    # The type of colour in a PNG's header: a palette, or with alpha.
    alpha_too = data.startswith(b"\x89PNG") and data[25:26] in (b"\3", b"\4", b"\6")
    gray = open_small(data, "LA" if alpha_too else "L", about)
    if gray is None:
        return None
    if gray.mode == "LA":
        gray = alpha_of(gray) or gray.getchannel("L")
    low, high = cast(tuple[int, int], gray.getextrema())
    if 1 <= low < high <= 3:
        return gray.point([0 if level == 2 else 255 for level in range(256)])
    return gray


def open_small(data: bytes, mode: str, about: int | None) -> "Image.Image | None":
    """Decode, at a reduced size if ``about`` (pixels) allows; None where that fails."""
    # Imported here, for the survey of a data set whose names are clear looks into no picture.
    from PIL import Image, ImageOps

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            if data.startswith(b"\x93NUMPY"):
                return _open_array(data, mode)
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > _PIXELS:
                return None
            if about:
                picture.draft(mode, (about, about))
            # As readers see it, and as a turned JPEG is stored.
            turned = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
            return turned.convert(mode)
    except (*BROKEN, *bombs):
        return None


def _open_array(data: bytes, mode: str) -> "Image.Image | None":
    from PIL import Image

    plane = np.load(io.BytesIO(data), allow_pickle=False)
    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8)
    if plane.dtype != np.uint8 or plane.ndim not in (2, 3) or plane.size > _PIXELS:
        return None
    picture = plane[..., 0] if plane.shape[2:] == (1,) else plane[..., :3]
    return Image.fromarray(plane if plane.ndim == 2 else picture).convert(mode)
