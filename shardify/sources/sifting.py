"""Which entries of a central directory are offered at all: regular files with decent names.

Names that are hostile or stand there twice are found in bulk, links and devices by what the
packer's system said of them. It reads no file, and turns no name into a path.
"""

import stat
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.sources.entry_names import decode, is_hostile, some_hostile

__all__ = ["Refused", "sift", "sliced"]

_CHUNK = 1 << 16
_SEPARATORS = (ord("/"), ord("\\"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """An entry that is never offered as a sample's member, and why."""

    member: str
    reason: str


def sift(
    directory: bytes, kinds: NDArray[Any], start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[Refused], bytearray]:
    """Rows of regular files with harmless, unique names; what else is no folder; all names.

    Args:
        directory: The central directory.
        kinds: (N,) of each entry as Unix knows it, 0 where nothing says so.
        start: (N,) where its name begins.
        end: (N,) where that ends.
    """
    count = len(kinds)
    keep = np.ones(count, bool)
    reasons: dict[int, str] = {}
    hashes = np.empty(count, np.int64)
    block = bytearray()
    raw = np.frombuffer(directory, np.uint8)
    for first in range(0, count, _CHUNK):
        low, high = start[first : first + _CHUNK], end[first : first + _CHUNK]
        names = sliced(directory, low, high)
        block += b"".join(names)
        hashes[first : first + len(names)] = np.fromiter(map(hash, names), np.int64, len(names))
        lines = b"\n".join(names)
        if b"\\" in lines:
            lines = lines.replace(b"\\", b"/")
        if (
            (low == high).any()
            or np.isin(raw[high - 1], _SEPARATORS).any()
            or lines.count(b"\n") != len(names) - 1
            or some_hostile(lines)
        ):
            for row, name in enumerate(names, first):
                if not name:
                    reasons[row] = "has no name"
                elif is_hostile(name):
                    reasons[row] = "its name is absolute, climbs out, or has control characters"
                elif name.endswith((b"/", b"\\")):
                    keep[row] = False
    for row in np.flatnonzero(~np.isin(kinds, (0, stat.S_IFREG, stat.S_IFDIR))).tolist():
        kind = "a link" if kinds[row] == stat.S_IFLNK else "a device or pipe"
        reasons.setdefault(row, f"is {kind}, not a file")
    ranked = np.sort(hashes)
    if (ranked[1:] == ranked[:-1]).any():
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        seen: dict[bytes, list[int]] = {}
        for row in np.unique(order[np.concatenate((same, same + 1))]).tolist():
            if keep[row]:
                seen.setdefault(directory[int(start[row]) : int(end[row])], []).append(row)
        for rows in seen.values():
            if len(rows) > 1:
                for row in rows:
                    reasons.setdefault(row, "its name stands twice in the zip")
    keep[list(reasons)] = False
    refused = [
        Refused(member=decode(directory[int(start[row]) : int(end[row])]), reason=reason)
        for row, reason in sorted(reasons.items())
    ]
    return np.flatnonzero(keep), refused, block


def sliced(directory: bytes, low: NDArray[np.int64], high: NDArray[np.int64]) -> list[bytes]:
    """All that lies between ``low`` and ``high``, (N,) each."""
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [directory[start:end] for start, end in pairs]
