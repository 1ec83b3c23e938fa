"""Decode pictures of any supported format to the standard pixels of their role.

``bg`` and ``fg_bg`` become 8-bit RGB, ``depth`` 8-bit or 16-bit gray, ``mask`` 0 or 255.
``normalize`` keeps payloads that are standard already and converts the others; each is decoded once
at most. A picture whose encoding is ambiguous raises ImageError.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ImageError
from shardify.images.depth import DepthEncoding, convert_depth
from shardify.images.formats import ARRAY_KINDS, load_array, load_wide_colour, open_picture
from shardify.images.mask_values import Mask, mask_of_array, mask_of_image, object_plane
from shardify.images.orientation import turn
from shardify.images.parser import ImageInfo
from shardify.images.png import encode_png, is_truncated

if TYPE_CHECKING:
    from PIL import Image


class LabelEncoding(NamedTuple):
    """What the values of the source's pictures mean, by role."""

    mask: str = "threshold"
    """Rule of the masks; see ``mask_values``."""
    depth: DepthEncoding = DepthEncoding()
    bits: tuple[tuple[str, int], ...] = ()
    """Role and true bits of the pictures that have 16 bits a channel, as 12 of a sensor's."""
    exif: tuple[tuple[str, str], ...] = ()
    """Role and frame (``stored`` or ``turned``; see ``orientation``) of the labels of pictures
    that EXIF turns."""
    mask_given: bool = False
    """Whether the rule was given by the user: then masks are not held against it."""
    check_masks: bool = False
    """Whether to decode every mask, because some of those looked at are not standard pictures, or
    do not fit the rule."""
    zeros: float = 0.0
    """Share of zeros in the depth maps looked at, if it tells that 0 means "no depth"; else 0."""

    @property
    def needs_values(self) -> bool:
        """Whether a file's name alone does not tell that it needs no conversion."""
        return (
            self.mask != "threshold"
            or self.check_masks
            or bool(self.bits or self.exif)
            or self.depth.needs_values(16)
        )

    def invalid(self, role: str) -> int | None:
        """Return the stored value that means "no value" in a role; None if there is none."""
        return 0 if role == "depth" and self.depth.has_holes else None


STANDARD = LabelEncoding()
"""Encoding of pictures that need no conversion."""

STORED = LabelEncoding(mask_given=True)
"""Encoding of every picture in a shard."""


class Normalized(NamedTuple):
    """A picture in its standard encoding."""

    data: bytes
    info: ImageInfo
    rule: str
    """Conversion rule; empty if the bytes are unchanged."""
    plane: NDArray[Any] | None
    """Its pixels if they were decoded."""
    original: ImageInfo
    """Its header in the source."""


def normalize(
    data: bytes,
    picture: ImageInfo,
    role: str,
    encoding: LabelEncoding,
    turned: int = 1,
    *,
    decode: bool = False,
) -> Normalized:
    """Keep a standard payload, or convert it to a standard PNG.

    Args:
        data: The payload.
        picture: Its header.
        role: Its role.
        encoding: What the values of the data set mean.
        turned: EXIF orientation by which a label is turned to lie on its picture.
        decode: Whether to decode a standard payload too.

    Raises:
        ImageError: It cannot be decoded, or its encoding is ambiguous.
    """
    if turned == 1 and is_standard(picture, role, encoding):
        decode = decode or (role == "mask" and encoding.check_masks)
        plane = pixels(data, picture, role, encoding) if decode else None
        return Normalized(data, picture, "", plane, picture)
    kind, bits, trait = picture.kind, picture.bits, picture.trait
    form = ""
    if role == "depth":
        values = values_of(data, picture, role)
        plane = convert_depth(values, encoding.depth)
        if plane is values and turned == 1 and is_standard(picture, role, STANDARD):
            # Its values had to be read, and none changes.
            return Normalized(data, picture, "", plane, picture)
    elif role == "mask":
        mask = read_mask(data, picture, encoding.mask)
        plane, form = object_plane(mask, encoding.mask, check=not encoding.mask_given), mask.form
    else:
        plane = pixels(data, picture, role, encoding)
    if turned != 1:
        plane = turn(plane, turned)
    height, width = plane.shape[:2]
    stored = ImageInfo("png", width, height, 3 if plane.ndim == 3 else 1, 8 * plane.itemsize)
    if bits == 16 and role in ("bg", "fg_bg"):
        trait = f"{_true_bits(role, encoding)}-bit"
    what = " ".join(filter(None, (trait, kind.upper())))
    if not trait and bits != 8:
        what = f"{bits}-bit {what}"
    if role == "mask" and encoding.mask != "threshold":
        what = f"{what} ({encoding.mask})"
    elif form == "alpha":
        what = f"{what} (object by its alpha)"
    if role == "depth" and (trait == "F" or trait.startswith("float")):
        what = f"{what} ({encoding.depth.step_text})"
    elif role == "depth" and encoding.depth.invalid:
        what = f"{what} ({', '.join(f'{value:g}' for value in encoding.depth.invalid)} to 0)"
    if turned != 1:
        what = f"{what}, turned as its picture by EXIF,"
    return Normalized(encode_png(plane), stored, f"{role}: {what} to PNG", plane, picture)


def is_standard(picture: ImageInfo, role: str, encoding: LabelEncoding) -> bool:
    """Whether a picture is valid for its role without conversion."""
    if picture.trait or picture.kind not in ("jpg", "png"):
        return False
    if role == "mask":
        return picture.bits == 8 and encoding.mask == "threshold"
    if role == "depth":
        narrow = picture.bits >= 8 and picture.channels == 1
        return narrow and not encoding.depth.needs_values(picture.bits)
    return picture.bits == 8


