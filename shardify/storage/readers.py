"""Read sources at random: byte ranges of a file or object, files of a folder or prefix by name.

An object is not downloaded whole. The ranges that a shard needs are announced, then fetched in
windows: many ranges at a time, neighbouring ranges as one. At most one window is in memory.

Below a folder, names are opened part by part and no link is followed, so nothing outside it is
read. A file that changed after the folder was listed raises SourceError.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeVar

from shardify.errors import SourceError, StoreError
from shardify.storage.paths import Url, as_path, request_options

T = TypeVar("T")

_MAX_OPEN_FOLDERS = 64
_WINDOW_BYTES = 16 << 20
_WINDOW_ITEMS = 384
"""Most objects or ranges in one window."""
_MAX_GAP = 4096
"""Ranges at most this far apart are fetched as one. Bytes."""
_LOCAL_HEADER_SIZE = 512
"""Allowance for a local header with its name; a longer one costs a second request. Bytes."""
_MIDDLE_BYTES = 4096
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE_FLAGS = _FLAGS | os.O_NONBLOCK  # A pipe that took a file's place must not be waited for.


class FolderReader:
    """Reads files of a local folder by name.

    Raises:
        SourceError: The folder is missing or not readable.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: OrderedDict[bytes, int] = OrderedDict()
        try:
            # The folder that the user names may be a link; what is inside it may not.
            self._root = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise SourceError(
                f"{folder}: {error.strerror}; expected the folder that was listed; put it back and "
                "run the same command again"
            ) from error

    def payload(self, name: bytes, stamp: int, size: int) -> bytes:
        """Read a whole file.

        Args:
            name: Path inside the folder, with ``/`` between its parts.
            stamp: Modification time when it was listed. Nanoseconds.
            size: Size when it was listed. Bytes.

        Raises:
            SourceError: It is missing, is now a link, or changed after it was listed.
        """
        data = bytearray()
        with self._open_file(name) as descriptor:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_size == size:
                # Read one byte more, to detect a file that grows meanwhile.
                while block := os.read(descriptor, size + 1 - len(data)):
                    data += block
                    if len(data) > size:
                        break
                status = os.fstat(descriptor)
        if len(data) != size or status.st_mtime_ns != stamp:
            raise self._changed(name, "was changed")
        return bytes(data)

    def middle(self, name: bytes, size: int) -> bytes:
        """Read a few KiB from the middle of a file; see ``payload``."""
        with self._open_file(name) as descriptor:
            return os.pread(descriptor, _MIDDLE_BYTES, size // 2)

    def close(self) -> None:
        """Close all folders."""
        while self._open:
            os.close(self._open.popitem()[1])
        os.close(self._root)

    def expect(self, files: Sequence[tuple[bytes, int]]) -> None:
        """Do nothing: the system reads ahead by itself."""

    @contextmanager
    def _open_file(self, name: bytes) -> Iterator[int]:
        """Open a file; an OSError in the block becomes a SourceError."""
        path, _, base = name.rpartition(b"/")
        try:
            descriptor = os.open(base, _FILE_FLAGS, dir_fd=self._open_folder(path))
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._changed(name, str(error.strerror)) from error

    def _open_folder(self, path: bytes) -> int:
        """Return the descriptor of a folder inside, reached without following any link."""
        if not path:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        parent = self._root
        opened: list[int] = []
        try:
            for part in path.split(b"/"):
                parent = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=parent)
                opened.append(parent)
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        for descriptor in opened[:-1]:
            os.close(descriptor)
        if len(self._open) >= _MAX_OPEN_FOLDERS:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = parent
        return parent

    def _changed(self, name: bytes, what: str) -> SourceError:
        return SourceError(
            f"{self._folder}{name.decode(errors='replace')}: {what} after the folder was listed; "
            "expected files that stay as they are; leave them alone and run the same command again"
        )


