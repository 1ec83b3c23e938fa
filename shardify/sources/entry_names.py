"""Store, decode and clean the entry names of sources compactly; detect hostile names in bulk."""

import itertools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

JoinedNames = tuple[bytes | bytearray, NDArray[np.int64]]
"""Names one after another, and the (N + 1,) bounds of the names in them."""

_CHUNK_NAMES = 1 << 16
"""Names handled at a time: those of a large source would fill the memory."""
_MAX_DECODED_NAMES = 1 << 18
_HOSTILE = re.compile(rb"[\x00-\x1f\x7f]|(?:^|/)\.\.?(?:/|$)|^/|^[A-Za-z]:")
_LOOSE_PARTS = (b"//", b"/./", b"/.\n", b"\n/", b"\n./", b"\n.\n")
_DOT_PARTS = (b"/./", b"/../", b"/.\n", b"/..\n", b"\n./", b"\n../", b"\n.\n", b"\n..\n")
_DRIVE = re.compile(rb"\n[A-Za-z]:")
_EMPTY_PARTS = re.compile(r"^(?:\.?/)+|(?<=/)(?:\.?/)+|(?:(?<=/)|^)\.$", re.MULTILINE)
"""``./``, a leading ``/``, and ``//`` or ``/./`` between folders."""
_LETTER_OR_BACKSLASH = re.compile(rb"[\x81-\xfe][\x40-\xfe]|\\")
"""A letter of two bytes, as in Shift-JIS, GBK and Big5: its second byte may be a backslash."""


