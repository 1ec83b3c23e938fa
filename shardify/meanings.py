"""How the masks and depths of a source are to be read, told by a look at a few of them.

Opens payloads, decides nothing by itself: what the levels mean is ``pixels``' word.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.errors import BuildError, EntryError, ImageError
from shardify.images import parse
from shardify.pixels import Meaning, levels_of, peak_of, settle_meaning
from shardify.reading import reader_of
from shardify.sources import Sources
from shardify.survey import Survey

__all__ = ["meaning_of"]

_LOOKED_AT = 16
"""Samples."""


def meaning_of(found: Survey) -> Meaning:
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
    with Sources([each.path for each in catalog.sources]) as descriptors:
        read = reader_of(catalog, descriptors)
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
