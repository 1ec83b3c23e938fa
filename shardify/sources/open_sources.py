"""Open the zips, nested zips and folders that the user named as one catalog.

Reads the zips' directories and lists the folders. The result does not depend on the order in which
a folder lists its files.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shardify.errors import EntryError, SourceError
from shardify.images.foreign_files import LFS_POINTER, LFS_REMEDY, POINTER_SIZES, recognise
from shardify.sources.catalog import (
    Catalog,
    OpenSources,
    Source,
    entry_reader,
    join_parts,
    open_zip,
)
from shardify.sources.entry_names import clean_name, decode
from shardify.sources.folder_listing import Listing, list_folder, read_head, without_zip_extension
from shardify.sources.nested_zips import UnpackCache, open_nested_zips
from shardify.sources.repeated_files import Part, are_one_tree, drop_repeated_files
from shardify.sources.zip_directory import SourceEntries
from shardify.storage.paths import PathOrUrl

MAX_SOURCES = 500
"""Most files and folders open at once in every worker."""
_PROBED_FILES = 20
"""Files of a folder without pictures that are looked at; the largest ones."""
_PROBED_POINTERS = 8
_MIN_POINTER_SHARE = 100
"""A source is refused if more than one in so many files is a Git LFS pointer."""

_NUMBERED_PART = re.compile(
    r"(?P<stem>.*?)(?:-\d{8}T\d{6}Z(?:-\d{1,3})?)?(?:-\d{3}|[-_. ]?part[-_. ]?\d{1,3})",
    re.IGNORECASE,
)
"""Names of the parts of one download."""
_STAMP = re.compile(r"-\d{8}T\d{6}Z-")
_BACKGROUND_STEM = re.compile(r"(?<![a-z])(?:bg|back|background|scene)s?$", re.IGNORECASE)
"""The number behind such a word is that of a background or scene."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A zip or the files of a folder."""

    label: str
    """Prefix of its names, if there are several items."""
    source: Source
    part: SourceEntries
    parent: str
    """Name of the folder that contains it, to tell equal labels apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _OpenItem:
    """An item with the zips in it."""

    item: _Item
    outer: Part
    inner: list[tuple[str, Part]]
    """Path in the item, entries."""

    @property
    def parts(self) -> list[Part]:
        return [self.outer, *(part for _, part in self.inner)]


def open_sources(paths: Sequence[PathOrUrl], work: UnpackCache) -> Catalog:
    """Open all sources of one data set as one catalog.

    Files that stand in several sources are taken once. Numbered parts of one download
    (``name-001.zip``, ``name-002.zip``) are one tree.

    Args:
        paths: Zips, and folders that contain files, zips or both.
        work: Unpacks deflated zips inside a zip.

    Returns:
        The catalog. With several zips or folders, the names of each are prefixed by its own name;
        those of a zip inside another, or in a folder, by its path there.

    Raises:
        SourceError: One is missing, named twice, empty, damaged or hostile, or its files are Git
            LFS pointers.
        StoreError: A store is at fault.
        OSError: The disk is too full for the zips that must be unpacked.
    """
    _check_unique(paths)
    items: list[_Item] = []
    for path in paths:
        if path.is_dir():
            items += _open_folder(path, alone=len(paths) == 1)
        else:
            source, part = open_zip(path)
            label = _label(path.stem)
            items.append(_Item(label=label, source=source, part=part, parent=_parent(path)))
    opened = [_open_item(item, work) for item in items]
    where = ", ".join(map(str, paths))
    notes = drop_repeated_files([part for each in opened for part in each.parts])
    opened = [each for each in opened if any(len(part.entries) for part in each.parts)] or opened
    prefixes = _prefixes(opened)
    sources: list[Source] = []
    parts: list[tuple[int, str, SourceEntries]] = []
    for each, prefix in zip(opened, prefixes, strict=True):
        number = len(sources)
        sources.append(each.item.source)
        parts.append((number, prefix, each.outer.entries))
        for name, nested in each.inner:
            inner_number = number
            if nested.source is not each.item.source:
                inner_number = len(sources)
                sources.append(nested.source)
            parts.append((inner_number, f"{prefix}{name}/", nested.entries))
    if len(sources) > MAX_SOURCES:
        raise SourceError(
            f"{where}: {len(sources)} zips; at most {MAX_SOURCES} are read at once; unpack them "
            "into a folder, and pass that"
        )
    catalog = join_parts(sources, parts, where=where, notes=notes)
    _refuse_pointers(catalog, where)
    return catalog


def _open_item(item: _Item, work: UnpackCache) -> _OpenItem:
    """Open the zips in an item."""
    outer, inner = item.part, []
    if not item.source.path.endswith("/"):
        outer, nested = open_nested_zips(item.source, item.part, work)
        inner = [
            (
                each.name,
                Part(
                    name=f"{item.source.name}: {each.name}",
                    source=each.source or item.source,
                    entries=each.part,
                ),
            )
            for each in nested
        ]
    return _OpenItem(
        item=item,
        outer=Part(name=item.source.name, source=item.source, entries=outer),
        inner=inner,
    )


def _refuse_pointers(catalog: Catalog, where: str) -> None:
    """Refuse a source in which more than a few files are Git LFS pointers."""
    size = catalog.entries.size
    rows = np.flatnonzero((size >= POINTER_SIZES[0]) & (size <= POINTER_SIZES[1]))
    if len(rows) * _MIN_POINTER_SHARE < len(size):
        return
    probed = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PROBED_POINTERS)).astype(np.int64)]
    pointers = []
    with OpenSources([each.path for each in catalog.sources]) as handles:
        read = entry_reader(catalog, handles)
        for row in probed.tolist():
            with suppress(EntryError):
                if read(row).startswith(LFS_POINTER):
                    pointers.append(row)
    if len(pointers) * 2 > len(probed):
        raise SourceError(
            f"{where}: {len(rows)} of {len(size)} files are Git LFS pointers, not the files "
            f"themselves (as {catalog.names[pointers[0]]}); expected pictures; {LFS_REMEDY}"
        )


def _open_folder(folder: PathOrUrl, *, alone: bool) -> list[_Item]:
    """Open a folder's own files, and the zips in it."""
    listing = list_folder(folder)
    parent = _parent(folder)
    own = listing.source()
    prefix = "" if alone else _label(own.name)
    items = []
    if listing.has_images_or_maps:
        items.append(_Item(label=prefix, source=own, part=listing.part(), parent=parent))
    for name in listing.zips:
        source, part = open_zip(folder / name)
        label = "/".join(filter(None, (prefix, _label(without_zip_extension(name)))))
        items.append(
            _Item(label=label, source=replace(source, name=_label(name)), part=part, parent=parent)
        )
    if not items:
        raise SourceError(f"{folder}: {_describe_nothing(folder, listing)}")
    return items


