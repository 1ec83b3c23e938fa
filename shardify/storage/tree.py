"""Files of a folder, or objects under a prefix, read by name as a zip's entries are.

A name is opened part by part from the folder itself, and no link is followed, so that nothing
outside is ever read. A file that is not as it was when the folder was listed ends the run. Lists
nothing and writes nothing.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Sequence

from shardify.errors import SourceError
from shardify.storage.paths import Place, Url, place

__all__ = ["Tree", "UrlTree", "open_tree"]

_FOLDERS = 64
"""Most folders that are kept open."""
_WINDOW_BYTES = 16 << 20
_WINDOW_FILES = 384
_AT_ONCE = 32
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE_FLAGS = _FLAGS | os.O_NONBLOCK  # A pipe that took a file's place must not be waited for.


class Tree:
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


class UrlTree:
    """Objects under one prefix of a store; many are fetched at a time."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._files, self._path = url.connect()
        self._plan: list[tuple[bytes, int]] = []
        self._place: dict[bytes, int] = {}
        self._held: dict[bytes, bytes] = {}

    def payload(self, name: bytes, _stamp: int, size: int) -> bytes:
        """An object's bytes; see ``Tree.payload``. A store tells no time to compare.

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
            with self._url.told():
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


def open_tree(folder: str) -> Tree | UrlTree:
    """Open a folder by its path, or a prefix by its URL, with or without a slash at its end."""
    where: Place = place(folder)
    return UrlTree(where) if isinstance(where, Url) else Tree(folder.rstrip("/") + "/")
