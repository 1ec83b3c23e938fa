"""List a folder or an object-store prefix: names, sizes and modification times of its files.

Reads directory entries, and the first bytes of files that may be zips. Links are not followed. Junk
files and folders that hold a built data set are skipped.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shardify.errors import SourceError
from shardify.sources.catalog import Part, Source
from shardify.sources.entry_names import clean_name, clean_names, decode, is_hostile, join_names
from shardify.sources.file_types import is_junk, is_junk_folder
from shardify.sources.zip_directory import MAX_ENTRY, RefusedEntry, SourceEntries
from shardify.storage.paths import PathOrUrl, Url

MAX_FILES = 20_000_000
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
"""First bytes of a zip: normal, empty, spanned."""
MIN_ZIP_SIZE = 22
"""Size of an empty zip: its end record. Bytes."""
_DATA_SET_FILES = {"manifest.json", "rejected.jsonl"}
_STATE_FOLDER = ".shardify"


@dataclass(kw_only=True, slots=True)
class Listing:
    """The files of one folder at any depth, sorted by the bytes of their names."""

    folder: PathOrUrl
    files: list[tuple[bytes, int, int]] = field(default_factory=list)
    """(name, size in bytes, modification time in nanoseconds; of an object, a hash of its ETag)."""
    zips: list[str] = field(default_factory=list)
    refused: list[RefusedEntry] = field(default_factory=list)

    def part(self) -> Part:
        """Return the files as stored entries, with the modification time as offset.

        The digest of the source covers the names and sizes of the files.
        """
        names = [name for name, _, _ in self.files]
        digest = hashlib.sha256()
        for name, length, _ in self.files:
            digest.update(b"%b\0%d\n" % (name, length))
        count = len(self.files)
        size = np.fromiter((length for _, length, _ in self.files), np.int64, count)
        stamp = np.fromiter((time for _, _, time in self.files), np.int64, count)
        clean = clean_names(names) if names else None
        fault = np.zeros(count, np.uint8)
        fault[size == 0] = 5
        fault[size > MAX_ENTRY] = 3
        source = Source(
            path=f"{self.folder.absolute()}/",
            name=_folder_name(self.folder),
            bytes=int(size.sum()),
            entries=count,
            digest=digest.hexdigest(),
        )
        entries = SourceEntries(
            names=join_names(clean or names),
            stored=join_names(names) if clean else None,
            table={
                "offset": stamp, "limit": stamp, "packed": size, "size": size,
                "crc": np.zeros(count, np.uint32), "method": np.zeros(count, np.uint16),
                "fault": fault,
            },
            refused=self.refused,
        )  # fmt: skip
        return Part(source=source, entries=entries, name=source.name)


def list_folder(folder: PathOrUrl) -> Listing:
    """List a folder at any depth.

    Raises:
        SourceError: It, or a folder in it, cannot be read; or it is a built data set.
        StoreError: The store is at fault.
    """
    listing = Listing(folder=folder)
    try:
        files = _objects(folder) if isinstance(folder, Url) else _walk(folder, listing.refused)
        listing.files = sorted(files)
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); expected a folder "
            "that may be read; change its permissions"
        ) from error
    if len(listing.files) > MAX_FILES:
        raise SourceError(f"{folder}: over {MAX_FILES} files; split it")
    listing.zips = [
        os.fsdecode(name) for name, size, _ in listing.files if _is_zip(folder, name, size)
    ]
    if listing.zips:
        zips = set(map(os.fsencode, listing.zips))
        listing.files = [file for file in listing.files if file[0] not in zips]
    listing.refused.sort(key=lambda entry: entry.member)
    return listing


def has_zip_name(name: bytes) -> bool | None:
    """Whether a name is that of a zip; None for a name without extension: read its content."""
    base = name.rpartition(b"/")[2]
    if base.lower().endswith(b".zip"):
        return True
    return None if b"." not in base else False


def without_zip_extension(name: str) -> str:
    """Return the name without ``.zip``, if it has that extension in any case."""
    return name[:-4] if name.lower().endswith(".zip") else name


def _is_zip(folder: PathOrUrl, name: bytes, size: int) -> bool:
    by_name = has_zip_name(name)
    if by_name is not None or size < MIN_ZIP_SIZE:
        return bool(by_name)
    return read_head(folder, name, 4) in ZIP_MAGIC


def read_head(folder: PathOrUrl, name: bytes, length: int) -> bytes:
    """Return the first bytes of a listed file. Raises OSError."""
    if isinstance(folder, Url):
        with (folder / name.decode()).client() as (files, path):
            return bytes(files.cat_file(path, start=0, end=length))
    descriptor = os.open(os.fsencode(folder) + b"/" + name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, length, 0)
    finally:
        os.close(descriptor)


def _walk(folder: Path, refused: list[RefusedEntry]) -> Iterator[tuple[bytes, int, int]]:
    """Yield every regular file but junk. Links, devices and hostile names go to ``refused``."""
    root = os.fsencode(folder)
    if _is_built_data_set([path.name for path in folder.iterdir()]):
        raise SourceError(
            f"{folder}: a data set that `shardify build` made; expected the pictures that it was "
            "made from"
        )
    folders = [b""]
    while folders:
        inside = folders.pop()
        with os.scandir(os.path.join(root, inside) if inside else root) as scan:  # noqa: PTH118
            entries = list(scan)
        if inside and _is_built_data_set([os.fsdecode(entry.name) for entry in entries]):
            continue
        for entry in entries:
            name = inside + b"/" + entry.name if inside else entry.name
            clean = clean_name(name)
            shown = decode(clean)
            if is_junk(decode(entry.name)) or is_junk_folder(shown):
                continue
            if is_hostile(clean):
                reason = "its name has control characters or climbs out"
                refused.append(RefusedEntry(member=shown, reason=reason))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield name, status.st_size, status.st_mtime_ns
            else:
                kind = "a link" if entry.is_symlink() else "a device or pipe"
                refused.append(RefusedEntry(member=shown, reason=f"is {kind}, not a file"))


def _is_built_data_set(names: list[str]) -> bool:
    """Whether the folder with these entries was written by a build, or is being written."""
    return _STATE_FOLDER in names or _DATA_SET_FILES <= set(names)


def _objects(url: Url) -> Iterator[tuple[bytes, int, int]]:
    """Yield every object under a prefix but junk."""
    with url.client() as (files, path):
        objects = files.find(path, detail=True)
    prefix = path.strip("/") + "/"
    names = {str(name).lstrip("/").removeprefix(prefix): info for name, info in objects.items()}
    folders = [
        {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == file}
        for file in _DATA_SET_FILES
    ]
    built = set.intersection(*folders)
    for name, info in names.items():
        folder, _, base = name.rpartition("/")
        if is_junk(base) or is_junk_folder(folder) or info.get("type") == "directory":
            continue
        if any(not outer or name.startswith(f"{outer}/") for outer in built):
            continue
        stamp = str(info.get("ETag") or info.get("LastModified") or info.get("created") or "")
        yield name.encode(), int(info["size"]), zlib.crc32(stamp.encode())


def _folder_name(folder: PathOrUrl) -> str:
    """Return a folder's own name, also for ``.``."""
    return folder.name if isinstance(folder, Url) else folder.resolve().name
