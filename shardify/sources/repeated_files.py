"""Find files that stand in several sources: the same download twice, a zip beside its content.

Two sources repeat each other where the files that both have under the same path are equal in size
and CRC, every one of them: names alone prove nothing, because zips of pictures and of masks may
have the same paths. The files of a folder have no CRC; they are read only where a file of the
same path and size stands in another source.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ShardifyError
from shardify.sources.catalog import Source
from shardify.sources.entry_names import common_folders
from shardify.sources.file_types import IMAGE_EXTENSIONS, MAP_EXTENSIONS, is_junk, is_junk_folder
from shardify.sources.zip_directory import SourceEntries
from shardify.sources.zip_extract import read_payload
from shardify.storage.readers import close_source, open_source
from shardify.zlib_backend import crc32

_CHUNK_NAMES = 1 << 16
_MAX_DIFFERENT = 1000
"""Most files of equal path and different content that are looked at by name."""
_MAX_PLACES = 4
"""Places in a folder at which the content of a zip is looked for."""

Ints = NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class Part:
    """The entries of one source, or of a zip inside it."""

    name: str
    """Its name in a warning."""
    source: Source
    entries: SourceEntries


def drop_repeated_files(parts: Sequence[Part]) -> list[str]:
    """Drop from each part the files that an earlier part has too; return warnings.

    A part that keeps neither images nor maps is left empty.
    """
    warnings = []
    for one, other in _candidates(parts):
        rows = _repeated_rows(parts[one], parts[other])
        if not len(rows):
            continue
        entries = parts[other].entries
        keep = np.ones(len(entries), bool)
        keep[rows] = False
        if not has_images_or_maps(entries, np.flatnonzero(keep)):
            keep[:] = False
        parts[other].entries = entries.select(np.flatnonzero(keep), entries.refused)
        warnings.append(
            f"{parts[other].name}: {len(rows)} files stand in {parts[one].name} too, "
            "with the same bytes; they are taken once"
        )
    return warnings


def are_one_tree(parts: Sequence[SourceEntries], *, spread: bool) -> bool:
    """Whether no path stands in two of the parts, and a folder is spread over them.

    Args:
        parts: Entries of each part.
        spread: Whether it is known that folders are spread over them.
    """
    hashes = [_path_hashes(part, b"")[1] for part in parts]
    unique, count = np.unique(np.concatenate(hashes), return_counts=True)
    repeated = unique[count > 1]
    for part, own in zip(parts, hashes, strict=True):
        rows = np.flatnonzero(np.isin(own, repeated)) if len(repeated) else repeated
        if len(rows) > _MAX_DIFFERENT or has_images_or_maps(part, rows):
            return False
    folders = [_folders(part) - {""} for part in parts]
    return spread or sum(map(len, folders)) > len(set.union(*folders))


def has_images_or_maps(entries: SourceEntries, rows: Ints) -> bool:
    """Whether any of these rows is an image or may be a map, and no junk."""
    return any(_is_used(entries.name(row)) for row in rows.tolist())


def _is_used(name: str) -> bool:
    folder, _, base = name.rpartition("/")
    extension = base.rpartition(".")[2].lower()
    return (
        extension in IMAGE_EXTENSIONS | MAP_EXTENSIONS
        and not is_junk(base)
        and not is_junk_folder(folder)
    )


def _candidates(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Return pairs of parts that have files of equal size and CRC, or of equal size in a folder."""
    if len(parts) < 2:
        return []
    counts = [len(part.entries) for part in parts]
    number = np.repeat(np.arange(len(parts)), counts)
    size = np.concatenate([part.entries.table["size"] for part in parts])
    crc = np.concatenate([part.entries.table["crc"] for part in parts]).astype(np.int64)
    folders = [place for place, part in enumerate(parts) if _is_folder(part)]
    pairs = {
        (min(pair), max(pair))
        for folder in folders
        for pair in ((folder, place) for place in range(len(parts)) if place != folder)
    }
    rows = np.flatnonzero((size > 0) & ~np.isin(number, folders))
    rows = rows[np.lexsort((number[rows], crc[rows], size[rows]))]
    same = (np.diff(size[rows]) == 0) & (np.diff(crc[rows]) == 0)
    run = np.append(0, np.cumsum(~same))[: len(rows)]
    first = np.unique(run, return_index=True)[1]
    for before in (rows[:-1], rows[first][run][:-1]):
        found = number[before] * len(parts) + number[rows[1:]]
        pairs |= {
            (pair // len(parts), pair % len(parts))
            for pair in np.unique(found[same]).tolist()
            if pair // len(parts) != pair % len(parts)
        }
    return sorted(pairs)


def _repeated_rows(one: Part, other: Part) -> Ints:
    """Return the rows of ``other`` that ``one`` has too; none if files of one path differ."""
    first, second = one.entries, other.entries
    for lead, other_lead in _places(first, second):
        ours, our_hashes = _path_hashes(first, lead)
        theirs, their_hashes = _path_hashes(second, other_lead)
        _, left, right = np.intersect1d(our_hashes, their_hashes, return_indices=True)
        a, b = ours[left], theirs[right]
        equal = first.table["size"][a] == second.table["size"][b]
        if not (_is_folder(one) or _is_folder(other)):
            equal &= first.table["crc"][a] == second.table["crc"][b]
        different = b[~equal]
        if len(different) > _MAX_DIFFERENT or has_images_or_maps(second, different):
            continue
        a, b = a[equal], b[equal]
        if not has_images_or_maps(second, b):
            continue
        whole = not has_images_or_maps(second, np.setdiff1d(np.arange(len(second)), b))
        # Files that are equal and stand at another place, or alone, may be equal by chance, as
        # empty masks are.
        moved = bool(lead or other_lead)
        if (moved and not whole and has_images_or_maps(first, np.setdiff1d(ours, a))) or (
            (moved or not whole) and len(np.unique(second.table["size"][b])) < 2
        ):
            continue
        if (_is_folder(one) or _is_folder(other)) and not _equal_content(one, a, other, b):
            continue
        repeated: Ints = b
        return repeated
    return np.zeros(0, np.int64)


def _equal_content(one: Part, a: Ints, other: Part, b: Ints) -> bool:
    """Whether files, of which at least one side lies in a folder, are equal; reads the folders'."""
    try:
        with _Reader(one) as left, _Reader(other) as right:
            return all(left(i) == right(j) for i, j in zip(a.tolist(), b.tolist(), strict=True))
    except ShardifyError:
        return False


class _Reader:
    """Returns CRCs of the files of one part; use it in a ``with`` block."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __enter__(self) -> Callable[[int], int]:
        table = self._part.entries.table
        if not _is_folder(self._part):
            return lambda row: int(table["crc"][row])
        self._handle = open_source(self._part.source.path)
        columns = ("offset", "limit", "packed", "size", "crc", "method")

        def read(row: int) -> int:
            values = [int(table[name][row]) for name in columns]
            name = self._part.entries.stored_name(row)
            return crc32(read_payload(self._handle, name, *values))

        return read

    def __exit__(self, *_: object) -> None:
        if _is_folder(self._part):
            close_source(self._handle)


def _places(first: SourceEntries, second: SourceEntries) -> Iterator[tuple[bytes, bytes]]:
    """Yield leading folders of both below which they may have the same files."""
    if not len(first) or not len(second):
        return
    yield b"", b""
    shared = _shared_folders(second)
    if shared != _shared_folders(first):
        yield _shared_folders(first), shared
    # Look for one file of the second below any folder of the first.
    other, edges = second.names
    row = next((row for row in range(len(second)) if _is_used(second.name(row))), None)
    if row is None or not other.startswith(shared, int(edges[row])):
        return
    sought = bytes(other[int(edges[row]) + len(shared) : int(edges[row + 1])])
    block, bounds = first.names
    at, found = block.find(sought), 0
    while at >= 0 and found < _MAX_PLACES:
        holder = int(np.searchsorted(bounds, at, "right")) - 1
        begin, end = int(bounds[holder]), int(bounds[holder + 1])
        if end == at + len(sought) and (at == begin or block[at - 1] == ord("/")):
            found += 1
            yield bytes(block[begin:at]), shared
        at = block.find(sought, at + 1)


def _path_hashes(part: SourceEntries, lead: bytes) -> tuple[Ints, Ints]:
    """Return the rows whose name begins with ``lead``, and hashes of what follows it."""
    block, bounds = part.names
    rows, hashes = [], []
    for first in range(0, len(part), _CHUNK_NAMES):
        edges = bounds[first : first + _CHUNK_NAMES + 1].tolist()
        below = [
            (row, begin, end)
            for row, (begin, end) in enumerate(pairwise(edges), first)
            if not lead or block.startswith(lead, begin, end)
        ]
        rows.append(np.array([row for row, _, _ in below], np.int64))
        names = (hash(bytes(block[begin + len(lead) : end])) for _, begin, end in below)
        hashes.append(np.fromiter(names, np.int64, len(below)))
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *rows]), np.concatenate([none, *hashes])


def _shared_folders(part: SourceEntries) -> bytes:
    """Return the leading folders that all files share, with the last slash; b"" without any."""
    folders = {each for each in _folders(part) if not is_junk_folder(each)}
    shared = min(folders, default="").split("/")[: common_folders(sorted(folders))]
    return "".join(f"{each}/" for each in shared).encode()


def _folders(part: SourceEntries) -> set[str]:
    """Return the folders of all files; empty for files without one."""
    block, bounds = part.names
    pairs = pairwise(bounds.tolist())
    found = {bytes(block[begin:end]).rpartition(b"/")[0] for begin, end in pairs}
    return {each.decode(errors="replace") for each in found}


def _is_folder(part: Part) -> bool:
    return part.source.path.endswith("/")
