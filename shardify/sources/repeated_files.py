"""Find files that stand in several sources: the same download twice, a zip beside its content.

Two sources repeat each other where the files that both have under the same path are equal in size
and CRC, every one of them: names alone prove nothing, because zips of pictures and of masks may
have the same paths. The files of a folder have no CRC; they are read only where a file of the
same path and size stands in another source.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ShardifyError
from shardify.sources.catalog import Part
from shardify.sources.entry_names import chunks, common_folders
from shardify.sources.file_types import IMAGE_EXTENSIONS, MAP_EXTENSIONS, is_junk, is_junk_folder
from shardify.sources.zip_directory import SourceEntries
from shardify.sources.zip_extract import read_payload
from shardify.storage.readers import close_source, open_source
from shardify.zlib_backend import crc32

_MAX_DIFFERENT = 1000
"""Most files of equal path and different content that are looked at by name."""
_MAX_PLACES = 4
"""Places in a folder at which the content of a zip is looked for."""

Ints = NDArray[np.int64]


def drop_repeated_files(parts: Sequence[Part]) -> list[str]:
    """Drop from each part the files that an earlier part has too; return warnings.

    A part that keeps neither images nor maps is left empty.
    """
    warnings = []
    for first, second in _candidates(parts):
        part = parts[second]
        repeated = _repeated_rows(parts[first], part)
        if not len(repeated):
            continue
        kept = np.setdiff1d(np.arange(len(part.entries)), repeated)
        if not has_images_or_maps(part.entries, kept):
            kept = kept[:0]
        part.entries = part.entries.select(kept, part.entries.refused)
        warnings.append(
            f"{part.name}: {len(repeated)} files stand in {parts[first].name} too, with the same "
            "bytes; they are taken once"
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


def has_images_or_maps(entries: SourceEntries, rows: Ints | None = None) -> bool:
    """Whether any of these rows, by default of all, is an image or may be a map, and no junk."""
    numbers = range(len(entries)) if rows is None else rows.tolist()
    return any(_is_image_or_map(entries.name(row)) for row in numbers)


def _is_image_or_map(name: str) -> bool:
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
    folders = [index for index, part in enumerate(parts) if part.source.is_folder]
    pairs = {
        (min(folder, index), max(folder, index))
        for folder in folders
        for index in range(len(parts))
    }
    rows = np.flatnonzero((size > 0) & ~np.isin(number, folders))
    rows = rows[np.lexsort((number[rows], crc[rows], size[rows]))]
    same = (np.diff(size[rows]) == 0) & (np.diff(crc[rows]) == 0)
    run = np.append(0, np.cumsum(~same))[: len(rows)]
    first = np.unique(run, return_index=True)[1]
    for before in (rows[:-1], rows[first][run][:-1]):
        codes = np.unique((number[before] * len(parts) + number[rows[1:]])[same])
        pairs |= {divmod(code, len(parts)) for code in codes.tolist()}
    return sorted((first, second) for first, second in pairs if first != second)


def _repeated_rows(first: Part, second: Part) -> Ints:
    """Return the rows of ``second`` that ``first`` has too; none if files of one path differ."""
    ours, theirs = first.entries, second.entries
    has_folder = first.source.is_folder or second.source.is_folder
    for our_lead, their_lead in _leading_folders(ours, theirs):
        our_rows, our_hashes = _path_hashes(ours, our_lead)
        their_rows, their_hashes = _path_hashes(theirs, their_lead)
        _, left, right = np.intersect1d(our_hashes, their_hashes, return_indices=True)
        left, right = our_rows[left], their_rows[right]
        equal = ours.table["size"][left] == theirs.table["size"][right]
        if not has_folder:
            equal &= ours.table["crc"][left] == theirs.table["crc"][right]
        different = right[~equal]
        if len(different) > _MAX_DIFFERENT or has_images_or_maps(theirs, different):
            continue
        left, right = left[equal], right[equal]
        if not has_images_or_maps(theirs, right):
            continue
        whole = not has_images_or_maps(theirs, np.setdiff1d(np.arange(len(theirs)), right))
        # Files that are equal and stand at another place, or alone, may be equal by chance, as
        # empty masks are.
        moved = bool(our_lead or their_lead)
        if (moved and not whole and has_images_or_maps(ours, np.setdiff1d(our_rows, left))) or (
            (moved or not whole) and len(np.unique(theirs.table["size"][right])) < 2
        ):
            continue
        if has_folder and not _equal_content(first, left, second, right):
            continue
        repeated: Ints = right
        return repeated
    return np.zeros(0, np.int64)


def _equal_content(first: Part, left: Ints, second: Part, right: Ints) -> bool:
    """Whether files, of which at least one side lies in a folder, are equal; reads the folders'."""
    try:
        checksums = zip(_checksums(first, left), _checksums(second, right), strict=True)
        return all(ours == theirs for ours, theirs in checksums)
    except ShardifyError:
        return False


