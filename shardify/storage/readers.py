"""Bytes of a source by offset and length, be it an open file or an object in a store.

An object is never downloaded whole: what is asked for is fetched, and what a shard will need is
fetched in windows, many ranges at a time, neighbours as one. Knows nothing of zips; keeps no more
than one window in memory.

Files of a folder, or objects under a prefix, read by name as a zip's entries are.

A name is opened part by part from the folder itself, and no link is followed, so that nothing
outside is ever read. A file that is not as it was when the folder was listed ends the run. Lists
nothing and writes nothing.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from shardify.errors import SourceError, StoreError
from shardify.storage.paths import PathOrUrl, Url, as_path

__all__ = [
    "FolderReader",
    "ObjectReader",
    "PrefixReader",
    "ReadHandle",
    "SubReader",
    "announce_reads",
    "close_source",
    "open_source",
    "open_tree",
    "pread",
]


_FOLDERS = 64
"""Most folders that are kept open."""
_WINDOW_BYTES = 16 << 20
_WINDOW_FILES = 384
_AT_ONCE = 32
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE_FLAGS = _FLAGS | os.O_NONBLOCK  # A pipe that took a file's place must not be waited for.


class FolderReader:
    """A folder of this machine, opened for reading.

    Raises:
        SourceError: It is not there, or may not be read.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: OrderedDict[bytes, int] = OrderedDict()
        try:
            # The user's own word for the folder may be a link; what is inside it may not.
            self._root = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise SourceError(
                f"{folder}: {error.strerror}; expected the folder that was listed; put it back and "
                "run the same command again"
            ) from error

    def payload(self, name: bytes, stamp: int, size: int) -> bytes:
        """A file's bytes.

        Args:
            name: Path inside the folder, with ``/`` between its parts.
            stamp: When it was last changed, as listed. Nanoseconds.
            size: As listed. Bytes.

        Raises:
            SourceError: It is gone, is a link by now, or was changed since it was listed.
        """
        path, _, base = name.rpartition(b"/")
        try:
            descriptor = os.open(base, _FILE_FLAGS, dir_fd=self._folder_of(path))
            try:
                status = os.fstat(descriptor)
                data = bytearray()
                if stat.S_ISREG(status.st_mode) and status.st_size == size:
                    # One byte more, so that a file that grows meanwhile shows.
                    while block := os.read(descriptor, size + 1 - len(data)):
                        data += block
                        if len(data) > size:
                            break
                    status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._changed(name, str(error.strerror)) from error
        if len(data) != size or status.st_mtime_ns != stamp:
            raise self._changed(name, "was changed")
        return bytes(data)

    def close(self) -> None:
        """Give back what is open."""
        while self._open:
            os.close(self._open.popitem()[1])
        os.close(self._root)

    def expect(self, files: Sequence[tuple[bytes, int]]) -> None:
        """Nothing: the system reads ahead by itself."""

    def _folder_of(self, path: bytes) -> int:
        """A descriptor of a folder inside, reached without following any link."""
        if not path:
            return self._root
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        parent = self._root
        opened: list[int] = []
        try:
            for part in path.split(b"/"):
                parent = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=parent)
                opened.append(parent)
        except OSError:
            for each in opened:
                os.close(each)
            raise
        for each in opened[:-1]:
            os.close(each)
        if len(self._open) >= _FOLDERS:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = parent
        return parent

    def _changed(self, name: bytes, what: str) -> SourceError:
        return SourceError(
            f"{self._folder}{name.decode(errors='replace')}: {what} after the folder was listed; "
            "expected files that stay as they are; leave them alone and run the same command again"
        )