def same_aspect(picture: ImageInfo, main: ImageInfo) -> bool:
    """Whether two pictures of a sample have the same aspect ratio, within 2 % or one pixel."""
    off = abs(main.width * picture.height - picture.width * main.height)
    return off <= max(0.02 * main.width * picture.height, main.width, main.height)


def pixels(data: bytes, picture: ImageInfo, role: str, encoding: LabelEncoding) -> NDArray[Any]:
    """Decode a picture to the standard pixels of its role.

    Returns:
        ``bg``, ``fg_bg``: (H, W, 3) uint8. ``mask``: (H, W) uint8, 0 or 255. ``depth``: (H, W)
        uint8 or uint16.

    Raises:
        ImageError: It cannot be decoded completely, or its encoding is ambiguous.
    """
    if role == "depth":
        return convert_depth(values_of(data, picture, role), encoding.depth)
    if role == "mask":
        mask = read_mask(data, picture, encoding.mask)
        return object_plane(mask, encoding.mask, check=not encoding.mask_given)
    if picture.bits > 8 or picture.kind in ARRAY_KINDS:
        return _eight_bits(values_of(data, picture, role), role, picture, encoding)
    _refuse_truncated(data, picture)
    return _open(data, "RGB")


def values_of(data: bytes, picture: ImageInfo, role: str) -> NDArray[Any]:
    """Decode a picture or depth map to its own values, turned by its own EXIF tag.

    Returns:
        (H, W) or (H, W, C), any real dtype.

    Raises:
        ImageError: It cannot be decoded.
    """
    if picture.kind in ARRAY_KINDS:
        return load_array(data, picture.kind, role)
    _refuse_truncated(data, picture)
    if picture.bits == 16 and picture.channels == 2:
        raise ImageError("16-bit gray with alpha, which is not read; save it as 16-bit gray")
    if picture.bits == 16 and picture.channels > 2:
        try:
            return load_wide_colour(data)
        except Exception as error:
            # Pillow raises nearly anything on damaged input.
            raise ImageError(f"cannot be decoded ({type(error).__name__})") from error
    return _open(data, "")


def read_mask(data: bytes, picture: ImageInfo, rule: str = "") -> Mask:
    """Decode a mask and keep its values.

    Args:
        data: The payload.
        picture: Its header.
        rule: Rule of the data set, or empty if not known yet.

    Raises:
        ImageError: It cannot be decoded completely, or is no mask.
    """
    if picture.kind in ARRAY_KINDS or (picture.bits == 16 and picture.channels == 3):
        plane = values_of(data, picture, "mask")
        gray = plane.ndim == 3 and bool((plane == plane[..., :1]).all())
        if gray and (plane.shape[2] == 1 or picture.kind not in ARRAY_KINDS):
            plane = plane[..., 0]
        if plane.ndim != 2:
            raise ImageError(f"an array of {plane.dtype} and shape {plane.shape}, which is no mask")
        return mask_of_array(plane)
    _refuse_truncated(data, picture)
    with _upright(data) as image:
        return mask_of_image(image, picture, rule)


def _refuse_truncated(data: bytes, picture: ImageInfo) -> None:
    if picture.kind == "png" and is_truncated(data):
        raise ImageError("truncated PNG (its picture data end early)")


@contextmanager
def _upright(data: bytes) -> "Iterator[Image.Image]":
    """Decode and apply the EXIF orientation. Any error in the block becomes an ImageError."""
    from PIL import ImageOps

    # Pillow raises nearly anything on damaged input, and warns of what parse() has bounded.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_picture(data) as image:
                image.load()
                yield ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be decoded ({type(error).__name__})") from error


def _open(data: bytes, mode: str) -> NDArray[Any]:
    """Decode to an array. ``mode`` is a Pillow mode; empty to keep the picture's own."""
    with _upright(data) as turned:
        if turned.mode.startswith("I;16") or turned.mode == "I":
            wide: NDArray[Any] = np.asarray(turned)
            if mode:
                gray = (np.clip(wide, 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=2)
            return wide.astype(wide.dtype.newbyteorder("="), copy=False)
        if turned.mode == "1" and not mode:
            mode = "L"
        if turned.mode in ("P", "PA", "LA", "CMYK", "RGBA") and not mode:
            mode = "RGB"
        return np.asarray(turned.convert(mode) if mode else turned)


def _true_bits(role: str, encoding: LabelEncoding) -> int:
    return dict(encoding.bits).get(role, 16)


def _eight_bits(
    plane: NDArray[Any], role: str, picture: ImageInfo, encoding: LabelEncoding
) -> NDArray[np.uint8]:
    """Scale a picture of more than 8 bits by the true bits of its data set: (H, W, 3) uint8."""
    narrow = plane.dtype in (np.uint8, np.bool_)
    if plane.dtype.kind not in "bui" or (picture.kind in ARRAY_KINDS and plane.ndim != 3):
        kind = "an array" if picture.kind in ARRAY_KINDS else "a picture"
        raise ImageError(f"{kind} of {plane.dtype} and shape {plane.shape}, which is no {role}")
    if plane.ndim == 2:
        plane = plane[..., None]
    colours = plane[..., :3] if plane.shape[2] >= 3 else plane[..., [0, 0, 0]]
    if narrow:
        return np.ascontiguousarray(colours, np.uint8)
    bits = _true_bits(role, encoding)
    low, high = int(colours.min(initial=0)), int(colours.max(initial=0))
    if low < 0 or high >> bits:
        raise ImageError(
            f"a picture with values from {low} to {high}; expected at most {bits} bits "
            f"(0 to {2**bits - 1}), as those looked at have"
        )
    return (colours >> (bits - 8)).astype(np.uint8)