class PrefixReader:
    """Reads objects under one prefix of a store; announced objects are fetched many at a time."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._files, self._path = url.connect()
        self._expected: list[tuple[bytes, int]] = []
        self._index: dict[bytes, int] = {}
        self._window: dict[bytes, bytes] = {}

    def payload(self, name: bytes, _stamp: int, size: int) -> bytes:
        """Read a whole object; see ``FolderReader.payload``. Modification times are not compared.

        Raises:
            SourceError: It is missing, or its size differs from the listed one.
            StoreError: The store is at fault.
        """
        if name not in self._window:
            number = self._index.get(name)
            expected = self._expected[number : number + _WINDOW_ITEMS] if number is not None else []
            self._fetch(expected or [(name, size)])
        data = self._window.pop(name)
        if len(data) != size:
            raise SourceError(
                f"{self._url / name.decode()}: was changed after it was listed ({len(data)} bytes, "
                f"listed with {size}); leave the objects alone and run the same command again"
            )
        return data

    def middle(self, name: bytes, size: int) -> bytes:
        """Read a few KiB from the middle of an object; see ``payload``."""
        start, stop = size // 2, min(size, size // 2 + _MIDDLE_BYTES)
        path = f"{self._path}/{name.decode()}"
        return _cat_ranges(self._url, self._files, [path], [start], [stop])[0]

    def expect(self, files: Sequence[tuple[bytes, int]]) -> None:
        """Announce the (name, size) of the next reads, in order."""
        self._expected = list(files)
        self._index = {name: number for number, (name, _) in enumerate(files)}
        self._window.clear()

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _fetch(self, objects: Sequence[tuple[bytes, int]]) -> None:
        """Fetch the first objects, as many as fill a window."""
        objects = _first_window(objects, [size for _, size in objects])
        paths = [f"{self._path}/{name.decode()}" for name, _ in objects]
        # Read one byte more than the size, to detect an object that grew.
        stops = [size + 1 for _, size in objects]
        try:
            blocks = _cat_ranges(self._url, self._files, paths, [0] * len(paths), stops)
        except FileNotFoundError as error:
            raise SourceError(
                f"{self._url}: an object is gone that was listed; leave the objects alone and run "
                "the same command again"
            ) from error
        self._window = {name: block for (name, _), block in zip(objects, blocks, strict=True)}


def _first_window(items: Sequence[T], sizes: Sequence[int]) -> list[T]:
    """Return the first items, up to the one that fills a window. ``sizes`` are in bytes."""
    before = accumulate(sizes, initial=0)
    return [item for item, total in zip(items, before, strict=False) if total < _WINDOW_BYTES]


def _cat_ranges(
    url: Url, files: Any, paths: list[str], starts: list[int], stops: list[int]
) -> list[bytes]:
    with url.translate_errors():
        blocks = files.cat_ranges(paths, starts, stops, on_error="raise", **request_options(files))
    return list(map(bytes, blocks))


def open_folder(folder: str) -> FolderReader | PrefixReader:
    """Open a folder by its path, or a prefix by its URL, with or without a final slash."""
    path = as_path(folder)
    return PrefixReader(path) if isinstance(path, Url) else FolderReader(folder.rstrip("/") + "/")


class ObjectReader:
    """Reads byte ranges of an object.

    Args:
        url: The object.
        size: The object's size in bytes, if known. Then the store is not asked for it, and a
            missing object raises only when it is read.

    Raises:
        FileNotFoundError: There is no such object.
        StoreError: The store cannot be used.
    """

    def __init__(self, url: Url, size: int | None = None) -> None:
        self._url = url
        self._files, self._path = url.connect()
        self.size = url.stat().st_size if size is None else size
        """Of the object. Bytes."""
        self._expected: list[tuple[int, int]] = []
        self._index: dict[int, int] = {}
        self._window: dict[int, bytes] = {}

    def read(self, length: int, offset: int) -> bytes:
        """Read ``length`` bytes from ``offset``, fewer at the end of the object."""
        stop = min(offset + length, self.size)
        if stop <= offset:
            return b""
        number = self._index.get(offset)
        if number is not None and stop <= self._expected[number][1]:
            if offset not in self._window:
                self._fetch(number)
            return self._window.pop(offset)[: stop - offset]
        return self._get([(offset, stop)])[0]

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announce the ``(start, stop)`` of the next reads, in order."""
        bounded = [(start, min(stop, self.size)) for start, stop in ranges]
        self._expected = [(start, stop) for start, stop in bounded if start < stop]
        self._index = {start: number for number, (start, _) in enumerate(self._expected)}
        self._window.clear()

    def _fetch(self, number: int) -> None:
        """Fetch the window that begins with announced range ``number``."""
        expected = self._expected[number : number + _WINDOW_ITEMS]
        ranges = sorted(_first_window(expected, [stop - start for start, stop in expected]))
        spans: list[tuple[int, int]] = []
        for start, stop in ranges:
            if spans and start - spans[-1][1] <= _MAX_GAP:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            else:
                spans.append((start, stop))
        blocks = iter(zip(spans, self._get(spans), strict=True))
        self._window.clear()
        (first, last), block = next(blocks)
        for start, stop in ranges:
            while start >= last:
                (first, last), block = next(blocks)
            self._window[start] = block[start - first : stop - first]

    def _get(self, spans: list[tuple[int, int]]) -> list[bytes]:
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        blocks = _cat_ranges(self._url, self._files, [self._path] * len(spans), starts, stops)
        for (start, stop), block in zip(spans, blocks, strict=True):
            if len(block) != stop - start:
                raise StoreError(
                    f"{self._url}: {len(block)} bytes for a range of {stop - start}; expected a "
                    "server that gives ranges of an object that stays as it is; download it first"
                )
        return blocks


