"""How the masks and depths of a source are to be read, told by a look at a few of them.

Opens payloads; what is then made of every picture is ``pixels``' to do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.survey import BuildPlan
from shardify.errors import BuildError, EntryError, ImageError
from shardify.images.parser import MASK_THRESHOLD, parse
from shardify.images.pixels import STANDARD, LabelEncoding, levels_of, peak_of
from shardify.sources.catalog import OpenSources, entry_reader

__all__ = ["meaning_of", "settle_meaning"]

_LOOKED_AT = 16
"""Samples."""

_MAX_LEVELS = 8
"""That an error names."""


def meaning_of(found: BuildPlan) -> LabelEncoding:
    """Look at a few masks, and at depths in floating point, to know how all are to be read.

    Raises:
        BuildError: Masks are of several kinds, or of none that is known.
    """
    layout, catalog = found.layout, found.catalog
    rows = np.flatnonzero(found.usable)
    rows = rows[:: max(1, len(rows) // _LOOKED_AT)][:_LOOKED_AT]
    levels: list[NDArray[Any]] = []
    names: list[str] = []
    peaks: list[float] = []
    with OpenSources([each.path for each in catalog.sources]) as descriptors:
        read = entry_reader(catalog, descriptors)
        for role in ("mask", "depth"):
            if role not in layout.members:
                continue
            for entry in layout.members[role][rows].tolist():
                try:
                    data = read(entry)
                    picture = parse(data)
                    if role == "mask":
                        levels.append(levels_of(data, picture))
                        names.append(catalog.names[entry])
                    elif picture.trait == "F" or picture.trait.startswith("float"):
                        peaks.append(peak_of(data, picture))
                    else:
                        break
                except EntryError:
                    continue  # The worker that meets it will say so.
    try:
        return settle_meaning(levels, peaks, names)
    except ImageError as error:
        raise BuildError(f"{found.where}: {error}; convert the masks first") from error


def settle_meaning(
    masks: list[NDArray[Any]], depth_peaks: list[float], names: Sequence[str] = ()
) -> LabelEncoding:
    """Say from some of a data set's pictures how all of them are to be read.

    Args:
        masks: The values found in each of some masks.
        depth_peaks: The largest value of each of some floating-point depth maps; may be empty.
        names: Of the masks, for an error; may be empty.

    Raises:
        ImageError: The masks' values fit no known meaning, or not one for all of them.
    """
    scale = 65535 if depth_peaks and max(depth_peaks) <= 1 else STANDARD.depth_scale
    found = sorted({float(level) for levels in masks for level in levels})
    mask = "threshold"
    if found and found[-1] < MASK_THRESHOLD and found != [0.0]:
        if set(found) <= {1.0, 2.0, 3.0} and len(found) > 1:
            mask = "trimap"
        elif len(set(found) | {0.0}) == 2:
            mask = f"level {found[-1]:g}"
        else:
            shown = ", ".join(f"{level:g}" for level in found[:_MAX_LEVELS])
            raise ImageError(
                f"masks hold the values {shown}{' ...' if len(found) > _MAX_LEVELS else ''}; "
                f"expected 0 and one other, 1/2/3, or gray of which {MASK_THRESHOLD} and more is "
                "object"
            )
    if mask == "threshold":
        _refuse_mixed([float(levels[-1]) for levels in masks if len(levels)], names)
    return LabelEncoding(mask, scale)


def _refuse_mixed(peaks: list[float], names: Sequence[str]) -> None:
    """Raise ImageError where some masks would be empty by the rule that others show."""
    faint = [place for place, peak in enumerate(peaks) if 0 < peak < MASK_THRESHOLD]
    if faint:
        full = max(range(len(peaks)), key=peaks.__getitem__)
        one, other = (
            f"{names[place]} to {peaks[place]:g}" if names else f"one to {peaks[place]:g}"
            for place in (faint[0], full)
        )
        raise ImageError(
            f"masks of mixed meaning: values go up in {one}, in {other} ({len(faint)} of "
            f"{len(peaks)} looked at stay below {MASK_THRESHOLD}, from which on a pixel is "
            "object); expected one meaning for all"
        )
