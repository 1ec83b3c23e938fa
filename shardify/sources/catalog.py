"""One catalog of the entries of all sources; open sources and payloads by entry number."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ArchiveError, BuildError, EntryError, ShardifyError
from shardify.images.foreign_files import recognise
from shardify.sources.entry_names import Names
from shardify.sources.zip_directory import FAULTS, RefusedEntry, SourceEntries, read_zip
from shardify.sources.zip_extract import read_payload
from shardify.storage.paths import PathOrUrl
from shardify.storage.readers import ObjectReader, ReadHandle, close_source, open_source, pread

ENTRY_DTYPE = np.dtype(
    [("source", "<u2"), ("offset", "<i8"), ("limit", "<i8"), ("packed", "<i8"), ("size", "<i8"),
     ("crc", "<u4"), ("method", "<u2")]
)  # fmt: skip
"""One entry as a task carries it: the columns of ``Entries`` that ``read_payload`` needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One zip or folder: its path for the workers, its identity for the manifest."""

    path: str
    """Ends in a slash if it is a folder."""
    name: str
    bytes: int
    entries: int
    digest: str
    inner: bool = False
    """Unpacked from another source; the manifest lists only that one."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder; its files have no CRC."""
        return self.path.endswith("/")


@dataclass(kw_only=True, slots=True)
class Part:
    """The entries of one source, or of a zip inside it."""

    source: Source
    """The zip or folder; of a zip that was unpacked, the unpacked file."""
    entries: SourceEntries
    name: str
    """Its name in a warning."""
    path: str = ""
    """Path of a zip inside another, without ``.zip``."""
    prefix: str = ""
    """Prefix of its names in the catalog."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entries:
    """Columns over all regular files of all sources, in directory order."""

    source: NDArray[np.uint16]
    """Index into the catalog's sources."""
    offset: NDArray[np.int64]
    """First byte of the local header in the file; for a folder's file, its modification time."""
    limit: NDArray[np.int64]
    """First byte after the entry; the payload must end here or before."""
    packed: NDArray[np.int64]
    size: NDArray[np.int64]
    crc: NDArray[np.uint32]
    method: NDArray[np.uint16]
    """0 stored, 8 deflated; others carry a fault."""
    fault: NDArray[np.uint8]
    """0, or a key of ``FAULTS`` for an entry that the directory alone shows to be unusable."""

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The entries of all sources: ``names[i]`` is the name of row ``i`` of ``entries``."""

    sources: list[Source]
    names: Names
    entries: Entries
    refused: list[RefusedEntry]
    notes: list[str]
    """Warnings for the user: files that stand twice and are taken once."""


def join_parts(parts: Sequence[Part], *, where: str, notes: Sequence[str] = ()) -> Catalog:
    """Join the entries of several parts into one catalog.

    Args:
        parts: Zips and folders, in the catalog's order.
        where: Name of the whole in an error.
        notes: Warnings for the user.

    Raises:
        ArchiveError: There is no entry at all.
    """
    refused = [entry for part in parts for entry in part.entries.refused]
    if not any(len(part.entries) for part in parts):
        raise ArchiveError(f"{where}: {_describe_nothing(refused)}")
    sources = list({id(part.source): part.source for part in parts}.values())
    numbers = {id(source): number for number, source in enumerate(sources)}
    for part in parts:
        number = numbers[id(part.source)]
        part.entries.table["source"] = np.full(len(part.entries), number, np.uint16)
    tables = [part.entries.table for part in parts]
    merged = {
        name: np.concatenate([table[name] for table in tables]) if len(tables) > 1 else column
        for name, column in tables[0].items()
    }
    doubled = [
        f"{part.source.name}: {part.entries.doubled} files stand in it twice, with the same bytes; "
        "each is taken once"
        for part in parts
        if part.entries.doubled
    ]
    return Catalog(
        sources=sources,
        names=Names(
            [(*part.entries.names, part.prefix) for part in parts],
            [part.entries.stored for part in parts],
        ),
        entries=Entries(**merged),
        refused=refused,
        notes=[*notes, *doubled],
    )


def _describe_nothing(refused: list[RefusedEntry]) -> str:
    if not refused:
        return "holds no files; expected images; nothing to build"
    examples = {entry.reason: entry.member for entry in reversed(refused)}
    reasons = "; ".join(
        f"{reason} ({count}, as {examples[reason]})"
        for reason, count in Counter(entry.reason for entry in refused).most_common(3)
    )
    return f"none of its {len(refused)} files can be taken; pack them again; reasons: {reasons}"


def open_zip(path: PathOrUrl, name: str | None = None) -> Part:
    """Read the central directory of one zip; ``name`` is its name in the manifest.

    Raises:
        ArchiveError: It is missing, not a zip, truncated or over a limit, or its entries overlap.
    """
    try:
        handle = open_source(str(path))
        try:
            total = _file_size(handle, path)
            try:
                count, digest, entries = read_zip(handle, total, str(path))
            except ArchiveError:
                foreign = recognise(pread(handle, 512, 0), zip_expected=True)
                if foreign:
                    raise ArchiveError(
                        f"{path}: {foreign.kind}, not a zip; {foreign.remedy}"
                    ) from None
                raise
        finally:
            close_source(handle)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror}); expected a zip") from error
    name = name or path.name
    source = Source(path=str(path.absolute()), name=name, bytes=total, entries=count, digest=digest)
    return Part(source=source, entries=entries, name=name)


def _file_size(handle: ReadHandle, path: PathOrUrl) -> int:
    if isinstance(handle, ObjectReader):
        return handle.size
    assert isinstance(handle, int)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise ArchiveError(f"{path}: not a regular file; expected a zip")
    return status.st_size


class OpenSources:
    """Opens zips and folders for reading; use it in a ``with`` block."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._handles: list[ReadHandle] = []

    def __enter__(self) -> list[ReadHandle]:
        try:
            for path in self._paths:
                self._handles.append(open_source(path))
        except ShardifyError:
            self.__exit__()
            raise
        except OSError as error:
            self.__exit__()
            raise BuildError(
                f"{error.filename}: {error.strerror}; it was there a moment ago"
            ) from error
        return self._handles

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            close_source(handle)


def entry_rows(catalog: Catalog, numbers: NDArray[Any]) -> NDArray[Any]:
    """Return entries as tasks carry them: the shape of ``numbers``, of ``ENTRY_DTYPE``."""
    rows = np.empty(numbers.shape, ENTRY_DTYPE)
    for name in ENTRY_DTYPE.names or ():
        rows[name] = getattr(catalog.entries, name)[numbers]
    return rows


def entry_reader(catalog: Catalog, handles: Sequence[ReadHandle]) -> Callable[[int], bytes]:
    """Return a function from entry number to payload; it raises EntryError for a bad entry."""

    def read(entry: int) -> bytes:
        code = int(catalog.entries.fault[entry])
        if code:
            raise EntryError(FAULTS[code])
        source, *rest = entry_rows(catalog, np.array([entry]))[0].tolist()
        return read_payload(handles[source], catalog.names.raw(entry), *rest)

    return read
