"""Decode pictures of any supported format to the standard pixels of their role.

``bg`` and ``fg_bg`` become 8-bit RGB, ``depth`` 8-bit or 16-bit gray, ``mask`` 0 or 255.
``normalize`` keeps payloads that are standard already and converts the others. A picture whose
encoding is ambiguous raises ImageError.
"""

import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ImageError
from shardify.images.parser import MASK_THRESHOLD, ImageInfo
from shardify.images.png import encode_png, ends_early

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "STANDARD",
    "LabelEncoding",
    "alpha_of",
    "is_standard",
    "levels_of",
    "normalize",
    "peak_of",
    "pixels",
    "refuse_faint",
    "same_aspect",
]  # fmt: skip

Range = tuple[int, int]

_GRAY_SLACK = 8
_ALPHA = ("alpha", "LA", "RGBA", "PA")
"""Traits of pictures whose alpha channel may be the mask."""


class LabelEncoding(NamedTuple):
    """Encoding of the source's masks and floating-point depth maps."""

    mask: str = "threshold"
    """``threshold``: object where at least ``MASK_THRESHOLD``; ``level N``: object where N, and
    background where 0; ``trimap``: object where 1, of 1 (object), 2 (ground) and 3 (border)."""
    depth_scale: int = 256
    """16-bit steps to a unit of a floating-point depth: 256, as KITTI's maps have, or 65535 where
    all are at most 1."""


STANDARD = LabelEncoding()
"""Encoding of every picture in a shard."""


def normalize(
    data: bytes, picture: ImageInfo, role: str, meaning: LabelEncoding
) -> tuple[bytes, ImageInfo, str]:
    """Keep a standard payload, or convert it to a standard PNG.

    Returns:
        The bytes, their header, and the conversion rule (empty if the bytes are unchanged).

    Raises:
        ImageError: It cannot be decoded, or its encoding is ambiguous.
    """
    if is_standard(picture, role, meaning):
        return data, picture, ""
    kind, bits, trait = picture.kind, picture.bits, picture.trait
    plane = pixels(data, picture, role, meaning)
    height, width = plane.shape[:2]
    stored = ImageInfo("png", width, height, 3 if plane.ndim == 3 else 1, 8 * plane.itemsize)
    what = " ".join(filter(None, (trait, kind.upper())))
    if not trait and bits != 8:
        what = f"{bits}-bit {what}"
    if role == "mask" and meaning.mask != "threshold":
        what = f"{what} ({meaning.mask})"
    if role == "mask" and trait in _ALPHA and _by_alpha(data):
        what = f"{what} (object by its alpha)"
    if role == "depth" and (trait == "F" or trait.startswith("float")):
        what = f"{what} (1 is {meaning.depth_scale} of 65535)"
    return encode_png(plane), stored, f"{role}: {what} to PNG"


def is_standard(picture: ImageInfo, role: str, meaning: LabelEncoding) -> bool:
    """Whether a picture is valid for its role without conversion."""
    if picture.trait or picture.kind not in ("jpg", "png"):
        return False
    if role == "mask":
        return picture.bits == 8 and meaning.mask == "threshold"
    if role == "depth":
        return picture.bits >= 8 and picture.channels == 1
    return picture.bits == 8


def same_aspect(picture: ImageInfo, main: ImageInfo) -> bool:
    """Whether two pictures of a sample have the same aspect ratio, within 2 % or one pixel."""
    off = abs(main.width * picture.height - picture.width * main.height)
    return off <= max(0.02 * main.width * picture.height, main.width, main.height)


def pixels(data: bytes, picture: ImageInfo, role: str, meaning: LabelEncoding) -> NDArray[Any]:
    """Decode a picture to the standard pixels of its role.

    Returns:
        ``bg``, ``fg_bg``: (H, W, 3) uint8. ``mask``: (H, W) uint8, 0 or 255. ``depth``: (H, W)
        uint8 or uint16.

    Raises:
        ImageError: It cannot be decoded completely, or its encoding is ambiguous.
    """
    if picture.kind == "npy":
        return _array(data, role, meaning)
    if picture.kind == "png" and ends_early(data):
        raise ImageError("truncated PNG (its picture data end early)")
    if role == "depth":
        return _depth(data, meaning)
    if role == "mask":
        return _object(_open(data, _MASK), meaning)
    return _open(data, "RGB")


def levels_of(data: bytes, picture: ImageInfo) -> NDArray[Any]:
    """Return the distinct values of a mask, in ascending order. Raises ImageError."""
    if picture.kind == "npy":
        return np.unique(_loaded(data))
    plane = _open(data, _MASK)
    if plane.dtype == np.uint8:
        return np.flatnonzero(np.bincount(plane.ravel()))
    return np.unique(plane)


def peak_of(data: bytes, picture: ImageInfo) -> float:
    """Return the largest finite value of a floating-point depth map. Raises ImageError."""
    plane = _loaded(data) if picture.kind == "npy" else _open(data, "")
    return float(np.max(plane, where=np.isfinite(plane), initial=0))