class SubReader:
    """Reads a byte range of an open source as a source of its own.

    Args:
        handle: The outer source.
        start: First byte of the range.
        size: Length of the range. Bytes.
    """

    def __init__(self, handle: "ReadHandle", start: int, size: int) -> None:
        self._handle = handle
        self._start = start
        self.size = size

    def read(self, length: int, offset: int) -> bytes:
        """Read ``length`` bytes from ``offset``, fewer at the end of the range."""
        length = min(length, self.size - offset)
        return pread(self._handle, length, self._start + offset) if length > 0 else b""


ReadHandle = int | ObjectReader | SubReader | FolderReader | PrefixReader
"""An open source: a file's descriptor, an object, a byte range of a source, or a folder."""


def open_source(path: str) -> ReadHandle:
    """Open a file, an object, or a folder (its path ends in a slash) for reading.

    Raises:
        OSError: It cannot be opened.
        StoreError: The store cannot be used.
        SourceError: The folder cannot be opened.
    """
    if path.endswith("/"):
        return open_folder(path)
    location = as_path(path)
    if isinstance(location, Url):
        return ObjectReader(location)
    return os.open(location, os.O_RDONLY | os.O_CLOEXEC)


def close_source(handle: ReadHandle) -> None:
    """Close what ``open_source`` opened."""
    if isinstance(handle, int):
        os.close(handle)
    elif isinstance(handle, (FolderReader, PrefixReader)):
        handle.close()


def pread(handle: ReadHandle, length: int, offset: int) -> bytes:
    """Read like ``os.pread`` from any source but a folder."""
    if isinstance(handle, int):
        return os.pread(handle, length, offset)
    assert isinstance(handle, (ObjectReader, SubReader)), "a folder's files are read by name"
    return handle.read(length, offset)


def announce_reads(handles: Sequence[ReadHandle], rows: Any, names: Iterable[Any] = ()) -> None:
    """Announce the entries to be read to the object stores among the sources.

    Args:
        handles: The open sources.
        rows: Entries in the order of reading, of ``catalog.ENTRY_DTYPE``, any shape.
        names: Names of the entries, flat or in lists. Without them, objects under a prefix are
            fetched one by one.
    """
    if all(isinstance(handle, int) for handle in handles):
        return
    ranges: list[list[tuple[int, int]]] = [[] for _ in handles]
    files: list[list[tuple[bytes, int]]] = [[] for _ in handles]
    flat = [name for item in names for name in ([item] if isinstance(item, bytes) else item)]
    for number, (source, offset, limit, packed, *_) in enumerate(rows.ravel().tolist()):
        if isinstance(handles[source], ObjectReader):
            ranges[source].append((offset, min(limit, offset + packed + _LOCAL_HEADER_SIZE)))
        elif flat:
            files[source].append((flat[number], packed))
    for handle, object_ranges, folder_files in zip(handles, ranges, files, strict=True):
        if isinstance(handle, ObjectReader):
            handle.expect(object_ranges)
        elif isinstance(handle, (FolderReader, PrefixReader)):
            handle.expect(folder_files)
