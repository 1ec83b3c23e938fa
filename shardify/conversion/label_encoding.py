"""Detect how the masks of a source encode their values, from a few samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.survey import BuildPlan
from shardify.errors import BuildError, EntryError, ImageError
from shardify.images.parser import MASK_THRESHOLD, parse
from shardify.images.pixels import LabelEncoding, levels_of
from shardify.sources.catalog import OpenSources, entry_reader

__all__ = ["choose_label_encoding", "detect_label_encoding"]

_MAX_SAMPLES_READ = 16

_MAX_LEVELS_IN_ERROR = 8


def detect_label_encoding(plan: BuildPlan) -> LabelEncoding:
    """Read a few masks, and return the encoding of all of them.

    Raises:
        BuildError: The masks use several encodings, or an unknown one.
    """
    layout, catalog = plan.layout, plan.catalog
    rows = np.flatnonzero(plan.usable)
    rows = rows[:: max(1, len(rows) // _MAX_SAMPLES_READ)][:_MAX_SAMPLES_READ]
    levels: list[NDArray[Any]] = []
    names: list[str] = []
    with OpenSources([each.path for each in catalog.sources]) as descriptors:
        read = entry_reader(catalog, descriptors)
        for entry in layout.members["mask"][rows].tolist() if "mask" in layout.members else ():
            try:
                data = read(entry)
                levels.append(levels_of(data, parse(data)))
                names.append(catalog.names[entry])
            except EntryError:
                continue  # The worker that reads it reports it.
    try:
        return choose_label_encoding(levels, names)
    except ImageError as error:
        raise BuildError(f"{plan.where}: {error}; convert the masks first") from error


def choose_label_encoding(masks: list[NDArray[Any]], names: Sequence[str] = ()) -> LabelEncoding:
    """Choose the encoding of a data set from the values in some of its images.

    Args:
        masks: The values found in each of some masks.
        names: Names of the masks, for error messages; may be empty.

    Raises:
        ImageError: The values of the masks fit no known encoding, or not the same one.
    """
    values = sorted({float(level) for levels in masks for level in levels})
    mask = "threshold"
    if values and values[-1] < MASK_THRESHOLD and values != [0.0]:
        if set(values) <= {1.0, 2.0, 3.0} and len(values) > 1:
            mask = "trimap"
        elif len(set(values) | {0.0}) == 2:
            mask = f"level {values[-1]:g}"
        else:
            shown = ", ".join(f"{level:g}" for level in values[:_MAX_LEVELS_IN_ERROR])
            shown += " ..." if len(values) > _MAX_LEVELS_IN_ERROR else ""
            raise ImageError(
                f"masks hold the values {shown}; "
                f"expected 0 and one other, 1/2/3, or gray of which {MASK_THRESHOLD} and more is "
                "object"
            )
    if mask == "threshold":
        _refuse_mixed([float(levels[-1]) for levels in masks if len(levels)], names)
    return LabelEncoding(mask)


def _refuse_mixed(peaks: list[float], names: Sequence[str]) -> None:
    """Raise ImageError if some masks would be empty under the threshold that fits the others."""
    faint = [place for place, peak in enumerate(peaks) if 0 < peak < MASK_THRESHOLD]
    if faint:
        highest = max(range(len(peaks)), key=peaks.__getitem__)
        low_example, high_example = (
            f"{names[place]} to {peaks[place]:g}" if names else f"one to {peaks[place]:g}"
            for place in (faint[0], highest)
        )
        raise ImageError(
            f"masks of mixed meaning: values go up in {low_example}, in {high_example} "
            f"({len(faint)} of {len(peaks)} looked at stay below {MASK_THRESHOLD}, from which on a "
            "pixel is object); expected one meaning for all"
        )
