"""Decode images at a small size, to compare them or to classify their pixels.

A kind is one of: photograph, two-valued mask, label map, gray scale, cutout. An image that cannot
be decoded is None.
"""

import functools
import io
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.images.formats import ARRAY_KINDS, load_array, open_picture
from shardify.images.mask_values import alpha_of
from shardify.images.parser import parse

if TYPE_CHECKING:
    from PIL import Image

P = ParamSpec("P")
T = TypeVar("T")
ReadFile = Callable[[int], bytes]
"""Returns the bytes of the file with an index, or raises ``ShardifyError``."""

GRID = 48
"""Height and width of thumbnails: small enough to average out JPEG noise, not positions."""

MAX_PIXELS = 1 << 26
"""Largest image, in pixels, that is decoded to detect a layout."""

_DECODE_ERRORS = (
    ShardifyError, OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError,
    TypeError, OverflowError, ZeroDivisionError,
)  # fmt: skip
"""Errors that Pillow and NumPy raise for damaged files."""

KINDS = {
    "picture": "colour images",
    "two": "two values",
    "few": "a few values",
    "gray": "many gray values",
    "cutout": "pictures with transparency",
}
"""Kind -> its name in a message."""

_ARRAY_MAGIC = (b"\x93N", b"PK", b"Pf", b"PF", b"v/")
"""First bytes of files that may hold an array, not a picture that Pillow reads."""

_MAX_GRID_SIDE = 256
"""Height and width, about, of the grid of pixels that is examined."""

_DRAFT_SIDE = 512
"""Smallest height and width of a JPEG decoded at a reduced size."""

_MAX_LABEL_VALUES = 16
"""Largest number of values of a label map."""

_MAX_LABEL_COLOURS = 32
"""Largest number of colours of a label map."""


def none_if_undecodable(decode: Callable[P, T | None]) -> Callable[P, T | None]:
    """Make a function return None for an image that is damaged or may be a bomb."""

    @functools.wraps(decode)
    def decode_safely(*args: P.args, **kwargs: P.kwargs) -> T | None:
        # Imported here: detection by names alone needs no Pillow.
        from PIL import Image

        bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            try:
                return decode(*args, **kwargs)
            except (*_DECODE_ERRORS, *bombs):
                return None

    return decode_safely


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


@none_if_undecodable
def open_small(data: bytes, mode: str, min_side: int | None) -> "Image.Image | None":
    """Decode an image, at a size reduced to at least ``min_side`` pixels; None if that fails."""
    from PIL import ImageOps

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


def _open_array(data: bytes, mode: str) -> "Image.Image | None":
    from PIL import Image

    plane = np.load(io.BytesIO(data), allow_pickle=False)
    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8)
    if plane.dtype != np.uint8 or plane.ndim not in (2, 3) or plane.size > MAX_PIXELS:
        return None
    if plane.ndim == 3:
        plane = plane[..., 0] if plane.shape[2] == 1 else plane[..., :3]
    return Image.fromarray(plane).convert(mode)


def kind_of_files(indexes: Iterable[int], read: ReadFile) -> tuple[str | None, Counter[str]]:
    """Return the kind that at least 80 % of the files have, else None; and the count of each kind.

    Files that cannot be read or decoded do not count.
    """
    votes: Counter[str] = Counter()
    for index in indexes:
        try:
            kind = pixel_kind(read(index))
        except ShardifyError:
            continue
        if kind is not None:
            votes[kind] += 1
    if not votes:
        return None, votes
    kind, count = votes.most_common(1)[0]
    return (kind if count >= 0.8 * votes.total() else None), votes


@none_if_undecodable
def pixel_kind(data: bytes) -> str | None:
    """Return one of ``KINDS``; None if the file cannot be decoded or has a single value."""
    if data.startswith(_ARRAY_MAGIC) and (kind := parse(data).kind) in ARRAY_KINDS:
        return _plane_kind(load_array(data, kind, "depth"))
    image = open_picture(data)
    if image.width * image.height > MAX_PIXELS:
        return None
    jpeg = image.format == "JPEG"
    if jpeg:
        image.draft(image.mode, (_DRAFT_SIDE, _DRAFT_SIDE))
    if image.mode == "P" and len(np.unique(_grid(np.asarray(image)))) <= _MAX_LABEL_COLOURS:
        return _plane_kind(np.asarray(image))
    alpha = "A" in image.getbands() or "transparency" in image.info
    if alpha and (alpha_kind := _alpha_kind(np.asarray(image.convert("RGBA")))):
        return alpha_kind
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;"):
        return _plane_kind(np.asarray(image), jpeg=jpeg)
    return _colour_kind(np.asarray(image.convert("RGB")), jpeg=jpeg)


def _grid(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return every n-th row and column."""
    rows, columns = (max(1, side // _MAX_GRID_SIDE) for side in pixels.shape[:2])
    return pixels[::rows, ::columns]


def _plane_kind(plane: npt.NDArray[Any], *, jpeg: bool = False) -> str | None:
    if plane.ndim == 3:
        channels = plane.shape[2]
        if channels in (3, 4) and plane.dtype == np.uint8:
            return _colour_kind(plane[..., :3], jpeg=False)
        plane = plane[..., 0]
    if plane.ndim != 2 or not plane.size:
        return None
    plane = _grid(plane)
    if plane.dtype.kind == "f":
        plane = plane[np.isfinite(plane)]
    values, counts = np.unique(plane, return_counts=True)
    if len(values) < 2:
        return None
    if len(values) == 2:
        return "two"
    low, high = float(values[0]), float(values[-1])
    # Soft edges of a mask, and JPEG noise around two values, are close to them or are few.
    edge = (high - low) / 8
    inner = (values > low + edge) & (values < high - edge)
    if len(values) <= _MAX_LABEL_VALUES and not jpeg:
        return "few" if counts[1:-1].sum() > 0.05 * counts.sum() else "two"
    return "two" if counts[inner].sum() < 0.1 * counts.sum() else "gray"


def _colour_kind(pixels: npt.NDArray[Any], *, jpeg: bool) -> str | None:
    pixels = _grid(pixels).reshape(-1, 3)
    red, green, blue = pixels.T
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if spread.mean() < 3 and np.percentile(spread, 99) < 24:
        return _plane_kind(pixels[:, :1], jpeg=jpeg)
    if jpeg:
        return "picture"
    colours = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    count = len(np.unique(colours))
    if count > _MAX_LABEL_COLOURS:
        return "picture"
    return {1: None, 2: "two"}.get(count, "few")


def _alpha_kind(pixels: npt.NDArray[Any]) -> str | None:
    """Return ``cutout``, or the kind of alpha if colour is constant; None if alpha is constant."""
    colour, alpha = _grid(pixels)[..., :3], _grid(pixels)[..., 3]
    if alpha.min() == alpha.max():
        return None
    flat = (colour == colour[0, 0]).all()
    return _plane_kind(alpha) if flat else "cutout"
