"""Group names by their outline, and cut keys and numbers out of all names of a group at once.

The outline of a name is the name with every digit as 0. A million names of a data set have a
handful of outlines, so one name of each is parsed, and the positions found hold for all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.filenames import MAX_CACHED_OUTLINES, MAX_INT32
from shardify.sources.entry_names import take

IntArray = npt.NDArray[np.int32]

UNGROUPED = -1
"""Outline of names that came after ``MAX_CACHED_OUTLINES`` others; each is parsed alone."""

_CHUNK_NAMES = 1 << 16
"""Number of names that are handled at once."""


class NamePatterns:
    """The names of a source, grouped by outline."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.outline_index = np.full(len(names), UNGROUPED, np.int32)
        """(N,) int32, outline of each name, or ``UNGROUPED``."""
        self.examples: list[str] = []
        """First name of each outline."""
        known: dict[bytes, int] = {}
        for first, some in _chunks(names):
            outlines = _outlines(some)
            new = set(outlines) - known.keys()
            if new:
                for place, outline in enumerate(outlines):
                    if outline in new and len(known) < MAX_CACHED_OUTLINES:
                        new.discard(outline)
                        known[outline] = len(known)
                        self.examples.append(some[place])
            self.outline_index[first : first + len(some)] = [
                known.get(each, UNGROUPED) for each in outlines
            ]

    def batches(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Yield wanted names, those of one outline together, at most 65,536 at a time.

        Args:
            wanted: (N,) bool, which names to yield.

        Yields:
            Outline, or ``UNGROUPED`` for names without one; (n,) int32, indexes of the names; the
            names.
        """
        for first, some in _chunks(self._names):
            rows = np.flatnonzero(wanted[first : first + len(some)])
            indexes = first + rows
            names = some if len(rows) == len(some) else [some[row] for row in rows.tolist()]
            yield from self._sorted(indexes, names, indexes)

    def groups(self, members: IntArray) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Like ``batches`` for chosen names; yields positions in ``members`` instead of indexes."""
        for first in range(0, len(members), _CHUNK_NAMES):
            some = members[first : first + _CHUNK_NAMES]
            names = take(self._names, some)
            for code, places, group in self._sorted(some, names, np.arange(len(some))):
                yield code, (first + places).astype(np.int32), group

    def _sorted(
        self, indexes: npt.NDArray[Any], names: list[str], labels: npt.NDArray[Any]
    ) -> Iterator[tuple[int, IntArray, list[str]]]:
        codes = self.outline_index[indexes]
        steps = np.diff(codes)
        order = None if (steps >= 0).all() else np.argsort(codes, kind="stable")
        if order is not None:
            codes, labels, steps = codes[order], labels[order], np.diff(codes[order])
            names = [names[row] for row in order.tolist()]
        edges = [0, *(np.flatnonzero(steps) + 1).tolist(), len(codes)]
        for first, last in pairwise(edges) if len(codes) else ():
            yield int(codes[first]), labels[first:last].astype(np.int32), names[first:last]


def read_numbers(names: Sequence[str], where: slice) -> npt.NDArray[np.int64]:
    """Return (n,) int64, the number at one position of each name; at most 2**31 - 1.

    Args:
        names: Names of one outline.
        where: Span of its digits.
    """
    length, digits = len(names[0]), where.stop - where.start
    text = "".join(names)
    if text.isascii() and len(text) == length * len(names) and digits <= 18:
        # All names have one length: read them as a table of characters.
        table = np.frombuffer(text.encode(), np.uint8).reshape(-1, length)[:, where]
        values = table.astype(np.int64) - ord("0")
        values = values @ 10 ** np.arange(digits - 1, -1, -1, dtype=np.int64)
    else:
        values = np.array([min(int(name[where]), MAX_INT32) for name in names], np.int64)
    return np.minimum(values, MAX_INT32, dtype=np.int64)


def _chunks(names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    source = iter(names)
    first = 0
    while some := list(islice(source, _CHUNK_NAMES)):
        yield first, some
        first += len(some)


def _outlines(names: list[str]) -> list[bytes]:
    """Return the outline of each name; one call for all names is faster than one for each."""
    outlines = filenames.zero_digits("\n".join(names)).split(b"\n")
    return outlines if len(outlines) == len(names) else list(map(filenames.zero_digits, names))


NO_FOLDER, LAST_FOLDER, ALL_FOLDERS = range(3)
"""Folders that are part of a key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPattern:
    """Positions from which to build the key of any name of one outline."""

    pieces: tuple[slice, ...]
    """Spans of the name that make the key."""
    separators: tuple[str, ...]
    """Texts between the pieces."""
    lower: bool
    """Whether names must be converted to lower case first."""
    prefix: str = ""
    """Text before the first piece."""

    def apply(self, names: Sequence[str]) -> list[str]:
        """Return the keys of names that all have the outline."""
        if self.lower:
            names = [name.lower() for name in names]
        prefix, pieces = self.prefix, self.pieces
        first = pieces[0]
        if len(pieces) == 1:
            return [prefix + name[first] for name in names]
        if len(pieces) == 2:
            second, separator = pieces[1], self.separators[0]
            return [prefix + name[first] + separator + name[second] for name in names]
        rest = list(zip(self.separators, pieces[1:], strict=True))
        return [
            prefix + name[first] + "".join([separator + name[piece] for separator, piece in rest])
            for name in names
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberSpans:
    """Spans of the numbers in all names of one outline; None for a number that they lack."""

    background: slice | None
    """Number after a word for background: in the stem, else in the innermost folder with one."""
    foreground: slice | None
    """Number after a word for foreground in the stem."""
    folder: slice | None
    """Last number of the innermost folder."""


def find_key_pattern(name: str, shared: int, folders: int) -> KeyPattern | None:
    """Return the key pattern of a name's outline; None if each name must be parsed alone.

    Args:
        name: Any name of the outline.
        shared: Number of leading folders to skip.
        folders: ``NO_FOLDER``, ``LAST_FOLDER`` or ``ALL_FOLDERS``.
    """
    lower = name.lower()
    if len(lower) != len(name):
        return None
    path, _, base = lower.rpartition("/")
    groups = []
    for start, part in _folder_parts(path, shared) if folders else ():
        shifted = [_shift(piece, start) for piece in filenames.parse_stem(part).pieces]
        if shifted:
            groups.append(shifted)
    if folders == LAST_FOLDER:
        groups = groups[-1:]
    stem = base.rpartition(".")[0]
    place = len(path) + 1 if path or name.startswith("/") else 0
    last = [_shift(piece, place) for piece in filenames.parse_stem(stem).pieces]
    if not last:
        return None
    pieces: list[slice] = []
    separators: list[str] = []
    for group in [*groups, last]:
        for number, piece in enumerate(group):
            if pieces:
                separators.append("_" if number else "/")
            pieces.append(piece)
    prefix = "/" if folders and not groups else ""
    return KeyPattern(
        pieces=tuple(pieces), separators=tuple(separators), lower=lower != name, prefix=prefix
    )


def find_number_spans(name: str, shared: int) -> NumberSpans | None:
    """Return the number spans of a name's outline; None as for ``find_key_pattern``."""
    lower = name.lower()
    if len(lower) != len(name):
        return None
    path, _, base = lower.rpartition("/")
    place = len(path) + 1 if path or name.startswith("/") else 0
    stem = base.rpartition(".")[0]
    shape = filenames.parse_stem(stem)
    background = _span_in_name(shape, shape.background, place)
    foreground = _span_in_name(shape, shape.foreground, place)
    folder = None
    parts = list(_folder_parts(path, shared))
    for number, (start, part) in enumerate(reversed(parts)):
        inner = filenames.parse_stem(part)
        if number == 0:
            folder = _last_digits(inner, part, start)
        if background is None:
            background = _span_in_name(inner, inner.background, start)
    return NumberSpans(background=background, foreground=foreground, folder=folder)


def _folder_parts(path: str, shared: int) -> list[tuple[int, str]]:
    """Return the folders after the shared ones, each with its offset in the path."""
    parts = []
    start = 0
    for part in path.split("/") if path else ():
        parts.append((start, part))
        start += len(part) + 1
    return parts[shared:]


def _shift(piece: slice, by: int) -> slice:
    return slice(piece.start + by, piece.stop + by)


def _span_in_name(shape: filenames.StemShape, inside: slice | None, start: int) -> slice | None:
    """Convert a span in the joined pieces to a span in the name."""
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


def _last_digits(shape: filenames.StemShape, part: str, start: int) -> slice | None:
    """Return the span of the last number in the pieces; of a long one its last 18 digits."""
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
