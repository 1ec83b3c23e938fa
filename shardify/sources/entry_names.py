"""The names of a zip's entries: stored once as bytes, decoded when asked for, judged in bulk.

Turns no name into a path, and says nothing of what a name means.
"""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Names", "common_folders", "decode", "is_hostile", "some_hostile", "take"]

_CHUNK = 1 << 16
_LISTED = 1 << 18
_HOSTILE = re.compile(rb"[\x00-\x1f\x7f]|(?:^|/)\.\.?(?:/|$)|^/|^[A-Za-z]:")
_STEPS = (b"/./", b"/../", b"/.\n", b"/..\n", b"\n./", b"\n../", b"\n.\n", b"\n..\n")
_DRIVE = re.compile(rb"\n[A-Za-z]:")


def is_hostile(name: bytes) -> bool:
    """Whether a name is absolute, climbs out, or has control characters."""
    return _HOSTILE.search(name.replace(b"\\", b"/")) is not None


def some_hostile(lines: bytes) -> bool:
    """Whether any of many names is hostile, in a hundredth of the time.

    Args:
        lines: The names, parted by newlines, so none that has one itself; without backslashes.
    """
    framed = b"\n%b\n" % lines
    text = np.frombuffer(framed, np.uint8)
    if np.count_nonzero(text < 32) != np.count_nonzero(text == 10) or (text == 127).any():
        return True
    # Where a part of a name begins; few begin with a dot.
    begins = (text[:-1] == ord("/")) | (text[:-1] == ord("\n"))
    return (
        bool((begins & (text[1:] == ord("/"))).any() and b"\n/" in framed)
        or bool((begins & (text[1:] == ord("."))).any() and any(step in framed for step in _STEPS))
        or bool((text == ord(":")).any() and _DRIVE.search(framed) is not None)
    )


class Names(Sequence[str]):
    """Entry names, decoded when asked for: their bytes, end to end, are the only storage.

    UTF-8 where the bytes are that, else code page 437, as the format says. With several zips each
    name is led by its zip's stem and a slash.
    """

    def __init__(self, parts: Sequence[tuple[bytearray, NDArray[np.int64], str]]) -> None:
        self._parts = list(parts)
        counts = [len(bounds) - 1 for _, bounds, _ in self._parts]
        self._first = [sum(counts[:place]) for place in range(len(counts) + 1)]
        # As lists the names of a small source are ten times faster to reach; those of a large one
        # would be most of the memory in use.
        self._all: list[str] | None = None
        if len(self) <= _LISTED:
            self._all = list(itertools.chain.from_iterable(self._chunks()))

    def __len__(self) -> int:
        return self._first[-1]

    def raw(self, index: int) -> bytes:
        """The name's bytes as they stand in the zip. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._first, index) - 1
        block, bounds, _ = self._parts[part]
        place = index - self._first[part]
        return bytes(block[int(bounds[place]) : int(bounds[place + 1])])

    def joined(self, indexes: NDArray[np.int32]) -> tuple[bytes, NDArray[np.int64]]:
        """``raw`` of many, end to end, and where each ends, after a 0."""
        part = np.searchsorted(self._first, indexes, "right") - 1
        starts, lengths = np.empty(len(indexes), np.int64), np.empty(len(indexes), np.int64)
        chosen = [np.flatnonzero(part == number) for number in range(len(self._parts))]
        for number, rows in enumerate(chosen):
            bounds = self._parts[number][1]
            places = indexes[rows] - self._first[number]
            starts[rows] = bounds[places]
            lengths[rows] = bounds[places + 1] - bounds[places]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Where each byte of the result lies in its part.
        source = np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])
        whole = np.empty(ends[-1], np.uint8)
        for number, rows in enumerate(chosen):
            mine = slice(None) if len(rows) == len(indexes) else np.repeat(part == number, lengths)
            whole[mine] = np.frombuffer(self._parts[number][0], np.uint8)[source[mine]]
        return whole.tobytes(), ends

    def part(self, index: int) -> int:
        """Which of the parts an entry's name belongs to."""
        return bisect_right(self._first, index) - 1

    def some(self, indexes: NDArray[np.int32]) -> list[str]:
        """The names of these entries."""
        if self._all is not None:
            every = self._all
            return [every[index] for index in indexes.tolist()]
        return [self[index] for index in indexes.tolist()]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if self._all is not None:
            return self._all[index]
        index = int(index)
        if index < 0:
            index += len(self)
        raw = self.raw(index)
        return self._parts[bisect_right(self._first, index) - 1][2] + decode(raw)

    def __iter__(self) -> Iterator[str]:
        if self._all is not None:
            return iter(self._all)
        return itertools.chain.from_iterable(self._chunks())

    def _chunks(self) -> Iterator[list[str]]:
        """All names, many at a time."""
        for block, bounds, prefix in self._parts:
            for first in range(0, len(bounds) - 1, _CHUNK):
                cuts = bounds[first : first + _CHUNK + 1]
                some = bytes(block[int(cuts[0]) : int(cuts[-1])])
                if some.isascii():  # Then a character is a byte, and all are decoded at once.
                    text = decode(some)
                    pairs = itertools.pairwise((cuts - cuts[0]).tolist())
                    names = [text[start:end] for start, end in pairs]
                    yield [prefix + name for name in names] if prefix else names
                else:
                    pairs = itertools.pairwise(cuts.tolist())
                    yield [prefix + decode(block[start:end]) for start, end in pairs]


def take(names: Sequence[str], indexes: NDArray[np.int32]) -> list[str]:
    """Some of the names, as quickly as their kind allows."""
    if isinstance(names, Names):
        return names.some(indexes)
    return [names[index] for index in indexes.tolist()]


def decode(raw: bytes | bytearray) -> str:
    """A name as text: UTF-8 where its bytes are that, else code page 437."""
    if b"\\" in raw:  # Some packers on Windows write their own separator.
        raw = raw.replace(b"\\", b"/")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def common_folders(folders: Sequence[str]) -> int:
    """How many leading folders all the given paths share. They tell nothing apart."""
    if not folders:
        return 0
    first, last = min(folders).split("/"), max(folders).split("/")
    shared = 0
    for one, other in zip(first, last, strict=False):
        if one != other or not one:
            break
        shared += 1
    return shared