class PrefixReader:
    """Objects under one prefix of a store; many are fetched at a time."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._files, self._path = url.connect()
        self._plan: list[tuple[bytes, int]] = []
        self._place: dict[bytes, int] = {}
        self._held: dict[bytes, bytes] = {}

    def payload(self, name: bytes, _stamp: int, size: int) -> bytes:
        """An object's bytes; see ``FolderReader.payload``. A store tells no time to compare.

        Raises:
            SourceError: It is gone, or has another size than was listed.
            StoreError: The store is at fault.
        """
        if name not in self._held:
            number = self._place.get(name)
            self._fetch([(name, size)] if number is None else self._window(number))
        data = self._held.pop(name)
        if len(data) != size:
            raise SourceError(
                f"{self._url / name.decode()}: was changed after it was listed ({len(data)} bytes, "
                f"listed with {size}); leave the objects alone and run the same command again"
            )
        return data

    def expect(self, files: Sequence[tuple[bytes, int]]) -> None:
        """Say which (name, size) will be read next, in the order of reading."""
        self._plan = list(files)
        self._place = {name: number for number, (name, _) in enumerate(files)}
        self._held.clear()

    def close(self) -> None:
        """Nothing is open."""

    def _window(self, number: int) -> list[tuple[bytes, int]]:
        window, total = [], 0
        for each in self._plan[number : number + _WINDOW_FILES]:
            window.append(each)
            total += each[1]
            if total >= _WINDOW_BYTES:
                break
        return window

    def _fetch(self, window: list[tuple[bytes, int]]) -> None:
        paths = [f"{self._path}/{name.decode()}" for name, _ in window]
        options = {"batch_size": _AT_ONCE} if getattr(self._files, "async_impl", False) else {}
        try:
            with self._url.translate_errors():
                found = self._files.cat_ranges(
                    paths, [0] * len(paths), [size + 1 for _, size in window], on_error="raise",
                    **options,
                )  # fmt: skip
        except FileNotFoundError as error:
            raise SourceError(
                f"{self._url}: an object is gone that was listed; leave the objects alone and run "
                "the same command again"
            ) from error
        self._held = {name: bytes(data) for (name, _), data in zip(window, found, strict=True)}


def open_tree(folder: str) -> FolderReader | PrefixReader:
    """Open a folder by its path, or a prefix by its URL, with or without a slash at its end."""
    where: PathOrUrl = as_path(folder)
    return PrefixReader(where) if isinstance(where, Url) else FolderReader(folder.rstrip("/") + "/")


_WINDOW_RANGES = 384
_GAP = 4096
"""Ranges that lie this close are fetched as one. Bytes."""
_REACH = 512
"""Of a local header with its name, at least; a longer one costs a request of its own. Bytes."""


class ObjectReader:
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
        with self._url.translate_errors():
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


class SubReader:
    """A stretch of an open source, as if it were a source of its own.

    Args:
        handle: What it lies in.
        start: Its first byte.
        size: Its length. Bytes.
    """

    def __init__(self, handle: "ReadHandle", start: int, size: int) -> None:
        self._handle = handle
        self._start = start
        self.size = size

    def read(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end of the window."""
        length = min(length, self.size - offset)
        return pread(self._handle, length, self._start + offset) if length > 0 else b""


ReadHandle = int | ObjectReader | SubReader | FolderReader | PrefixReader
"""A source that is open: a file's descriptor, an object, a stretch of one, or a folder."""


def open_source(path: str) -> ReadHandle:
    """Open a file, an object or (its path ends in a slash) a folder for reading.

    Raises:
        OSError: It cannot be opened.
        StoreError: The store cannot be used.
        SourceError: The folder cannot be opened.
    """
    if path.endswith("/"):
        return open_tree(path)
    where = as_path(path)
    if isinstance(where, Url):
        return ObjectReader(where)
    return os.open(where, os.O_RDONLY | os.O_CLOEXEC)


def close_source(handle: ReadHandle) -> None:
    """Give back what ``open_source`` opened."""
    if isinstance(handle, int):
        os.close(handle)
    elif isinstance(handle, (FolderReader, PrefixReader)):
        handle.close()


def pread(handle: ReadHandle, length: int, offset: int) -> bytes:
    """``os.pread`` on any source but a folder."""
    if isinstance(handle, int):
        return os.pread(handle, length, offset)
    assert isinstance(handle, (ObjectReader, SubReader)), "a folder's files are read by name"
    return handle.read(length, offset)


def announce_reads(handles: Sequence[ReadHandle], rows: Any, names: Iterable[Any] = ()) -> None:
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
        if isinstance(handles[source], ObjectReader):
            plans[source].append((offset, min(limit, offset + packed + _REACH)))
        elif flat:
            files[source].append((flat[number], packed))
    for handle, plan, wanted in zip(handles, plans, files, strict=True):
        if isinstance(handle, ObjectReader):
            handle.expect(plan)
        elif isinstance(handle, (FolderReader, PrefixReader)):
            handle.expect(wanted)