def _describe_nothing(folder: PathOrUrl, listing: Listing) -> str:
    """Describe a folder without zips and images, and the remedy."""
    if listing.refused:
        example = listing.refused[0]
        links = sum(each.reason.startswith("is a link") for each in listing.refused)
        if links:
            return (
                f"nothing but links ({links}), which are not followed; expected images or zips; "
                "pass the folders that they point to"
            )
        return (
            f"none of its {len(listing.refused)} files can be taken ({example.member}: "
            f"{example.reason}); rename them"
        )
    largest = sorted(listing.files, key=lambda each: -each[1])[:_PROBED_FILES]
    for name, _, _ in largest:
        foreign = recognise(read_head(folder, name, 512), zip_expected=True)
        if foreign:
            return f"no zips or images, but {decode(name)}, {foreign.kind}; {foreign.remedy}"
    return "a folder without zips or images; expected some, at any depth"


def _prefixes(opened: Sequence[_OpenItem]) -> list[str]:
    """Return the prefix of each item's names: unique for each tree, empty for a single tree."""
    trees = _trees(opened)
    if len(trees) == 1:
        return [""] * len(opened)
    repeated = {label for label, count in Counter(label for label, _ in trees).items() if count > 1}
    seen: Counter[str] = Counter()
    prefixes = [""] * len(opened)
    for name, places in trees:
        parent = opened[places[0]].item.parent
        label = f"{parent}/{name}" if name in repeated and parent else name
        seen[label] += 1
        number = f"~{seen[label]}" if seen[label] > 1 else ""
        for place in places:
            prefixes[place] = f"{label}{number}/" if label else ""
    return prefixes


def _trees(opened: Sequence[_OpenItem]) -> list[tuple[str, list[int]]]:
    """Return label and items of each tree: of one item, or of the parts of one download.

    Items are parts of one download if their names say so, no path stands in two of them, and a
    folder is spread over them (in names of Google Drive a time stamp says so).
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for place, each in enumerate(opened):
        folder, _, base = each.item.label.rpartition("/")
        match = _NUMBERED_PART.fullmatch(base)
        if match and not each.inner and not _BACKGROUND_STEM.search(match["stem"]):
            key = f"{folder}/{match['stem']}".strip("/"), each.item.parent
            groups.setdefault(key, []).append(place)
    trees = [(each.item.label, [place]) for place, each in enumerate(opened)]
    for (label, _), places in groups.items():
        stamped = all(_STAMP.search(opened[place].item.label) for place in places)
        parts = [opened[place].outer.entries for place in places]
        if len(places) > 1 and are_one_tree(parts, spread=stamped):
            trees[places[0]] = (label, places)
            for place in places[1:]:
                trees[place] = ("", [])
    return [tree for tree in trees if tree[1]]


def _label(name: str) -> str:
    return decode(clean_name(os.fsencode(name)))


def _parent(path: PathOrUrl) -> str:
    return path.absolute().parent.name if isinstance(path, Path) else ""


def _check_unique(paths: Sequence[PathOrUrl]) -> None:
    seen = set()
    for path in paths:
        where = str(path.resolve() if isinstance(path, Path) else path)
        if where in seen:
            raise SourceError(f"{path}: named twice; expected each source once; name it once")
        seen.add(where)