def refuse_faint(data: bytes, picture: ImageInfo, meaning: LabelEncoding) -> None:
    """Refuse a mask that is not empty, but has no pixel of at least ``MASK_THRESHOLD``.

    Raises:
        ImageError: The mask is such, or cannot be decoded.
    """
    if meaning.mask == "threshold":
        plane = _loaded(data) if picture.kind == "npy" else _open(data, _MASK)
        peak = float(plane.max(initial=0))
        if 0 < peak < MASK_THRESHOLD:
            raise ImageError(
                f"a mask with values up to {peak:g}; expected 0 alone, or objects of "
                f"{MASK_THRESHOLD} and more"
            )


_MASK = "mask"


def _by_alpha(data: bytes) -> bool:
    """Whether a picture's alpha channel is its mask, because its colour is constant."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            return alpha_of(image) is not None


def alpha_of(image: "Image.Image") -> "Image.Image | None":
    """Return the alpha plane if it is the mask: not all opaque, with a constant colour."""
    if not image.has_transparency_data:
        return None
    *colour, alpha = image.convert("RGBA").split()
    if any(low != high for low, high in (cast(Range, each.getextrema()) for each in colour)):
        return None
    return None if cast(Range, alpha.getextrema())[0] == 255 else alpha


def _open(data: bytes, mode: str) -> NDArray[Any]:
    """Decode with Pillow and apply the EXIF orientation.

    ``mode`` is a Pillow mode; empty to keep the picture's own; or ``mask``: gray, or the alpha
    channel if that is the mask.
    """
    from PIL import Image, ImageOps

    # Pillow raises nearly anything on damaged input, and warns of what parse() has bounded.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                turned = ImageOps.exif_transpose(image)
                if mode == _MASK:
                    turned, mode = alpha_of(turned) or turned, "L"
                if turned.mode.startswith("I;16") or turned.mode == "I":
                    wide: NDArray[Any] = np.asarray(turned)
                    if mode:
                        gray = (np.clip(wide, 0, 65535) >> 8).astype(np.uint8)
                        return gray if mode == "L" else np.repeat(gray[..., None], 3, axis=2)
                    bounded: NDArray[Any] = np.clip(wide, 0, 65535).astype(np.uint16)
                    return bounded
                if turned.mode == "1" and not mode:
                    mode = "L"
                if turned.mode in ("P", "PA", "LA", "CMYK", "RGBA") and not mode:
                    mode = "RGB"
                return np.asarray(turned.convert(mode) if mode else turned)
    except Exception as error:
        raise ImageError(f"cannot be decoded ({type(error).__name__})") from error


def _object(plane: NDArray[Any], meaning: LabelEncoding) -> NDArray[np.uint8]:
    if meaning.mask == "threshold":
        found = plane >= MASK_THRESHOLD
    elif meaning.mask == "trimap":
        if plane.size and (plane.min() < 1 or plane.max() > 3):
            raise ImageError("a trimap with values other than 1, 2 and 3")
        found = plane == 1
    else:
        level = int(float(meaning.mask.split()[1]))
        found = plane == level
        if not np.all(found | (plane == 0)):
            raise ImageError(f"a mask with values other than 0 and {level}")
    return np.where(found, np.uint8(255), np.uint8(0))


def _depth(data: bytes, meaning: LabelEncoding) -> NDArray[Any]:
    plane = _open(data, "")
    if plane.ndim == 2 and plane.dtype.kind == "f":
        return _scaled(plane, meaning)
    if plane.ndim == 3:
        low, high = plane.min(axis=2), plane.max(axis=2)
        if int((high.astype(np.int16) - low).max()) > _GRAY_SLACK:
            raise ImageError("a depth map in colours, whose values cannot be told")
        return np.ascontiguousarray(plane[..., 1])
    return plane


def _scaled(plane: NDArray[Any], meaning: LabelEncoding) -> NDArray[np.uint16]:
    """Convert floating-point depth to 16 bits; invalid values (NaN, negative) become 0."""
    steps = np.nan_to_num(plane.astype(np.float64), nan=0, posinf=0, neginf=0) * meaning.depth_scale
    if steps.max(initial=0) > 65535.5:
        raise ImageError(
            f"a depth of {steps.max() / meaning.depth_scale:.4g}; at most "
            f"{65535 / meaning.depth_scale:.4g} can be stored"
        )
    return np.clip(np.rint(steps), 0, 65535).astype(np.uint16)


def _loaded(data: bytes) -> NDArray[Any]:
    try:
        plane: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ImageError(f"cannot be decoded ({type(error).__name__})") from error
    return plane


def _array(data: bytes, role: str, meaning: LabelEncoding) -> NDArray[Any]:
    plane = _loaded(data)
    if plane.ndim == 3 and plane.shape[2] == 1:
        plane = plane[..., 0]
    if role == "mask" and plane.ndim == 2:
        return _object(plane.astype(np.float64) if plane.dtype.kind == "f" else plane, meaning)
    if role == "depth" and plane.ndim == 2:
        if plane.dtype.kind == "f":
            return _scaled(plane, meaning)
        if plane.dtype == np.uint8:
            return np.ascontiguousarray(plane)
        if plane.dtype.kind in "ui" and plane.size and 0 <= plane.min() and plane.max() <= 65535:
            return plane.astype(np.uint16)
    if role in ("bg", "fg_bg") and plane.dtype == np.uint8 and plane.ndim == 3:
        return np.ascontiguousarray(plane[..., :3])
    raise ImageError(f"an array of {plane.dtype} and shape {plane.shape}, which is no {role}")
