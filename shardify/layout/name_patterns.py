"""Where, in all names of one outline, what companions share stands, and what the numbers mean.

Studies one name and says at which places of any name alike something is to be cut out.

Names sorted by their outline: what is left when every digit is a nought.

A million names of a data set have a handful of outlines, so whatever a name says but for its
numbers is found once for each outline, and numbers are cut out of all its names in one go. What a
name says is ``naming``'s to tell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.sources.entry_names import take

__all__ = [
    "ALL_FOLDERS",
    "LAST_FOLDER",
    "NO_FOLDER",
    "UNGROUPED",
    "KeyPattern",
    "NamePatterns",
    "NumberSpans",
    "numbers_at",
    "numbers_of",
    "recipe_of",
]


IntArray = npt.NDArray[np.int32]

UNGROUPED = -1
"""The code of names that came when too many outlines were known: each is to be studied itself."""

_CHUNK = 1 << 16
_MOST = 2**31 - 1
_REMEMBERED = 50_000
_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")


class NamePatterns:
    """The outlines of a source's names.

    Args:
        names: Of the source.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.of_name = np.full(len(names), UNGROUPED, np.int32)
        """(N,) int32: the number of each name's outline, or ``UNGROUPED``."""
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
            self.of_name[first : first + len(some)] = [
                known.get(each, UNGROUPED) for each in outlines
            ]

    def batches(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Names of one outline at a time, some ten thousand names at most.

        Args:
            wanted: (N,) bool, of which names.

        Yields:
            Number of the outline, or ``UNGROUPED`` for names of any; indexes of the names; the
            names.
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


NO_FOLDER, LAST_FOLDER, ALL_FOLDERS = range(3)
"""What of its folders belongs to a name's key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPattern:
    """How to make a key of a name."""

    pieces: tuple[slice, ...]
    joints: tuple[str, ...]
    """What stands between the pieces."""
    lower: bool
    """Whether names of this outline must be turned to lower case first."""
    lead: str = ""
    """What stands before the first piece."""

    def apply(self, names: Sequence[str]) -> list[str]:
        """The keys of names that all have the outline."""
        if self.lower:
            names = [name.lower() for name in names]
        lead, pieces = self.lead, self.pieces
        first = pieces[0]
        if len(pieces) == 1:
            return [lead + name[first] for name in names]
        if len(pieces) == 2:
            second, joint = pieces[1], self.joints[0]
            return [lead + name[first] + joint + name[second] for name in names]
        rest = list(zip(self.joints, pieces[1:], strict=True))
        return [
            lead + name[first] + "".join([joint + name[piece] for joint, piece in rest])
            for name in names
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberSpans:
    """Where in a name its numbers stand; None where it has no such number."""

    background: slice | None
    """After a word for background: in the stem, else in the innermost folder that has one."""
    foreground: slice | None
    folder: slice | None
    """The last run of digits of the innermost folder."""


def recipe_of(name: str, shared: int, folders: int) -> KeyPattern | None:
    """The recipe for all names of this one's outline; None where it is not so simple.

    Args:
        name: Any of them.
        shared: How many leading folders to pass over.
        folders: ``NO_FOLDER``, ``LAST_FOLDER`` or ``ALL_FOLDERS``.
    """
    lower = name.lower()
    if len(lower) != len(name):
        return None
    path, _, base = lower.rpartition("/")
    groups = []
    for start, part in _parts(path, shared) if folders else ():
        found = [_moved(piece, start) for piece in filenames.shape_of(part).pieces]
        if found:
            groups.append(found)
    if folders == LAST_FOLDER:
        groups = groups[-1:]
    stem = base.rpartition(".")[0]
    place = len(path) + 1 if path or name.startswith("/") else 0
    last = [_moved(piece, place) for piece in filenames.shape_of(stem).pieces]
    if not last:
        return None
    pieces: list[slice] = []
    joints: list[str] = []
    for group in [*groups, last]:
        for number, piece in enumerate(group):
            if pieces:
                joints.append("_" if number else "/")
            pieces.append(piece)
    lead = "/" if folders and not groups else ""
    return KeyPattern(pieces=tuple(pieces), joints=tuple(joints), lower=lower != name, lead=lead)


def numbers_of(name: str, shared: int) -> NumberSpans | None:
    """Where the numbers stand in all names of this one's outline; None as for ``recipe_of``."""
    lower = name.lower()
    if len(lower) != len(name):
        return None
    path, _, base = lower.rpartition("/")
    place = len(path) + 1 if path or name.startswith("/") else 0
    stem = base.rpartition(".")[0]
    shape = filenames.shape_of(stem)
    background = _found(shape, shape.background, place)
    foreground = _found(shape, shape.foreground, place)
    folder = None
    parts = list(_parts(path, shared))
    for number, (start, part) in enumerate(reversed(parts)):
        inner = filenames.shape_of(part)
        if number == 0:
            folder = _last_run(inner, part, start)
        if background is None:
            background = _found(inner, inner.background, start)
    return NumberSpans(background=background, foreground=foreground, folder=folder)


def _parts(path: str, shared: int) -> list[tuple[int, str]]:
    """The folders behind the shared ones, each with the place where it begins."""
    found = []
    start = 0
    for part in path.split("/") if path else ():
        found.append((start, part))
        start += len(part) + 1
    return found[shared:]


def _moved(piece: slice, by: int) -> slice:
    return slice(piece.start + by, piece.stop + by)


def _found(shape: filenames.Shape, inside: slice | None, start: int) -> slice | None:
    """A place in the joined pieces, as a place in the name."""
    if inside is None:
        return None
    at = 0
    for piece in shape.pieces:
        size = piece.stop - piece.start
        if at <= inside.start and inside.stop <= at + size:
            first = start + piece.start + inside.start - at
            return slice(first, first + inside.stop - inside.start)
        at += size + 1
    return None


def _last_run(shape: filenames.Shape, part: str, start: int) -> slice | None:
    """The last run of digits in the pieces."""
    for piece in reversed(shape.pieces):
        text = part[piece]
        stop = len(text)
        while stop and not text[stop - 1].isdecimal():
            stop -= 1
        first = stop
        while first and text[first - 1].isdecimal():
            first -= 1
        if stop:
            first = max(first, stop - 18)
            return slice(start + piece.start + first, start + piece.start + stop)
    return None