def _checksums(part: Part, rows: Ints) -> Iterator[int]:
    """Yield the CRCs of some files of a part; those of a folder are computed."""
    if not part.source.is_folder:
        yield from part.entries.table["crc"][rows].tolist()
        return
    handle = open_source(part.source.path)
    try:
        for row in rows.tolist():
            name, values = part.entries.stored_name(row), part.entries.row(row)
            del values["fault"]
            yield crc32(read_payload(handle, name, **values))
    finally:
        close_source(handle)


def _leading_folders(first: SourceEntries, second: SourceEntries) -> Iterator[tuple[bytes, bytes]]:
    """Yield leading folders of both below which they may have the same files."""
    if not len(first) or not len(second):
        return
    yield b"", b""
    first_lead, second_lead = _shared_folders(first), _shared_folders(second)
    if first_lead != second_lead:
        yield first_lead, second_lead
    # Look for one file of the second below any folder of the first.
    other, edges = second.names
    rows = (row for row in range(len(second)) if _is_image_or_map(second.name(row)))
    row = next(rows, None)
    if row is None or not other.startswith(second_lead, int(edges[row])):
        return
    path = bytes(other[int(edges[row]) + len(second_lead) : int(edges[row + 1])])
    block, bounds = first.names
    start, count = block.find(path), 0
    while start >= 0 and count < _MAX_PLACES:
        entry = int(np.searchsorted(bounds, start, "right")) - 1
        begin, end = int(bounds[entry]), int(bounds[entry + 1])
        if end == start + len(path) and (start == begin or block[start - 1] == ord("/")):
            count += 1
            yield bytes(block[begin:start]), second_lead
        start = block.find(path, start + 1)


def _path_hashes(entries: SourceEntries, lead: bytes) -> tuple[Ints, Ints]:
    """Return the rows whose name begins with ``lead``, and hashes of what follows it."""
    block, bounds = entries.names
    rows, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for chunk in chunks(len(entries)):
        edges = bounds[chunk.start : chunk.stop + 1].tolist()
        below = [
            (row, begin, end)
            for row, (begin, end) in enumerate(pairwise(edges), chunk.start)
            if not lead or block.startswith(lead, begin, end)
        ]
        rows.append(np.array([row for row, _, _ in below], np.int64))
        names = (hash(bytes(block[begin + len(lead) : end])) for _, begin, end in below)
        hashes.append(np.fromiter(names, np.int64, len(below)))
    return np.concatenate(rows), np.concatenate(hashes)


def _shared_folders(entries: SourceEntries) -> bytes:
    """Return the leading folders that all files share, with the last slash; b"" without any."""
    folders = {folder for folder in _folders(entries) if not is_junk_folder(folder)}
    shared = min(folders, default="").split("/")[: common_folders(sorted(folders))]
    return "".join(f"{folder}/" for folder in shared).encode()


def _folders(entries: SourceEntries) -> set[str]:
    """Return the folders of all files; empty for files without one."""
    block, bounds = entries.names
    pairs = pairwise(bounds.tolist())
    folders = {bytes(block[begin:end]).rpartition(b"/")[0] for begin, end in pairs}
    return {folder.decode(errors="replace") for folder in folders}
