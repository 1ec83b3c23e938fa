"""Entries of a catalog, as workers are told of them, and their payloads, read here and now.

Decides nothing about what it reads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.errors import EntryError
from shardify.sources.catalog import FAULTS, Catalog
from shardify.sources.zip_extract import payload
from shardify.storage.readers import Handle
from shardify.writer.tasks import ROW

__all__ = ["reader_of", "rows_of"]


def rows_of(catalog: Catalog, numbers: NDArray[Any]) -> NDArray[Any]:
    """Entries as tasks carry them: the shape of ``numbers``, of ``writer.ROW``."""
    rows = np.empty(numbers.shape, ROW)
    for name in ROW.names or ():
        rows[name] = getattr(catalog.entries, name)[numbers]
    return rows


def reader_of(catalog: Catalog, descriptors: Sequence[Handle]) -> Callable[[int], bytes]:
    """A function from an entry's number to its payload; it raises EntryError for a bad one."""

    def read(entry: int) -> bytes:
        code = int(catalog.entries.fault[entry])
        if code:
            raise EntryError(FAULTS[code])
        source, *rest = rows_of(catalog, np.array([entry]))[0].tolist()
        return payload(descriptors[source], catalog.names.raw(entry), *rest)

    return read
