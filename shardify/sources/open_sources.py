"""Open the zips, nested zips and folders that the user named as one catalog.

Reads the zips' directories and lists the folders. The result does not depend on the order in which
a folder lists its files.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardify.errors import EntryError, SourceError
from shardify.images.foreign_files import LFS_POINTER, LFS_REMEDY, POINTER_SIZES, recognise
from shardify.sources.catalog import (
    Catalog,
    OpenSources,
    Part,
    entry_reader,
    join_parts,
    open_zip,
)
from shardify.sources.entry_names import clean_name, decode
from shardify.sources.folder_listing import Listing, list_folder, read_head, without_zip_extension
from shardify.sources.nested_zips import UnpackCache, open_nested_zips
from shardify.sources.repeated_files import (
    are_one_tree,
    drop_repeated_files,
    has_images_or_maps,
)
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
    """A zip with the zips in it, or the files of a folder."""

    label: str
    """Prefix of its names, if there are several items."""
    parent: str
    """Name of the folder that contains it, to tell equal labels apart."""
    parts: list[Part]
    """The zip or folder itself, then the zips in it."""


def open_sources(paths: Sequence[PathOrUrl], cache: UnpackCache) -> Catalog:
    """Open all sources of one data set as one catalog.

    Files that stand in several sources are taken once. Numbered parts of one download
    (``name-001.zip``, ``name-002.zip``) are one tree.

    Args:
        paths: Zips, and folders that contain files, zips or both.
        cache: Unpacks deflated zips inside a zip.

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
            parts = [open_zip(path)]
            items.append(_Item(label=_label(path.stem), parent=_parent(path), parts=parts))
    for item in items:
        if not item.parts[0].source.is_folder:
            item.parts.extend(open_nested_zips(item.parts[0], cache))
    where = ", ".join(map(str, paths))
    notes = drop_repeated_files([part for item in items for part in item.parts])
    items = [item for item in items if any(len(part.entries) for part in item.parts)] or items
    for item, prefix in zip(items, _prefixes(items), strict=True):
        for part in item.parts:
            part.prefix = f"{prefix}{part.path}/" if part.path else prefix
    parts = [part for item in items for part in item.parts]
    sources = len({id(part.source) for part in parts})
    if sources > MAX_SOURCES:
        raise SourceError(
            f"{where}: {sources} zips; at most {MAX_SOURCES} are read at once; unpack them into a "
            "folder, and pass that"
        )
    catalog = join_parts(parts, where=where, notes=notes)
    _refuse_pointers(catalog, where)
    return catalog


def _refuse_pointers(catalog: Catalog, where: str) -> None:
    """Refuse a source in which more than a few files are Git LFS pointers."""
    size = catalog.entries.size
    rows = np.flatnonzero((size >= POINTER_SIZES[0]) & (size <= POINTER_SIZES[1]))
    if len(rows) * _MIN_POINTER_SHARE < len(size):
        return
    probed = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PROBED_POINTERS)).astype(np.int64)]
    pointers = []
    with OpenSources([source.path for source in catalog.sources]) as handles:
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
    files = listing.part()
    prefix = "" if alone else _label(files.name)
    items = []
    if has_images_or_maps(files.entries):
        items.append(_Item(label=prefix, parent=parent, parts=[files]))
    for name in listing.zips:
        label = "/".join(filter(None, (prefix, _label(without_zip_extension(name)))))
        zipped = open_zip(folder / name, _label(name))
        items.append(_Item(label=label, parent=parent, parts=[zipped]))
    if not items:
        raise SourceError(f"{folder}: {_describe_nothing(folder, listing)}")
    return items


def _describe_nothing(folder: PathOrUrl, listing: Listing) -> str:
    """Describe a folder without zips and images, and the remedy."""
    if listing.refused:
        example = listing.refused[0]
        links = sum(entry.reason.startswith("is a link") for entry in listing.refused)
        if links:
            return (
                f"nothing but links ({links}), which are not followed; expected images or zips; "
                "pass the folders that they point to"
            )
        return (
            f"none of its {len(listing.refused)} files can be taken ({example.member}: "
            f"{example.reason}); rename them"
        )
    largest = sorted(listing.files, key=lambda file: -file[1])[:_PROBED_FILES]
    for name, _, _ in largest:
        foreign = recognise(read_head(folder, name, 512), zip_expected=True)
        if foreign:
            return f"no zips or images, but {decode(name)}, {foreign.kind}; {foreign.remedy}"
    return "a folder without zips or images; expected some, at any depth"


def _prefixes(items: Sequence[_Item]) -> list[str]:
    """Return the prefix of each item's names: unique for each tree, empty for a single tree."""
    trees = _trees(items)
    prefixes = [""] * len(items)
    if len(trees) == 1:
        return prefixes
    repeated = Counter(label for label, _ in trees)
    used: Counter[str] = Counter()
    for label, members in trees:
        parent = items[members[0]].parent
        if repeated[label] > 1 and parent:
            label = f"{parent}/{label}"
        used[label] += 1
        number = f"~{used[label]}" if used[label] > 1 else ""
        for member in members:
            prefixes[member] = f"{label}{number}/" if label else ""
    return prefixes


def _trees(items: Sequence[_Item]) -> list[tuple[str, list[int]]]:
    """Return label and item numbers of each tree: of one item, or of the parts of one download.

    Items are parts of one download if their names say so, no path stands in two of them, and a
    folder is spread over them (in names of Google Drive a time stamp says so).
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, item in enumerate(items):
        folder, _, base = item.label.rpartition("/")
        match = _NUMBERED_PART.fullmatch(base)
        if match and len(item.parts) == 1 and not _BACKGROUND_STEM.search(match["stem"]):
            key = f"{folder}/{match['stem']}".strip("/"), item.parent
            groups.setdefault(key, []).append(number)
    trees = {number: (item.label, [number]) for number, item in enumerate(items)}
    for (label, _), members in groups.items():
        stamped = all(_STAMP.search(items[member].label) for member in members)
        entries = [items[member].parts[0].entries for member in members]
        if len(members) > 1 and are_one_tree(entries, spread=stamped):
            trees[members[0]] = (label, members)
            for member in members[1:]:
                del trees[member]
    return list(trees.values())


def _label(name: str) -> str:
    return decode(clean_name(os.fsencode(name)))


def _parent(path: PathOrUrl) -> str:
    return path.absolute().parent.name if isinstance(path, Path) else ""


def _check_unique(paths: Sequence[PathOrUrl]) -> None:
    resolved = set()
    for path in paths:
        where = str(path.resolve() if isinstance(path, Path) else path)
        if where in resolved:
            raise SourceError(f"{path}: named twice; expected each source once; name it once")
        resolved.add(where)
