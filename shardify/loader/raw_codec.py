"""Check a data set in the raw codec against its manifest.

``shardify.images.raw_pixels`` states the byte layout.
"""

import numpy as np

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.images.parser import ImageInfo
from shardify.images.raw_pixels import raw_length
from shardify.loader.shards import IMAGES, Shards


def is_raw(manifest: Manifest) -> bool:
    """Whether the data set's images are stored in the raw codec.

    Raises:
        DataError: Some are and some are not.
    """
    raw = {
        role: manifest.roles[role].codec == "raw"
        for role in ("bg", *IMAGES)
        if role in manifest.roles
    }
    if len(set(raw.values())) > 1:
        names = ", ".join(role for role, role_is_raw in raw.items() if role_is_raw)
        raise DataError(
            f"manifest: only {names} in the raw codec; expected all roles or none; "
            "build the data set again"
        )
    return raw["fg_bg"]


def image_size(manifest: Manifest, role: str) -> tuple[int, int]:
    """Return the width and height of a role's images, which all have one size. Pixels."""
    width, height, _ = manifest.roles[role].sizes[0]
    return width, height


def raw_image_info(manifest: Manifest, role: str) -> ImageInfo:
    """Return the size and type of a role's raw images, as ``raw_pixels`` takes them."""
    width, height = image_size(manifest, role)
    stated = manifest.roles[role]
    return ImageInfo("raw", width, height, stated.channels, stated.bits)


def check_sizes(shards: Shards, manifest: Manifest) -> None:
    """Check that every raw member has as many bytes as the manifest's size takes.

    Raises:
        DataError: A member has another length; the message names the shard and the sample's key.
    """
    for column, role in enumerate(shards.images):
        picture = raw_image_info(manifest, role)
        expected = raw_length(picture, role)
        wrong = np.flatnonzero(shards.sizes[:, column] != expected)
        if len(wrong):
            raise DataError(
                f"{shards.where(int(wrong[0]))}: raw {role} of "
                f"{shards.sizes[wrong[0], column]} bytes; the manifest's "
                f"{picture.width}x{picture.height} pixels take {expected}; {shards.remedy()}"
            )
