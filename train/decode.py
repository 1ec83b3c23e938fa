"""Images decoded outside the graph: the backgrounds, once, and those that stop it, one by one.

Says which image does not decode, and why, in DALI's words. Decodes by ``graph.decoder``, so that
what fails here is what fails there. This module opens no file.
"""

import weakref
from collections.abc import Sequence

import numpy as np

from train.errors import DataError
from train.graph import decoder
from train.mapped import Bytes

__all__ = ["background_table", "decode_faults", "reason_of"]

_TOGETHER = 8
"""Backgrounds decoded at a time: a large one takes tens of megabytes until it is squashed."""

_TABLES: "weakref.WeakValueDictionary[tuple[object, ...], Bytes]" = weakref.WeakValueDictionary()
"""Tables that loaders hold: those of one data set, as a run has them, share one."""

_STATUS = {3: "its file is damaged", 4: "not an image of a kind that DALI reads"}
"""What nvImageCodec's numbers say (``nvimgcodecStatus_t``); DALI hands on nothing but them."""


def background_table(
    payloads: Sequence[Bytes],
    names: Sequence[str],
    *,
    digests: tuple[str, ...],
    size: tuple[int, int],
    threads: int,
) -> Bytes:
    """Every background, decoded and squashed to one size with antialiasing.

    Args:
        payloads: Files of N >= 0 backgrounds.
        names: Of each, for an error.
        digests: SHA-256 of each: a table of the same is not made twice.
        size: Width and height. Pixels.
        threads: To decode with.

    Returns:
        (N, height, width, 3) uint8, contiguous; not to be written to.

    Raises:
        DataError: One does not decode.
    """
    width, height = size
    if (made := _TABLES.get((digests, size))) is not None:
        return made
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
                f"{names[first + at]}: does not decode ({faults[at] or reason_of(error)}); "
                "build the data set again without it"
            ) from error
    _TABLES[digests, size] = table
    return table


def decode_faults(payloads: Sequence[Bytes], role: str) -> list[str | None]:
    """DALI's reason for each payload that it does not decode, None for the others."""
    decode = decoder(batch_size=1, threads=1, colour=role in ("bg", "fg_bg"))
    found: list[str | None] = []
    for payload in payloads:
        try:
            decode([payload])
            found.append(None)
        except RuntimeError as error:
            found.append(reason_of(error))
    return found


def reason_of(error: RuntimeError) -> str:
    """What went wrong, in one line, of DALI's message of many."""
    text = str(error)
    if "encountered:" in text:
        text = text.split("encountered:", 1)[1].split("Current pipeline object", 1)[0]
    lines = [line.strip() for line in text.splitlines()]
    found = next((line.split("] ")[-1] for line in lines if "rror" in line), None)
    reason = found or " ".join(filter(None, lines))[:200]
    for status, meaning in _STATUS.items():
        reason = reason.replace(f"nvImageCodec failure: '#{status}'", meaning)
    return reason
