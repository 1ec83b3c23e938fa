"""The table of a data set's backgrounds: all of them, decoded once, at the size of its composites.

Decodes on the CPU; loaders of one data set share a table. Files are opened by ``shards``.
"""

import weakref
from pathlib import Path

import numpy as np

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.dali_pipeline import decode_faults, decoder, reason_of
from shardify.loader.raw_codec import is_raw, pixels, size_of
from shardify.loader.shards import Bytes, background_payloads

__all__ = ["background_table"]

_TOGETHER = 8
"""Backgrounds decoded at a time: a large one takes tens of megabytes until it is squashed."""

_TABLES: "weakref.WeakValueDictionary[tuple[object, ...], Bytes]" = weakref.WeakValueDictionary()
"""Tables that loaders hold: those of one data set, as a run has them, share one."""


def background_table(folder: Path, manifest: Manifest, *, threads: int) -> Bytes:
    """Every background, decoded and squashed to one size with antialiasing.

    Args:
        folder: Of the data set.
        manifest: Its.
        threads: To decode with.

    Returns:
        (N, H, W, 3) uint8, contiguous, not to be written to; N = 0 where there are none.

    Raises:
        DataError: One is missing, is not the manifest's, or does not decode.
    """
    payloads = background_payloads(folder, manifest)
    if not payloads:
        return np.empty((0, 0, 0, 3), np.uint8)
    width, height = size = size_of(manifest, "fg_bg")
    key = (tuple(one.sha256 for one in manifest.backgrounds), size, is_raw(manifest))
    if (made := _TABLES.get(key)) is not None:
        return made
    if is_raw(manifest):
        table = np.stack([pixels(payload, manifest, "bg") for payload in payloads])
    else:
        table = np.empty((len(payloads), height, width, 3), np.uint8)
        decode = decoder(batch_size=_TOGETHER, threads=threads, colour=True, size=size)
        for first in range(0, len(payloads), _TOGETHER):
            files = payloads[first : first + _TOGETHER]
            try:
                table[first : first + len(files)] = decode(files)
            except RuntimeError as error:
                faults = decode_faults(files, "bg")
                at = next((place for place, fault in enumerate(faults) if fault), 0)
                raise DataError(
                    f"{folder}: background {manifest.backgrounds[first + at].id}: does not decode "
                    f"({faults[at] or reason_of(error)}); build the data set again without it"
                ) from error
    _TABLES[key] = table
    return table
