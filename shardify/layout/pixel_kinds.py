"""Classify an image by its pixels: photograph, two-valued mask, label map, gray scale or cutout."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.images.formats import ARRAY_KINDS, load_array, open_picture
from shardify.images.parser import ImageInfo, parse
from shardify.layout.thumbnails import DECODE_ERRORS, MAX_PIXELS

KINDS = {
    "picture": "colour images",
    "two": "two values",
    "few": "a few values",
    "gray": "many gray values",
    "cutout": "pictures with transparency",
}
"""Kind -> its name in a message."""

_MAX_GRID_SIDE = 256
"""Height and width, about, of the grid of pixels that is examined."""

_DRAFT_SIDE = 512
"""Smallest height and width of a JPEG decoded at a reduced size."""

_MAX_LABEL_VALUES = 16
"""Largest number of values of a label map."""

_MAX_LABEL_COLOURS = 32
"""Largest number of colours of a label map."""


def kind_of_files(
    indexes: Iterable[int], read: Callable[[int], bytes]
) -> tuple[str | None, Counter[str]]:
    """Return the kind that at least 80 % of the files have, else None; and the count of each kind.

    Args:
        indexes: Indexes of the files.
        read: Returns a file's bytes; a file for which it raises ``ShardifyError`` is skipped.
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


def pixel_kind(data: bytes) -> str | None:
    """Return one of ``KINDS``; None if the file cannot be decoded or has a single value."""
    # Imported here: detection by names alone needs no Pillow.
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            if (picture := _array_header(data)) is not None:
                return _plane_kind(load_array(data, picture.kind, "depth"))
            image = open_picture(data)
            if image.width * image.height > MAX_PIXELS:
                return None
            if image.format == "JPEG":
                image.draft(image.mode, (_DRAFT_SIDE, _DRAFT_SIDE))
            if image.mode == "P" and len(np.unique(_grid(np.asarray(image)))) <= _MAX_LABEL_COLOURS:
                return _plane_kind(np.asarray(image))
            alpha = "A" in image.getbands() or "transparency" in image.info
            if alpha and (kind := _alpha_kind(np.asarray(image.convert("RGBA")))):
                return kind
            if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;"):
                return _colour_kind(np.asarray(image.convert("RGB")), jpeg=image.format == "JPEG")
            return _plane_kind(np.asarray(image), jpeg=image.format == "JPEG")
    except (*DECODE_ERRORS, *bombs):
        return None


def _array_header(data: bytes) -> ImageInfo | None:
    """Return the header of a file that holds an array, not a picture that Pillow reads."""
    if data[:2] not in (b"\x93N", b"PK", b"Pf", b"PF", b"v/"):
        return None
    picture = parse(data)
    return picture if picture.kind in ARRAY_KINDS else None


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
    spread = np.ptp(pixels.astype(np.int16), axis=1)
    if spread.mean() < 3 and np.percentile(spread, 99) < 24:
        return _plane_kind(pixels[:, :1], jpeg=jpeg)
    colours = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    count = len(np.unique(colours))
    if jpeg or count > _MAX_LABEL_COLOURS:
        return "picture"
    return {1: None, 2: "two"}.get(count, "few")


def _alpha_kind(pixels: npt.NDArray[Any]) -> str | None:
    """Return ``cutout``, or the kind of alpha if colour is constant; None if alpha is constant."""
    colour, alpha = _grid(pixels)[..., :3], _grid(pixels)[..., 3]
    if alpha.min() == alpha.max():
        return None
    flat = (colour == colour[0, 0]).all()
    return _plane_kind(alpha) if flat else "cutout"
