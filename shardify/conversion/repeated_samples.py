"""Find samples that are published twice: equal in name and content, or of the same picture.

Files are compared by size and CRC. The files of a folder have no CRC; composites are read where
another one has the same size.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardify.errors import EntryError
from shardify.layout.detect import Layout
from shardify.layout.filenames import file_stem
from shardify.sources.catalog import Catalog, entry_rows
from shardify.sources.entry_names import chunks, take
from shardify.sources.zip_extract import read_payload
from shardify.storage.readers import FolderReader, PrefixReader, ReadHandle, announce_reads
from shardify.zlib_backend import crc32

Ints = NDArray[np.int64]
_LARGE_BYTES = 1 << 16
"""A larger file is read only if the bytes in its middle equal another one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedSamples:
    """Samples that repeat others."""

    again: NDArray[np.bool_]
    """(N,) True for a sample that is left out: it equals an earlier one in file name and content,
    or its picture also stands in the source's own validation split."""
    picture: Ints | None = None
    """(N,) number of each sample's composite, the same for equal ones; None if none are equal."""
    warnings: tuple[str, ...] = ()


def find_repeated_samples(
    layout: Layout,
    catalog: Catalog,
    handles: Sequence[ReadHandle],
    usable: NDArray[np.bool_],
) -> RepeatedSamples:
    """Find the repeated samples of a layout.

    Args:
        layout: The samples.
        catalog: All entries.
        handles: The open sources.
        usable: (N,) True for each sample that is not rejected.
    """
    count = len(layout.keys)
    again = np.zeros(count, bool)
    rows = np.flatnonzero(usable)
    content = _content(layout, catalog, handles, rows)
    composite, names = layout.members["fg_bg"], catalog.names
    _, number, times = np.unique(content[composite[rows]], return_inverse=True, return_counts=True)
    repeated = rows[times[number] > 1]
    if not len(repeated):
        return RepeatedSamples(again=again)
    columns = [content[column[repeated]] for column in layout.members.values()]
    if layout.background_ids:
        columns.append(content[layout.background_members][layout.background[repeated]])
    labels = np.stack([number[times[number] > 1], *columns], axis=1)
    stems = (hash(file_stem(name)) for name in _some_names(catalog, composite[repeated]))
    columns.append(np.fromiter(stems, np.int64, len(repeated)))
    order = np.lexsort(columns)  # Stable: the first of equal samples comes first.
    equal = np.all([np.diff(column[order]) == 0 for column in columns], axis=0)
    again[repeated[order[1:][equal]]] = True
    picture = np.full(count, -1, np.int64)
    picture[rows] = number
    warnings = []
    if again.any():
        example = names[int(composite[np.flatnonzero(again)[0]])]
        warnings.append(
            f"{int(again.sum())} samples stand twice, with the same names and the same bytes (as "
            f"{example}); they are taken once"
        )
    kept = repeated[~again[repeated]]
    alike = kept[np.bincount(picture[kept])[picture[kept]] > 1]
    if not len(alike):
        return RepeatedSamples(again=again, warnings=tuple(warnings))
    distinct = np.unique(labels[~again[repeated]], axis=0)
    apart = int((np.unique(distinct[:, 0], return_counts=True)[1] > 1).sum())
    if layout.split is not None:
        held = picture[repeated[layout.split[repeated] == 1]]
        leaked = alike[(layout.split[alike] == 0) & np.isin(picture[alike], held)]
        again[leaked] = True
        treatment = f"of those in both splits, {len(leaked)} samples are left out of train"
    else:
        treatment = "those of one picture are put into one split"
    if apart:
        treatment += f"; {apart} such pictures have different masks, depths or backgrounds"
    warnings.append(
        f"{len(alike)} samples have a picture that another one has too, byte for byte (as "
        f"{names[int(composite[alike[0]])]}); {treatment}"
    )
    return RepeatedSamples(again=again, picture=picture, warnings=tuple(warnings))


