"""Bytes of a source by offset and length, be it an open file or an object in a store.

An object is never downloaded whole: what is asked for is fetched, and what a shard will need is
fetched in windows, many ranges at a time, neighbours as one. Knows nothing of zips; keeps no more
than one window in memory.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from shardify.errors import StoreError
from shardify.storage.paths import Url, place
from shardify.storage.tree import Tree, UrlTree, open_tree

__all__ = ["Handle", "Ranges", "Window", "close_source", "expect", "open_source", "pread"]

_WINDOW_BYTES = 16 << 20
_WINDOW_RANGES = 384
_GAP = 4096
"""Ranges that lie this close are fetched as one. Bytes."""
_AT_ONCE = 32
_REACH = 512
"""Of a local header with its name, at least; a longer one costs a request of its own. Bytes."""


class Ranges:
    """An object opened for reading by ranges.

    Args:
        url: Where it is.
        size: Of the object, in bytes, where that is known: then the store is not asked for it, and
            an object that is missing shows when it is read.

    Raises:
        FileNotFoundError: There is no such object.
        StoreError: The store cannot be used.
    """

    def __init__(self, url: Url, size: int | None = None) -> None:
        self._url = url
        self._files, self._path = url.connect()
        self.size = url.stat().st_size if size is None else size
        """Of the object. Bytes."""
        self._plan: list[tuple[int, int]] = []
        self._place: dict[int, int] = {}
        self._held: dict[int, bytes] = {}

    def read(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end of the object."""
        stop = min(offset + length, self.size)
        if stop <= offset:
            return b""
        number = self._place.get(offset)
        if number is not None and stop <= self._plan[number][1]:
            if offset not in self._held:
                self._fetch(number)
            return self._held.pop(offset)[: stop - offset]
        return self._get([(offset, stop)])[0]

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Say which ``(start, stop)`` will be read next, in the order of reading."""
        bounded = [(start, min(stop, self.size)) for start, stop in ranges]
        self._plan = [(start, stop) for start, stop in bounded if start < stop]
        self._place = {start: number for number, (start, _) in enumerate(self._plan)}
        self._held.clear()

    def _fetch(self, number: int) -> None:
        """The window that begins with range ``number`` of the plan."""
        window, total = [], 0
        for each in self._plan[number : number + _WINDOW_RANGES]:
            window.append(each)
            total += each[1] - each[0]
            if total >= _WINDOW_BYTES:
                break
        window.sort()
        spans: list[tuple[int, int]] = []
        for start, stop in window:
            if spans and start - spans[-1][1] <= _GAP:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            else:
                spans.append((start, stop))
        blocks = iter(zip(spans, self._get(spans), strict=True))
        self._held.clear()
        (first, last), block = next(blocks)
        for start, stop in window:
            while start >= last:
                (first, last), block = next(blocks)
            self._held[start] = block[start - first : stop - first]

    def _get(self, spans: list[tuple[int, int]]) -> list[bytes]:
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        options = {"batch_size": _AT_ONCE} if getattr(self._files, "async_impl", False) else {}
        with self._url.told():
            found = self._files.cat_ranges(
                [self._path] * len(spans), starts, stops, on_error="raise", **options
            )
        for (start, stop), block in zip(spans, found, strict=True):
            if len(block) != stop - start:
                raise StoreError(
                    f"{self._url}: {len(block)} bytes for a range of {stop - start}; expected a "
                    "server that gives ranges of an object that stays as it is; download it first"
                )
        return list(map(bytes, found))


class Window:
    """A stretch of an open source, as if it were a source of its own.

    Args:
        handle: What it lies in.
        start: Its first byte.
        size: Its length. Bytes.
    """

    def __init__(self, handle: "Handle", start: int, size: int) -> None:
        self._handle = handle
        self._start = start
        self.size = size

    def read(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end of the window."""
        length = min(length, self.size - offset)
        return pread(self._handle, length, self._start + offset) if length > 0 else b""


Handle = int | Ranges | Window | Tree | UrlTree
"""A source that is open: a file's descriptor, an object, a stretch of one, or a folder."""


def open_source(path: str) -> Handle:
    """Open a file, an object or (its path ends in a slash) a folder for reading.

    Raises:
        OSError: It cannot be opened.
        StoreError: The store cannot be used.
        SourceError: The folder cannot be opened.
    """
    if path.endswith("/"):
        return open_tree(path)
    where = place(path)
    if isinstance(where, Url):
        return Ranges(where)
    return os.open(where, os.O_RDONLY | os.O_CLOEXEC)


def close_source(handle: Handle) -> None:
    """Give back what ``open_source`` opened."""
    if isinstance(handle, int):
        os.close(handle)
    elif isinstance(handle, (Tree, UrlTree)):
        handle.close()


def pread(handle: Handle, length: int, offset: int) -> bytes:
    """``os.pread`` on any source but a folder."""
    if isinstance(handle, int):
        return os.pread(handle, length, offset)
    assert isinstance(handle, (Ranges, Window)), "a folder's files are read by name"
    return handle.read(length, offset)


def expect(handles: Sequence[Handle], rows: Any, names: Iterable[Any] = ()) -> None:
    """Announce entries that will be read, to the sources that profit from it.

    Args:
        handles: The open sources.
        rows: Entries in the order of reading, of ``writer.ROW``, any shape.
        names: Of each entry, one after another or in lists; without them, objects under a prefix
            are fetched one by one.
    """
    if all(isinstance(handle, int) for handle in handles):
        return
    plans: list[list[tuple[int, int]]] = [[] for _ in handles]
    files: list[list[tuple[bytes, int]]] = [[] for _ in handles]
    flat = [name for each in names for name in ([each] if isinstance(each, bytes) else each)]
    for number, (source, offset, limit, packed, *_) in enumerate(rows.ravel().tolist()):
        if isinstance(handles[source], Ranges):
            plans[source].append((offset, min(limit, offset + packed + _REACH)))
        elif flat:
            files[source].append((flat[number], packed))
    for handle, plan, wanted in zip(handles, plans, files, strict=True):
        if isinstance(handle, Ranges):
            handle.expect(plan)
        elif isinstance(handle, (Tree, UrlTree)):
            handle.expect(wanted)
