"""Names sorted by their outline: what is left when every digit is a nought.

A million names of a data set have a handful of outlines, so whatever a name says but for its
numbers is found once for each outline, and numbers are cut out of all its names in one go. What a
name says is ``naming``'s to tell.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.sources.entry_names import take

__all__ = ["ALONE", "Outlines", "numbers_at"]

IntArray = npt.NDArray[np.int32]

ALONE = -1
"""The code of names that came when too many outlines were known: each is to be studied itself."""

_CHUNK = 1 << 16
_MOST = 2**31 - 1
_REMEMBERED = 50_000
_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")


class Outlines:
    """The outlines of a source's names.

    Args:
        names: Of the source.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.of_name = np.full(len(names), ALONE, np.int32)
        """(N,) int32: the number of each name's outline, or ``ALONE``."""
        self.examples: list[str] = []
        """The first name of each outline."""
        known: dict[bytes, int] = {}
        for first, some in _chunks(names):
            outlines = _outlines(some)
            new = set(outlines) - known.keys()
            if new:
                for place, outline in enumerate(outlines):
                    if outline in new and len(known) < _REMEMBERED:
                        new.discard(outline)
                        known[outline] = len(known)
                        self.examples.append(some[place])
            self.of_name[first : first + len(some)] = [known.get(each, ALONE) for each in outlines]

    def batches(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Names of one outline at a time, some ten thousand names at most.

        Args:
            wanted: (N,) bool, of which names.

        Yields:
            Number of the outline, or ``ALONE`` for names of any; indexes of the names; the names.
        """
        for first, some in _chunks(self._names):
            rows = np.flatnonzero(wanted[first : first + len(some)])
            indexes = first + rows
            names = some if len(rows) == len(some) else [some[row] for row in rows.tolist()]
            yield from self._sorted(indexes, names, indexes)

    def groups(self, members: IntArray) -> Iterator[tuple[int, IntArray, list[str]]]:
        """The same of chosen names; in place of the indexes, places in ``members``."""
        for first in range(0, len(members), _CHUNK):
            some = members[first : first + _CHUNK]
            names = take(self._names, some)
            for code, places, group in self._sorted(some, names, np.arange(len(some))):
                yield code, (first + places).astype(np.int32), group

    def _sorted(
        self, indexes: npt.NDArray[Any], names: list[str], told: npt.NDArray[Any]
    ) -> Iterator[tuple[int, IntArray, list[str]]]:
        codes = self.of_name[indexes]
        steps = np.diff(codes)
        order = None if (steps >= 0).all() else np.argsort(codes, kind="stable")
        if order is not None:
            codes, told, steps = codes[order], told[order], np.diff(codes[order])
            names = [names[row] for row in order.tolist()]
        edges = [0, *(np.flatnonzero(steps) + 1).tolist(), len(codes)]
        for first, last in pairwise(edges) if len(codes) else ():
            yield int(codes[first]), told[first:last].astype(np.int32), names[first:last]


def numbers_at(names: Sequence[str], where: slice) -> npt.NDArray[np.int64]:
    """The numbers that stand at one place of all the names; at most 2**31 - 1.

    Args:
        names: Of one outline.
        where: A run of digits.
    """
    length, digits = len(names[0]), where.stop - where.start
    text = "".join(names)
    if text.isascii() and len(text) == length * len(names) and digits <= 18:
        # All of one length: a table of characters.
        table = np.frombuffer(text.encode(), np.uint8).reshape(-1, length)[:, where]
        found = table.astype(np.int64) - ord("0")
        found = found @ 10 ** np.arange(digits - 1, -1, -1, dtype=np.int64)
    else:
        found = np.array([min(int(name[where]), _MOST) for name in names], np.int64)
    return np.minimum(found, _MOST, dtype=np.int64)


def _chunks(names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    source = iter(names)
    first = 0
    while some := list(islice(source, _CHUNK)):
        yield first, some
        first += len(some)


def _outlines(names: list[str]) -> list[bytes]:
    lines = "\n".join(names).encode("utf-8", "surrogatepass").translate(_ANY_DIGIT)
    found = lines.split(b"\n")
    if len(found) == len(names):
        return found
    return [name.encode("utf-8", "surrogatepass").translate(_ANY_DIGIT) for name in names]