def _some_names(catalog: Catalog, indexes: NDArray[np.int32]) -> Iterator[str]:
    """Yield the names of some entries; of a large source, a few thousand are in memory at once."""
    for chunk in chunks(len(indexes)):
        yield from take(catalog.names, indexes[chunk])


def join_groups(groups: NDArray[np.int32] | None, picture: Ints | None) -> NDArray[np.int32] | None:
    """Join the groups that have a picture in common.

    Args:
        groups: (n,) group of each sample that must not appear in both splits; None for none.
        picture: (n,) number of each sample's picture; None if no two are equal.

    Returns:
        (n,) joined groups.
    """
    if picture is None:
        return groups
    if groups is None:
        return picture.astype(np.int32)
    pairs = np.unique(np.stack([picture, groups], axis=1), axis=0)
    parent: dict[int, int] = {}

    def root(group: int) -> int:
        while parent.get(group, group) != group:
            group = parent[group]
        return group

    for first, second in itertools.pairwise(pairs.tolist()):
        if first[0] == second[0]:
            one, other = sorted((root(first[1]), root(second[1])))
            parent[other] = one
    unique, number = np.unique(groups, return_inverse=True)
    return np.array([root(group) for group in unique.tolist()], np.int32)[number]


def _content(layout: Layout, catalog: Catalog, handles: Sequence[ReadHandle], rows: Ints) -> Ints:
    """Return a number for each entry, the same for equal content.

    It is size and CRC; for a folder's file a number of its own, unless it must be read.
    """
    entries = catalog.entries
    content: Ints = entries.size << 32 | entries.crc
    folders = [number for number, source in enumerate(catalog.sources) if source.is_folder]
    if not folders:
        return content
    plain = np.isin(entries.source, folders)
    content[plain] = -1 - np.flatnonzero(plain)
    composites = layout.members["fg_bg"][rows]
    equal = _equal(entries.size[composites])
    candidates = _equal_middles(catalog, handles, composites[equal], plain)

    def read_all(numbers: NDArray[np.int32]) -> None:
        unread = np.unique(numbers[plain[numbers]])
        for chunk in chunks(len(unread)):
            batch, files = unread[chunk], list(map(catalog.names.raw, unread[chunk]))
            table = entry_rows(catalog, batch)
            announce_reads(handles, table, files)
            for entry, name, (source, *rest) in zip(batch, files, table.tolist(), strict=True):
                with suppress(EntryError):
                    payload = read_payload(handles[source], name, *rest)
                    content[entry] = len(payload) << 32 | crc32(payload)

    read_all(candidates)
    repeated = rows[_equal(content[composites])]
    for role, column in layout.members.items():
        if role != "fg_bg":
            read_all(column[repeated])
    return content


def _equal(values: Ints) -> NDArray[np.bool_]:
    """(N,) True for each value that stands more than once."""
    _, number, times = np.unique(values, return_inverse=True, return_counts=True)
    equal: NDArray[np.bool_] = times[number] > 1
    return equal


def _equal_middles(
    catalog: Catalog,
    handles: Sequence[ReadHandle],
    files: NDArray[np.int32],
    plain: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """Drop large files whose middle differs from that of every other file of their size.

    Uncompressed pictures all have one size; reading them whole would read the data set twice.
    """
    entries = catalog.entries
    size = entries.size[files]
    in_zips = np.isin(size, size[~plain[files]])  # The middle of a packed file cannot be read.
    large = (size > _LARGE_BYTES) & ~in_zips
    if not large.any():
        return files
    numbers = []
    for entry, length in zip(files[large].tolist(), size[large].tolist(), strict=True):
        reader = handles[entries.source[entry]]
        assert isinstance(reader, (FolderReader, PrefixReader))
        numbers.append(length << 32 | crc32(reader.middle(catalog.names.raw(entry), length)))
    keep = ~large
    keep[large] = _equal(np.array(numbers, np.int64))
    return files[keep]
