"""Group names by their outline, and cut keys and numbers out of all names of a group at once.

The outline of a name is the name with every digit as 0. A million names of a data set have a
handful of outlines, so one name of each is parsed, and the positions found hold for all of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.filenames import MAX_CACHED_OUTLINES, MAX_INT32, IntArray
from shardify.sources.entry_names import take

UNGROUPED = -1
"""Outline of names that came after ``MAX_CACHED_OUTLINES`` others; each is parsed alone."""

_CHUNK_NAMES = 1 << 16
"""Number of names that are handled at once."""

_DIGITS = re.compile(r"\d+")


class NamePatterns:
    """The names of a source, grouped by outline."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.outline_index = np.full(len(names), UNGROUPED, np.int32)
        """(N,) int32, outline of each name, or ``UNGROUPED``."""
        self.examples: list[str] = []
        """First name of each outline."""
        codes: dict[bytes, int] = {}
        for first, chunk in _chunks(names):
            outlines = _outlines(chunk)
            new_outlines = set(outlines) - codes.keys()
            if new_outlines:
                for name, outline in zip(chunk, outlines, strict=True):
                    if outline in new_outlines and len(codes) < MAX_CACHED_OUTLINES:
                        new_outlines.discard(outline)
                        codes[outline] = len(codes)
                        self.examples.append(name)
            self.outline_index[first : first + len(chunk)] = [
                codes.get(outline, UNGROUPED) for outline in outlines
            ]

    def batches(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Yield wanted names, those of one outline together, at most 65,536 at a time.

        Args:
            wanted: (N,) bool, which names to yield.

        Yields:
            Outline, or ``UNGROUPED`` for names without one; (n,) int32, indexes of the names; the
            names.
        """
        for first, chunk in _chunks(self._names):
            rows = np.flatnonzero(wanted[first : first + len(chunk)])
            indexes = first + rows
            names = chunk if len(rows) == len(chunk) else [chunk[row] for row in rows.tolist()]
            yield from self._sorted(indexes, names, indexes)

    def groups(self, members: IntArray) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Like ``batches`` for chosen names; yields positions in ``members`` instead of indexes."""
        for first in range(0, len(members), _CHUNK_NAMES):
            chunk = members[first : first + _CHUNK_NAMES]
            places = np.arange(first, first + len(chunk))
            yield from self._sorted(chunk, take(self._names, chunk), places)

    def _sorted(
        self, indexes: npt.NDArray[Any], names: list[str], labels: npt.NDArray[Any]
    ) -> Iterator[tuple[int, IntArray, list[str]]]:
        """Yield the names by outline, each with its label."""
        outlines = self.outline_index[indexes]
        if (np.diff(outlines) < 0).any():
            order = np.argsort(outlines, kind="stable")
            outlines, labels = outlines[order], labels[order]
            names = [names[row] for row in order.tolist()]
        edges = [0, *(np.flatnonzero(np.diff(outlines)) + 1).tolist(), len(outlines)]
        for first, last in pairwise(edges) if len(outlines) else ():
            yield int(outlines[first]), labels[first:last].astype(np.int32), names[first:last]


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
    iterator = iter(names)
    first = 0
    while chunk := list(islice(iterator, _CHUNK_NAMES)):
        yield first, chunk
        first += len(chunk)


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
    parts, start, stem = _split_path(lower, shared)
    groups = [group for at, part in parts if (group := _find_pieces(part, at))] if folders else []
    if folders == LAST_FOLDER:
        groups = groups[-1:]
    stem_pieces = _find_pieces(stem, start)
    if not stem_pieces:
        return None
    pieces: list[slice] = []
    separators: list[str] = []
    for group in [*groups, stem_pieces]:
        pieces += group
        separators += ["/", *["_"] * (len(group) - 1)]
    prefix = "/" if folders and not groups else ""
    return KeyPattern(
        pieces=tuple(pieces), separators=tuple(separators[1:]), lower=lower != name, prefix=prefix
    )


def find_number_spans(name: str, shared: int) -> dict[str, slice] | None:
    """Return the spans of the numbers in all names of a name's outline; None as above.

    Returns:
        ``bg`` and ``fg``: number after a word for background or foreground in the stem; ``bg`` also
        in the innermost folder with one. ``folder``: last number of the innermost folder. Without
        those that the name lacks.
    """
    lower = name.lower()
    if len(lower) != len(name):
        return None
    parts, start, stem = _split_path(lower, shared)
    shape = filenames.parse_stem(stem)
    background = _span_in_name(shape, shape.background, start)
    foreground = _span_in_name(shape, shape.foreground, start)
    folder = _last_number(*parts[-1]) if parts else None
    for start, part in reversed(parts):
        if background is None:
            shape = filenames.parse_stem(part)
            background = _span_in_name(shape, shape.background, start)
    spans = {"bg": background, "fg": foreground, "folder": folder}
    return {slot: span for slot, span in spans.items() if span is not None}


def _split_path(name: str, shared: int) -> tuple[list[tuple[int, str]], int, str]:
    """Return the folders after the shared ones with their offsets, the stem's offset, the stem."""
    *folders, base = name.split("/")
    parts = []
    start = 0
    for part in folders:
        parts.append((start, part))
        start += len(part) + 1
    return parts[shared:], start, base.rpartition(".")[0]


def _find_pieces(part: str, start: int) -> list[slice]:
    """Return the spans in a name of the pieces of a part that begins at ``start``."""
    pieces = filenames.find_pieces(part)
    return [slice(start + piece.start, start + piece.stop) for piece in pieces]


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


def _last_number(start: int, part: str) -> slice | None:
    """Return the span in a name of the last number of a folder that begins at ``start``.

    Of a long number, these are its last 18 digits.
    """
    for piece in reversed(filenames.find_pieces(part)):
        if digits := list(_DIGITS.finditer(part, piece.start, piece.stop)):
            first, stop = digits[-1].span()
            return slice(start + max(first, stop - 18), start + stop)
    return None
