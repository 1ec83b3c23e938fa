"""One catalog of the entries of all sources; open sources and payloads by entry number."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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


def open_catalog(paths: Sequence[PathOrUrl]) -> Catalog:
    """Read the central directories of one or more zips.

    Args:
        paths: Zip files, in the order of the catalog's sources.

    Raises:
        ArchiveError: One is missing, not a zip, truncated or over a limit, or has overlapping
            entries; or there is no entry at all.
    """
    opened = [open_zip(path) for path in paths]
    prefixes = [f"{path.stem}/" if len(paths) > 1 else "" for path in paths]
    return join_parts(
        [source for source, _ in opened],
        [
            (number, prefix, part)
            for number, (prefix, (_, part)) in enumerate(zip(prefixes, opened, strict=True))
        ],
        where=", ".join(map(str, paths)),
    )


def join_parts(
    sources: list[Source],
    parts: Sequence[tuple[int, str, SourceEntries]],
    *,
    where: str,
    notes: Sequence[str] = (),
) -> Catalog:
    """Join the entries of several sources into one catalog.

    Args:
        sources: Zips and folders, in the catalog's order.
        parts: Number of the source, prefix of the names, and entries of each part.
        where: Name of the whole in an error.
        notes: Warnings for the user.

    Raises:
        ArchiveError: There is no entry at all.
    """
    for number, _, part in parts:
        part.table["source"] = np.full(len(part), number, np.uint16)
    tables = [part.table for _, _, part in parts]
    refused = [each for _, _, part in parts for each in part.refused]
    if not sum(len(part) for _, _, part in parts):
        raise ArchiveError(f"{where}: {_describe_nothing(refused)}")
    merged = {
        name: np.concatenate([table[name] for table in tables]) if len(tables) > 1
        else tables[0][name]
        for name in tables[0]
    }  # fmt: skip
    return Catalog(
        sources=sources,
        names=Names(
            [(*part.names, prefix) for _, prefix, part in parts],
            [part.stored for _, _, part in parts],
        ),
        entries=Entries(**merged),
        refused=refused,
        notes=[*notes, *_describe_doubled(sources, parts)],
    )


def _describe_nothing(refused: list[RefusedEntry]) -> str:
    if not refused:
        return "holds no files; expected images; nothing to build"
    reasons = Counter(each.reason for each in refused).most_common(3)
    example = {each.reason: each.member for each in reversed(refused)}
    told = "; ".join(f"{reason} ({count}, as {example[reason]})" for reason, count in reasons)
    return f"none of its {len(refused)} files can be taken; pack them again; reasons: {told}"


def _describe_doubled(
    sources: list[Source], parts: Sequence[tuple[int, str, SourceEntries]]
) -> Iterator[str]:
    for number, _, part in parts:
        if part.doubled:
            yield (
                f"{sources[number].name}: {part.doubled} files stand in it twice, with the same "
                "bytes; each is taken once"
            )


def open_zip(path: PathOrUrl) -> tuple[Source, SourceEntries]:
    """Read one zip's central directory.

    Raises:
        ArchiveError: It is missing, not a zip, truncated or over a limit, or its entries overlap.
    """
    try:
        handle = open_source(str(path))
        try:
            total = _file_size(handle, path)
            try:
                count, digest, part = read_zip(handle, total, str(path))
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
    source = Source(
        path=str(path.absolute()), name=path.name, bytes=total, entries=count, digest=digest
    )
    return source, part


def _file_size(handle: ReadHandle, path: PathOrUrl) -> int:
    if isinstance(handle, ObjectReader):
        return handle.size
    assert isinstance(handle, int)
    status = os.fstat(handle)
    if stat.S_ISDIR(status.st_mode):
        raise ArchiveError(f"{path}: a folder; expected a zip")
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
