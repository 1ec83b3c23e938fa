"""Turn pictures by their EXIF orientation, and tell on which pixels their labels lie.

A camera stores a turned picture's pixels unturned, with an EXIF tag. Some programs turn the picture
before a mask is drawn or a depth is estimated, others do not. So a label without a tag of its own
lies on the stored pixels, or on the turned ones.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ImageError
from shardify.images.parser import ImageInfo

STORED, TURNED = "stored", "turned"
"""The frames in which a label may lie."""

_SWAPS_SIDES = 5
"""Orientations from this one on exchange width and height."""
_ASPECT_SLACK = 0.02
_GRID = 96
"""Height and width at which edges are compared."""


def turn(plane: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return pixels (H, W) or (H, W, C) as an EXIF orientation, 1 to 8, says they are shown."""
    if orientation >= _SWAPS_SIDES:
        plane = plane.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    return np.ascontiguousarray(plane)


def fitting_frame(label: ImageInfo, picture: ImageInfo) -> str | None:
    """Return the frame in which a label must lie by its size; None if both or neither fit."""
    if picture.orientation < _SWAPS_SIDES:
        return None
    stored = _same_aspect(label.width, label.height, picture)
    turned = _same_aspect(label.height, label.width, picture)
    return None if stored == turned else STORED if stored else TURNED


def label_orientation(label: ImageInfo, picture: ImageInfo, frame: str) -> int:
    """Return the orientation by which a label must be turned to lie on its turned picture.

    Args:
        label: Header of a mask or depth map.
        picture: Header of the sample's picture.
        frame: The frame of the data set's labels of this role: ``stored`` or ``turned``; empty if
            not known.

    Raises:
        ImageError: The label's size contradicts the frame, or neither is known.
    """
    if picture.orientation == 1 or label.orientation != 1:
        return 1  # Nothing is turned, or the label by its own tag.
    by_size = fitting_frame(label, picture)
    tag = f"its picture is turned by EXIF (orientation {picture.orientation})"
    if by_size and frame and by_size != frame:
        raise ImageError(f"{tag}, and by its size it lies on the {by_size} pixels, unlike others")
    if not (by_size or frame):
        raise ImageError(
            f"{tag}, and size does not tell whether it lies on the stored pixels; save the "
            "pictures turned and without the tag, or set exif in a layout file"
        )
    return picture.orientation if (by_size or frame) == STORED else 1


def edge_agreement(picture: NDArray[Any], label: NDArray[Any]) -> float:
    """Return the correlation of the edges of two planes (H, W), in [-1, 1]; 0 if one has none."""
    first, second = _edges(picture), _edges(label)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / norms if norms else 0.0


def _edges(plane: NDArray[Any]) -> NDArray[np.float32]:
    from PIL import Image

    finite = np.nan_to_num(plane.astype(np.float32), nan=0, posinf=0, neginf=0)
    span = float(np.ptp(finite))
    image = Image.fromarray((finite - finite.min()) / (span or 1))
    small = np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BOX))
    down, right = np.gradient(small)
    edges: NDArray[np.float32] = np.sqrt(
        np.hypot(down, right)
    )  # The root keeps one strong edge from deciding alone.
    edges -= edges.mean()
    return edges


def _same_aspect(width: int, height: int, picture: ImageInfo) -> bool:
    off = abs(picture.width * height - width * picture.height)
    return off <= max(_ASPECT_SLACK * width * picture.height, picture.width, picture.height)
