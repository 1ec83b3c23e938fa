"""Samples stored without a codec: what their bytes are, and whether they are that many.

``fg_bg`` and ``bg``: uint8, planar (3, H, W). ``mask``: the bits of (H, W), rows joined, most
significant first, 1 where the object is. ``depth``: (H, W) uint8, or uint16 little-endian. All
sizes stand in the manifest. This module reads nothing itself.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.shards import IMAGES, Bytes, Shards

__all__ = ["check_sizes", "is_raw", "pixels", "size_of"]


def is_raw(manifest: Manifest) -> bool:
    """Whether the data set's images are stored without a codec.

    Raises:
        DataError: Some are and some are not.
    """
    raw = {
        role: manifest.roles[role].codec == "raw"
        for role in ("bg", *IMAGES)
        if role in manifest.roles
    }
    if len(set(raw.values())) > 1:
        names = ", ".join(role for role, found in raw.items() if found)
        raise DataError(
            f"manifest: only {names} in the raw codec; expected all roles or none; "
            "build the data set again"
        )
    return raw["fg_bg"]


def size_of(manifest: Manifest, role: str) -> tuple[int, int]:
    """Width and height of every image of a role. Pixels."""
    width, height, _ = manifest.roles[role].sizes[0]
    return width, height


def check_sizes(shards: Shards, manifest: Manifest) -> None:
    """See that every raw member has the bytes of its size.

    Raises:
        DataError: One has not; the message names the shard and the sample's key.
    """
    for column, role in enumerate(shards.images):
        expected = _length(manifest, role)
        wrong = np.flatnonzero(shards.sizes[:, column] != expected)
        if len(wrong):
            width, height = size_of(manifest, role)
            raise DataError(
                f"{shards.where(int(wrong[0]))}: raw {role} of "
                f"{shards.sizes[wrong[0], column]} bytes; the manifest's {width}x{height} pixels "
                f"take {expected}; {shards.remedy()}"
            )


def pixels(payload: Bytes, manifest: Manifest, role: str) -> npt.NDArray[Any]:
    """A raw member as an image.

    Args:
        payload: As many bytes as the role's size takes.
        manifest: States that size.
        role: bg, fg_bg, mask or depth.

    Returns:
        (H, W, 3) or (H, W, 1), contiguous; a mask in 0 and 255.
    """
    width, height = size_of(manifest, role)
    if role in ("bg", "fg_bg"):
        return np.ascontiguousarray(payload.reshape(3, height, width).transpose(1, 2, 0))
    if role == "mask":
        bits = np.unpackbits(payload, count=height * width)
        return (bits * np.uint8(255)).reshape(height, width, 1)
    kind = "<u2" if manifest.roles[role].bits == 16 else "u1"
    return payload.view(kind).reshape(height, width, 1)


def _length(manifest: Manifest, role: str) -> int:
    """Bytes of a raw member."""
    width, height = size_of(manifest, role)
    area = width * height
    if role == "mask":
        return -(-area // 8)
    if role == "depth":
        return area * manifest.roles[role].bits // 8
    return 3 * area
