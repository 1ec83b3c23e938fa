"""Resize and encode a role's pixels for one variant of a data set; measure the loss.

Codecs:

- ``keep``: payload bytes unchanged. With a new size, JPEG ``bg`` and ``fg_bg`` stay JPEG; all other
  pictures become PNG (JPEG would blur masks and depth maps).
- ``jpeg``: quality 95, no chroma subsampling. A mask is read back by its threshold. Depth of 16
  bits, or with a value that means "no depth", becomes PNG.
- ``png``: lossless.
- ``raw``: pixels without a header; ``raw_pixels`` states the byte layout.
"""

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardify.images.parser import MASK_THRESHOLD, ImageInfo, parse
from shardify.images.pixels import STORED, pixels
from shardify.images.png import encode_png
from shardify.images.raw_pixels import pack_raw, unpack_raw
from shardify.resolution import Resolution, ResolutionLike, resolution

_QUALITY = 95


class Variant(NamedTuple):
    """One data set that a build writes: its folder, and its pictures' size and codec."""

    folder: str = ""
    """Empty for OUT itself."""
    res: Resolution | None = None
    """Height and width of every picture in pixels; None keeps its size."""
    codec: str = "keep"

    @property
    def unchanged(self) -> bool:
        """Whether payload bytes are copied unchanged."""
        return self.codec == "keep" and not self.res


def encode_pixels(
    plane: NDArray[Any], role: str, kind: str, variant: Variant, invalid: int | None = None
) -> tuple[bytes, ImageInfo]:
    """Encode pixels that already have the variant's size.

    Args:
        plane: As ``pixels.pixels`` returns them.
        role: ``bg``, ``fg_bg``, ``mask`` or ``depth``.
        kind: Format of the original picture, ``jpg`` or ``png``; used for ``keep``.
        variant: States the codec.
        invalid: Value that means "no value", if there is one; JPEG would change it.

    Returns:
        The encoded bytes, and their header.
    """
    codec = variant.codec
    height, width = plane.shape[:2]
    channels = 3 if plane.ndim == 3 else 1
    bits = 8 * plane.itemsize
    if codec == "raw":
        raw = pack_raw(plane, role)
        return raw, ImageInfo("raw", width, height, channels, 1 if role == "mask" else bits)
    if codec == "keep":
        codec = "jpeg" if kind == "jpg" and role in ("bg", "fg_bg") else "png"
    if codec == "jpeg" and bits == 8 and invalid is None:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        return buffer.getvalue(), ImageInfo("jpg", width, height, channels, 8)
    return encode_png(plane), ImageInfo("png", width, height, channels, bits)


def resize(
    plane: NDArray[Any], role: str, res: ResolutionLike | None, invalid: int | None = None
) -> NDArray[Any]:
    """Resize pixels with antialiasing; a mask stays 0 or 255; None keeps the size.

    Pixels of the value ``invalid`` have no weight: a pixel is the average of the others, or
    ``invalid`` if these have at most half of the weight.
    """
    if res is None or plane.shape[:2] == (shape := resolution(res)):
        return plane
    from PIL import Image
    from PIL.Image import Resampling

    size = shape[::-1]
    if invalid is not None:
        known = plane != invalid
        planes = (np.where(known, plane, 0), known)
        total, weight = (
            np.asarray(Image.fromarray(each.astype(np.float32)).resize(size, Resampling.BILINEAR))
            for each in planes
        )
        levels = np.rint(total / np.maximum(weight, 1e-6)).clip(0, np.iinfo(plane.dtype).max)
        # An average of other values may be this one.
        levels[levels == invalid] += 1 if invalid == 0 else -1
        return np.where(weight > 0.5, levels, invalid).astype(plane.dtype)
    if role == "mask":
        soft = np.asarray(Image.fromarray(plane).resize(size, Resampling.BILINEAR))
        return np.where(soft >= 128, np.uint8(255), np.uint8(0))
    if plane.dtype == np.uint16:
        wide = Image.fromarray(plane.astype(np.float32)).resize(size, Resampling.BILINEAR)
        steps: NDArray[Any] = np.clip(np.rint(np.asarray(wide)), 0, 65535).astype(np.uint16)
        return steps
    return np.asarray(Image.fromarray(plane).resize(size, Resampling.BILINEAR))


def encoding_loss(plane: NDArray[Any], stored: bytes, picture: ImageInfo, role: str) -> float:
    """Return the mask's IoU after encoding; for other roles the RMSE, in [0, 1] of the full range.

    Args:
        plane: The original pixels.
        stored: The bytes that ``encode_pixels`` returned.
        picture: The header that ``encode_pixels`` returned.
        role: The picture's role.
    """
    if picture.kind == "raw":
        back = unpack_raw(stored, picture, role)
    else:
        back = pixels(stored, parse(stored), role, STORED)
    if role == "mask":
        one, two = plane >= MASK_THRESHOLD, back >= MASK_THRESHOLD
        union = int((one | two).sum())
        return float((one & two).sum() / union) if union else 1.0
    full = float(np.iinfo(plane.dtype).max)
    difference = (plane.astype(np.float64) - back.astype(np.float64)) / full
    return float(np.sqrt((difference**2).mean()))