def chunks(count: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` names, many at a time."""
    for first in range(0, count, _CHUNK_NAMES):
        yield slice(first, min(count, first + _CHUNK_NAMES))


def join_names(names: Sequence[bytes]) -> JoinedNames:
    """Join names, and return their bounds too."""
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    return b"".join(names), np.append(0, np.cumsum(lengths))


def is_hostile(name: bytes) -> bool:
    """Whether a clean name is absolute, leaves its folder, or has control characters."""
    return _HOSTILE.search(name) is not None


def any_hostile(lines: bytes) -> bool:
    """Whether any of many names is hostile; a hundred times faster than ``is_hostile`` on each.

    Args:
        lines: The names, separated by newlines; a name has neither newlines nor backslashes.
    """
    framed = b"\n%b\n" % lines
    text = np.frombuffer(framed, np.uint8)
    if np.count_nonzero(text < 32) != np.count_nonzero(text == 10) or (text == 127).any():
        return True
    # Positions before the first character of each path part; few parts start with a dot.
    begins = (text[:-1] == ord("/")) | (text[:-1] == ord("\n"))
    return (
        bool((begins & (text[1:] == ord("/"))).any() and b"\n/" in framed)
        or bool(
            (begins & (text[1:] == ord("."))).any() and any(step in framed for step in _DOT_PARTS)
        )
        or bool((text == ord(":")).any() and _DRIVE.search(framed) is not None)
    )


def clean_name(raw: bytes) -> bytes:
    """Return one name as it is used: UTF-8 in composed form (NFC), folders separated by ``/``.

    ``./a``, ``/a``, ``a//b`` and ``a/./b`` become ``a`` and ``a/b``. A backslash separates folders,
    unless it is the second byte of a letter. Names that are not UTF-8 are decoded as code page 437,
    as the zip format says.
    """
    try:
        text = raw.decode().replace("\\", "/")
    except UnicodeDecodeError:
        slashes = _LETTER_OR_BACKSLASH.sub(lambda m: b"/" if m[0] == b"\\" else m[0], raw)
        text = slashes.decode("cp437")
    clean = unicodedata.normalize("NFC", text).encode()
    return _EMPTY_PARTS.sub("", clean.decode()).encode() if _has_empty_parts(clean) else clean


def clean_names(names: list[bytes]) -> list[bytes] | None:
    """Return ``clean_name`` of many names, or None if all are clean; fast for UTF-8."""
    lines = b"\n".join(names)
    if lines.isascii() and b"\\" not in lines and not _has_empty_parts(lines):
        return None
    try:
        text = lines.decode()
    except UnicodeDecodeError:
        return [clean_name(name) for name in names]
    if text.count("\n") != len(names) - 1:
        return [clean_name(name) for name in names]
    cleaned = unicodedata.normalize("NFC", text.replace("\\", "/")).encode()
    if _has_empty_parts(cleaned):
        cleaned = _EMPTY_PARTS.sub("", cleaned.decode()).encode()
    return cleaned.split(b"\n") if cleaned != lines else None


def _has_empty_parts(lines: bytes) -> bool:
    framed = b"\n%b\n" % lines
    return any(step in framed for step in _LOOSE_PARTS)


class Names(Sequence[str]):
    """Entry names, stored as joined bytes and decoded on access.

    Args:
        parts: Joined names, (N + 1,) bounds of the names in them, and prefix of each source.
        stored: For each part, the names as its zip or folder has them; None where they are the
            same.
    """

    def __init__(
        self,
        parts: Sequence[tuple[bytes | bytearray, NDArray[np.int64], str]],
        stored: Sequence[JoinedNames | None] = (),
    ) -> None:
        self._parts = list(parts)
        self._stored: list[JoinedNames] = [
            own or (block, bounds)
            for (block, bounds, _), own in itertools.zip_longest(self._parts, stored)
        ]
        counts = [len(bounds) - 1 for _, bounds, _ in self._parts]
        self._first = [sum(counts[:number]) for number in range(len(counts) + 1)]
        # Access to decoded names is ten times faster; but the decoded names of a large source would
        # be most of the memory in use.
        self._all: list[str] | None = None
        if len(self) <= _MAX_DECODED_NAMES:
            self._all = list(itertools.chain.from_iterable(self._chunks()))

    def __len__(self) -> int:
        return self._first[-1]

    def raw(self, index: int) -> bytes:
        """Return the name's bytes as stored in the zip. Raises IndexError."""
        return self._bytes(self._stored, index)

    def inner(self, index: int) -> str:
        """Return a name without the prefix of its source."""
        return decode(self._bytes(self._parts, index))

    def _bytes(self, parts: Sequence[Sequence[Any]], index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = self.part(index)
        block, bounds = parts[part][:2]
        row = index - self._first[part]
        return bytes(block[int(bounds[row]) : int(bounds[row + 1])])

    def joined(self, indexes: NDArray[np.int32]) -> tuple[bytes, NDArray[np.int64]]:
        """Return the ``raw`` names of N entries, joined, and their (N + 1,) bounds, from 0."""
        part = np.searchsorted(self._first, indexes, "right") - 1
        starts, lengths = np.empty(len(indexes), np.int64), np.empty(len(indexes), np.int64)
        rows_by_part = [np.flatnonzero(part == number) for number in range(len(self._parts))]
        for number, rows in enumerate(rows_by_part):
            bounds = self._stored[number][1]
            own_rows = indexes[rows] - self._first[number]
            starts[rows] = bounds[own_rows]
            lengths[rows] = bounds[own_rows + 1] - bounds[own_rows]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Position of each byte of the result in its part.
        source = np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])
        joined = np.empty(ends[-1], np.uint8)
        for number, rows in enumerate(rows_by_part):
            chars = slice(None) if len(rows) == len(indexes) else np.repeat(part == number, lengths)
            joined[chars] = np.frombuffer(self._stored[number][0], np.uint8)[source[chars]]
        return joined.tobytes(), ends

    def part(self, index: int) -> int:
        """Return the number of the part that an entry's name belongs to."""
        return bisect_right(self._first, index) - 1

    def take(self, indexes: NDArray[np.int32]) -> list[str]:
        """Return the names of some entries."""
        if self._all is not None:
            return list(map(self._all.__getitem__, indexes.tolist()))
        return [name for chunk in chunks(len(indexes)) for name in self._take(indexes[chunk])]

    def _take(self, indexes: NDArray[np.int32]) -> list[str]:
        """Return the names of a few thousand entries."""
        raw, bounds = self.joined(indexes)
        if not raw.isascii():
            return [self[index] for index in indexes.tolist()]
        text = decode(raw)  # One byte a character, so all can be decoded at once.
        names = [text[start:end] for start, end in itertools.pairwise(bounds.tolist())]
        if not any(prefix for _, _, prefix in self._parts):
            return names
        parts = (np.searchsorted(self._first, indexes, "right") - 1).tolist()
        return [self._parts[part][2] + name for part, name in zip(parts, names, strict=True)]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if self._all is not None:
            return self._all[index]
        index = int(index)
        if index < 0:
            index += len(self)
        return self._parts[self.part(index)][2] + self.inner(index)

    def __iter__(self) -> Iterator[str]:
        if self._all is not None:
            return iter(self._all)
        return itertools.chain.from_iterable(self._chunks())

    def _chunks(self) -> Iterator[list[str]]:
        """Yield all names, many at a time."""
        for block, bounds, prefix in self._parts:
            for chunk in chunks(len(bounds) - 1):
                cuts = bounds[chunk.start : chunk.stop + 1]
                raw = bytes(block[int(cuts[0]) : int(cuts[-1])])
                pairs = itertools.pairwise((cuts - cuts[0]).tolist())
                if raw.isascii():  # One byte a character, so all can be decoded at once.
                    text = decode(raw)
                    yield [prefix + text[start:end] for start, end in pairs]
                else:
                    yield [prefix + decode(raw[start:end]) for start, end in pairs]


def take(names: Sequence[str], indexes: NDArray[np.int32]) -> list[str]:
    """Return some of the names; fast for ``Names``."""
    if isinstance(names, Names):
        return names.take(indexes)
    return [names[index] for index in indexes.tolist()]


def decode(raw: bytes | bytearray) -> str:
    """Decode a name as UTF-8, else as code page 437."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def select_names(names: JoinedNames, rows: NDArray[np.int64]) -> tuple[bytearray, NDArray[Any]]:
    """Return some of the joined names, and their bounds."""
    block, old = names
    bounds = np.append(0, np.cumsum(old[rows + 1] - old[rows]))
    selected = bytearray()
    for chunk in chunks(len(rows)):
        pairs = zip(old[rows[chunk]].tolist(), old[rows[chunk] + 1].tolist(), strict=True)
        selected += b"".join([block[start:end] for start, end in pairs])
    return selected, bounds


def common_folders(folders: Sequence[str]) -> int:
    """Count the leading folders that all the given paths share."""
    if not folders:
        return 0
    first, last = min(folders).split("/"), max(folders).split("/")
    shared = 0
    for one, other in zip(first, last, strict=False):
        if one != other or not one:
            break
        shared += 1
    return shared
