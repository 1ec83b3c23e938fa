"""Normalisation: from levels of 255 to deviations from the data set's mean.

The figures are the manifest's own; this module measures nothing.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError

__all__ = ["normal_of"]


def normal_of(manifest: Manifest, folder: Path) -> npt.NDArray[np.float32]:
    """How the channels of bg and fg_bg are normalised.

    Args:
        manifest: Holds their mean and deviation, in [0, 1].
        folder: Of the data set, for an error.

    Returns:
        (2, 2, 3) float32: of bg and of fg_bg, scale and shift of each channel; levels of 255 times
        scale plus shift is the output. Of a role that there is not: 1 and 0.

    Raises:
        DataError: The manifest holds no mean and deviation of them.
    """
    rows = []
    for role in ("bg", "fg_bg"):
        if role not in manifest.roles:
            rows.append([np.ones(3), np.zeros(3)])
            continue
        stats = manifest.stats.get(role)
        if stats is None or len(stats.mean) != 3 or len(stats.std) != 3:
            raise DataError(
                f"{folder}: the manifest has no mean and deviation of {role}'s three channels; "
                "build the data set again"
            )
        std = np.maximum(np.array(stats.std), 1 / 255)
        rows.append([1 / (255 * std), -np.array(stats.mean) / std])
    return np.array(rows, np.float32)
