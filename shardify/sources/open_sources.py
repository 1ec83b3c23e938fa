"""Open the zips, nested zips and folders that the user named as one catalog.

Reads the zips' directories and lists the folders. The result does not depend on the order in which
a folder lists its files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardify.errors import SourceError
from shardify.sources.catalog import Catalog, Source, SourceEntries, join_parts, open_zip
from shardify.sources.folder_listing import Listing, list_folder, without_zip_extension
from shardify.sources.nested_zips import UnpackCache, open_nested_zips
from shardify.storage.paths import PathOrUrl

__all__ = ["MAX_SOURCES", "open_sources"]

MAX_SOURCES = 500
"""Most files and folders open at once in every worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A zip or the files of a folder."""

    label: str
    """Prefix of its names, if there are several items."""
    source: Source
    part: SourceEntries
    parent: str
    """Name of the folder that contains it, to tell equal labels apart."""


def open_sources(paths: Sequence[PathOrUrl], work: UnpackCache) -> Catalog:
    """Open all sources of one data set as one catalog.

    Args:
        paths: Zips, and folders that contain files, zips or both.
        work: Unpacks deflated zips inside a zip.

    Returns:
        The catalog. With several zips or folders, the names of each are prefixed by its own name;
        those of a zip inside another, or in a folder, by its path there.

    Raises:
        SourceError: One is missing, named twice, empty, damaged or hostile.
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
            items.append(_Item(label=path.stem, source=source, part=part, parent=_parent(path)))
    prefixes = _prefixes(items)
    sources: list[Source] = []
    parts: list[tuple[int, str, SourceEntries]] = []
    for item, prefix in zip(items, prefixes, strict=True):
        number = len(sources)
        sources.append(item.source)
        if item.source.path.endswith("/"):
            parts.append((number, prefix, item.part))
            continue
        outer, inner = open_nested_zips(item.source, item.part, work)
        parts.append((number, prefix, outer))
        for each in inner:
            inner_number = number
            if each.source is not None:
                inner_number = len(sources)
                sources.append(each.source)
            parts.append((inner_number, f"{prefix}{each.name}/", each.part))
    where = ", ".join(map(str, paths))
    if len(sources) > MAX_SOURCES:
        raise SourceError(
            f"{where}: {len(sources)} zips; at most {MAX_SOURCES} are read at once; unpack them "
            "into a folder, and pass that"
        )
    return join_parts(sources, parts, where=where)


def _open_folder(folder: PathOrUrl, *, alone: bool) -> list[_Item]:
    """Open a folder's own files, and the zips in it."""
    listing = list_folder(folder)
    parent = _parent(folder)
    own = listing.source()
    prefix = "" if alone else own.name
    items = []
    if listing.has_images_or_maps:
        items.append(_Item(label=prefix, source=own, part=listing.part(), parent=parent))
    for name in listing.zips:
        source, part = open_zip(folder / name)
        label = "/".join(filter(None, (prefix, without_zip_extension(name))))
        items.append(
            _Item(label=label, source=replace(source, name=name), part=part, parent=parent)
        )
    if not items:
        raise SourceError(_empty_message(folder, listing))
    return items


def _empty_message(folder: PathOrUrl, listing: Listing) -> str:
    links = sum(each.reason.startswith("is a link") for each in listing.refused)
    if links:
        return (
            f"{folder}: nothing but links ({links}), which are not followed; expected images or "
            "zips; pass the folders that they point to"
        )
    return f"{folder}: a folder without zips or images; expected some, at any depth"


def _prefixes(items: Sequence[_Item]) -> list[str]:
    """Return the unique prefix of each item's names: empty for a single item."""
    if len(items) == 1:
        return [""]
    labels = [item.label for item in items]
    repeated = {label for label, count in Counter(labels).items() if count > 1}
    labels = [
        f"{item.parent}/{label}" if label in repeated and item.parent else label
        for item, label in zip(items, labels, strict=True)
    ]
    seen: Counter[str] = Counter()
    prefixes = []
    for label in labels:
        seen[label] += 1
        number = f"~{seen[label]}" if seen[label] > 1 else ""
        prefixes.append(f"{label}{number}/" if label else "")
    return prefixes


def _parent(path: PathOrUrl) -> str:
    return path.absolute().parent.name if isinstance(path, Path) else ""


def _check_unique(paths: Sequence[PathOrUrl]) -> None:
    seen = set()
    for path in paths:
        where = str(path.resolve() if isinstance(path, Path) else path)
        if where in seen:
            raise SourceError(f"{path}: named twice; expected each source once; name it once")
        seen.add(where)
