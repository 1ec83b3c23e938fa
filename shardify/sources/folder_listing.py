"""What lies in a folder, or under a prefix of a store: files by name, size and time.

Looks at directory entries alone, and at the first bytes of files that may be zips. Links are never
followed; litter, and folders that hold a data set of this program's own, are passed over.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardify.errors import SourceError
from shardify.sources.catalog import MAX_ENTRY, RefusedEntry, Source, SourceEntries
from shardify.sources.entry_names import decode, is_hostile
from shardify.sources.file_types import IMAGE_EXTENSIONS, MAP_EXTENSIONS, is_junk, is_junk_folder
from shardify.storage.paths import PathOrUrl, Url

__all__ = ["Listing", "list_folder", "looks_zipped"]

MAX_FILES = 20_000_000
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OURS = {"manifest.json", "rejected.jsonl"}
_STATE = ".shardify"


@dataclass(kw_only=True, slots=True)
class Listing:
    """Files of one folder at any depth, in the order of their names' bytes."""

    folder: PathOrUrl
    files: list[tuple[bytes, int, int]] = field(default_factory=list)
    """(name, size in bytes, time of the last change in nanoseconds)."""
    zips: list[str] = field(default_factory=list)
    refused: list[RefusedEntry] = field(default_factory=list)

    def source(self) -> Source:
        """The folder as a source. Its digest is of the sorted names and sizes of its files."""
        found = hashlib.sha256()
        for name, size, _ in self.files:
            found.update(b"%b\0%d\n" % (name, size))
        path = self.folder.absolute()
        return Source(
            path=f"{path}/",
            name=_name_of(self.folder),
            bytes=sum(size for _, size, _ in self.files),
            entries=len(self.files),
            digest=found.hexdigest(),
        )

    def part(self) -> SourceEntries:
        """The files as entries: as stored ones of a zip, with the time in place of an offset."""
        count = len(self.files)
        size = np.fromiter((each[1] for each in self.files), np.int64, count)
        stamp = np.fromiter((each[2] for each in self.files), np.int64, count)
        bounds = np.zeros(count + 1, np.int64)
        np.cumsum([len(each[0]) for each in self.files], out=bounds[1:])
        fault = np.zeros(count, np.uint8)
        fault[size == 0] = 5
        fault[size > MAX_ENTRY] = 3
        return SourceEntries(
            names=bytearray(b"".join(each[0] for each in self.files)),
            bounds=bounds,
            table={
                "offset": stamp, "limit": stamp, "packed": size, "size": size,
                "crc": np.zeros(count, np.uint32), "method": np.zeros(count, np.uint16),
                "fault": fault,
            },
            refused=self.refused,
        )  # fmt: skip

    @property
    def useful(self) -> bool:
        """Whether there is an image, or what may be a map of images."""
        return any(
            _extension(name) in IMAGE_EXTENSIONS | MAP_EXTENSIONS for name, _, _ in self.files
        )


def list_folder(folder: PathOrUrl) -> Listing:
    """List a folder at any depth.

    Raises:
        SourceError: It, or a folder in it, cannot be read; or it is a data set already built.
        StoreError: The store is at fault.
    """
    found = Listing(folder=folder)
    try:
        each = _objects(folder) if isinstance(folder, Url) else _walk(folder, found.refused)
        found.files = sorted(each)
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); expected a folder "
            "that may be read; see to its permissions"
        ) from error
    if len(found.files) > MAX_FILES:
        raise SourceError(f"{folder}: over {MAX_FILES} files; split it")
    found.zips = [decode(name) for name, size, _ in found.files if _is_zip(folder, name, size)]
    zips = set(found.zips)
    if zips:
        found.files = [each for each in found.files if decode(each[0]) not in zips]
    found.refused.sort(key=lambda one: one.member)
    return found


def looks_zipped(name: bytes) -> bool | None:
    """Whether a name is a zip's: True, False, or None where only its content can tell."""
    base = name.rpartition(b"/")[2]
    if base.lower().endswith(b".zip"):
        return True
    return None if b"." not in base else False


def _is_zip(folder: PathOrUrl, name: bytes, size: int) -> bool:
    guess = looks_zipped(name)
    if guess is not None or size < 22:
        return bool(guess)
    if isinstance(folder, Url):
        files, path = (folder / name.decode()).connect()
        with folder.translate_errors():
            return bytes(files.cat_file(path, start=0, end=4)) in _MAGIC
    descriptor = os.open(os.fsencode(folder) + b"/" + name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, 4, 0) in _MAGIC
    finally:
        os.close(descriptor)


def _walk(folder: Path, refused: list[RefusedEntry]) -> Iterator[tuple[bytes, int, int]]:
    """Every regular file that is no litter. What is no file is put in ``refused``."""
    root = os.fsencode(folder)
    if _is_ours([each.name for each in folder.iterdir()]):
        raise SourceError(
            f"{folder}: a data set that `shardify build` made; expected the pictures that it was "
            "made from"
        )
    waiting = [b""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(os.path.join(root, inside) if inside else root) as listed:  # noqa: PTH118
            entries = list(listed)
        if inside and _is_ours([os.fsdecode(each.name) for each in entries]):
            continue
        for entry in entries:
            name = inside + b"/" + entry.name if inside else entry.name
            shown = decode(name)
            if is_junk(decode(entry.name)) or is_junk_folder(shown):
                continue
            if is_hostile(name) or b"\\" in name:
                refused.append(
                    RefusedEntry(
                        member=shown, reason="its name has a backslash or control characters"
                    )
                )
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield name, status.st_size, status.st_mtime_ns
            else:
                kind = "a link" if entry.is_symlink() else "a device or pipe"
                refused.append(RefusedEntry(member=shown, reason=f"is {kind}, not a file"))


def _is_ours(names: list[str]) -> bool:
    """Whether a folder of these entries is what a build has written, or is writing."""
    return _STATE in names or _OURS <= set(names)


def _objects(url: Url) -> Iterator[tuple[bytes, int, int]]:
    """Every object under a prefix that is no litter."""
    files, path = url.connect()
    with url.translate_errors():
        found = files.find(path, detail=True)
    lead = path.strip("/") + "/"
    names = {str(each).lstrip("/").removeprefix(lead): info for each, info in found.items()}
    ours = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in _OURS}
    ours = {each for each in ours if all(f"{each}/{one}".lstrip("/") in names for one in _OURS)}
    for name, info in names.items():
        folder, _, base = name.rpartition("/")
        if is_junk(base) or is_junk_folder(folder) or info.get("type") == "directory":
            continue
        if any(not each or name.startswith(f"{each}/") for each in ours):
            continue
        stamp = str(info.get("ETag") or info.get("LastModified") or info.get("created") or "")
        yield name.encode(), int(info["size"]), zlib.crc32(stamp.encode())


def _extension(name: bytes) -> str:
    return decode(name.rpartition(b"/")[2].rpartition(b".")[2]).lower()


def _name_of(folder: PathOrUrl) -> str:
    """A folder's own name, also of ``.``."""
    return folder.name if isinstance(folder, Url) else folder.resolve().name
