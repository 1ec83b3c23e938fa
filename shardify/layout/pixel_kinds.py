"""Tell a photograph, a two-valued mask, a label map and a gray scale apart by their pixels.

Bytes in, a word out. What cannot be decoded, or shows one value only, has no kind.
"""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.layout.thumbnails import BROKEN

__all__ = ["KINDS", "kind_of_files", "pixel_kind"]

KINDS = {
    "picture": "colour pictures",
    "two": "two values",
    "few": "a few values",
    "gray": "many gray values",
    "cutout": "pictures with transparency",
}
"""Kind -> how it is called in a message."""

_SIDE = 256
"""Pixels are looked at on a grid of at most this height and width."""

_MAX_PIXELS = 1 << 26
_DRAFT = 512
"""A JPEG of twice this size or more is decoded at a reduced size."""

_FEW = 16
"""Most values, or colours, of a label map."""

_COLOURS = 32


def kind_of_files(
    indexes: Iterable[int], read: Callable[[int], bytes]
) -> tuple[str | None, Counter[str]]:
    """Return the kind that all but one in five of some files have, else None; and all counts.

    Args:
        indexes: Of the files.
        read: Gives a file's bytes, or raises ``ShardifyError``; such a file does not count.
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
    """Return one of ``KINDS``; None where a file cannot be decoded or holds one value only."""
    # Imported here: a survey of names alone needs no Pillow.
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            if data.startswith(b"\x93NUMPY"):
                return _plane_kind(np.load(io.BytesIO(data), allow_pickle=False))
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > _MAX_PIXELS:
                return None
            if image.format == "JPEG":
                image.draft(image.mode, (_DRAFT, _DRAFT))
            if image.mode == "P" and len(np.unique(_grid(np.asarray(image)))) <= _COLOURS:
                return _plane_kind(np.asarray(image))
            alpha = "A" in image.getbands() or "transparency" in image.info
            if alpha and (kind := _alpha_kind(np.asarray(image.convert("RGBA")))):
                return kind
            if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;"):
                return _colour_kind(np.asarray(image.convert("RGB")), jpeg=image.format == "JPEG")
            return _plane_kind(np.asarray(image), jpeg=image.format == "JPEG")
    except (*BROKEN, *bombs):
        return None


def _grid(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th row and column."""
    rows, columns = (max(1, side // _SIDE) for side in pixels.shape[:2])
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
    # Soft edges of a mask, and what JPEG leaves of two values, lie close to them or are few.
    edge = (high - low) / 8
    inner = (values > low + edge) & (values < high - edge)
    if len(values) <= _FEW and not jpeg:
        return "few" if counts[1:-1].sum() > 0.05 * counts.sum() else "two"
    return "two" if counts[inner].sum() < 0.1 * counts.sum() else "gray"


def _colour_kind(pixels: npt.NDArray[Any], *, jpeg: bool) -> str | None:
    pixels = _grid(pixels).reshape(-1, 3)
    spread = np.ptp(pixels.astype(np.int16), axis=1)
    if spread.mean() < 3 and np.percentile(spread, 99) < 24:
        return _plane_kind(pixels[:, :1], jpeg=jpeg)
    colours = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    found = len(np.unique(colours))
    if jpeg or found > _COLOURS:
        return "picture"
    return {1: None, 2: "two"}.get(found, "few")


def _alpha_kind(pixels: npt.NDArray[Any]) -> str | None:
    """``cutout``, or what the alpha of one flat colour is; None where alpha tells nothing."""
    colour, alpha = _grid(pixels)[..., :3], _grid(pixels)[..., 3]
    if alpha.min() == alpha.max():
        return None
    flat = (colour == colour[0, 0]).all()
    return _plane_kind(alpha) if flat else "cutout"
