"""Decode all backgrounds of a data set into one table, at the size of its composites.

Decodes on the CPU. Loaders of one data set share the table.
"""

import weakref
from pathlib import Path

import numpy as np

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.images.raw_pixels import unpack_raw
from shardify.loader.dali_pipeline import decode_faults, decoder, error_reason
from shardify.loader.raw_codec import image_size, is_raw, raw_image_info
from shardify.loader.shards import Bytes, background_payloads

_DECODE_BATCH = 8
"""Backgrounds decoded at once: a large one takes tens of megabytes until it is resized."""

_TABLES: "weakref.WeakValueDictionary[tuple[object, ...], Bytes]" = weakref.WeakValueDictionary()
"""Tables in use, so that the loaders of one data set share one."""


def background_table(folder: Path, manifest: Manifest, *, threads: int) -> Bytes:
    """Return every background, decoded and resized to one size with antialiasing.

    Returns:
        (N, H, W, 3) uint8, contiguous, not to be written to; N = 0 without backgrounds.

    Raises:
        DataError: A background is missing, differs from the manifest, or does not decode.
    """
    payloads = background_payloads(folder, manifest)
    if not payloads:
        return np.empty((0, 0, 0, 3), np.uint8)
    width, height = size = image_size(manifest, "fg_bg")
    key = (tuple(one.sha256 for one in manifest.backgrounds), size, is_raw(manifest))
    if (shared := _TABLES.get(key)) is not None:
        return shared
    if is_raw(manifest):
        picture = raw_image_info(manifest, "bg")
        table = np.empty((len(payloads), picture.height, picture.width, 3), np.uint8)
        for place, payload in enumerate(payloads):
            table[place] = unpack_raw(payload, picture, "bg")
    else:
        table = np.empty((len(payloads), height, width, 3), np.uint8)
        decode = decoder(batch_size=_DECODE_BATCH, threads=threads, colour=True, size=size)
        for first in range(0, len(payloads), _DECODE_BATCH):
            files = payloads[first : first + _DECODE_BATCH]
            try:
                table[first : first + len(files)] = decode(files)
            except RuntimeError as error:
                faults = decode_faults(files, "bg")
                failed = next((place for place, fault in enumerate(faults) if fault), 0)
                raise DataError(
                    f"{folder}: background {manifest.backgrounds[first + failed].id}: does not "
                    f"decode ({faults[failed] or error_reason(error)}); build the data set again "
                    "without it"
                ) from error
    _TABLES[key] = table
    return table
