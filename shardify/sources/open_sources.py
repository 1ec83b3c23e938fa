"""What the user named, as one catalog: zips, zips in a zip, folders of files, or all of them.

Finds what there is and names it apart; opens zips' directories and lists folders, and reads no
picture. The order in which a folder lists its files is of no account.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardify.errors import SourceError
from shardify.sources.catalog import Catalog, Source, SourceEntries, join_parts, open_zip
from shardify.sources.folder_listing import Listing, list_folder
from shardify.sources.nested_zips import UnpackCache, open_inner
from shardify.storage.paths import PathOrUrl

__all__ = ["MAX_SOURCES", "open_sources"]

MAX_SOURCES = 500
"""Files and folders that are open at once in every worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A zip or the files of a folder."""

    label: str
    """What leads its names, where there are several."""
    source: Source
    part: SourceEntries
    parent: str
    """The folder's name that it lies in, to tell equal labels apart."""


def open_sources(paths: Sequence[PathOrUrl], work: UnpackCache) -> Catalog:
    """Everything that the paths stand for.

    Args:
        paths: Zips, and folders that hold files, zips or both, that together are one data set.
        work: Where deflated zips inside a zip are unpacked.

    Returns:
        The catalog. With several zips or folders, each one's names are led by its own name; a zip
        inside another, or in a folder, by its path there.

    Raises:
        SourceError: One is missing, named twice, empty, damaged or hostile.
        StoreError: A store is at fault.
        OSError: The disk has no room for what must be unpacked.
    """
    _check_twice(paths)
    items: list[_Item] = []
    for path in paths:
        if path.is_dir():
            items += _of_folder(path, alone=len(paths) == 1)
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
        outer, inner = open_inner(item.source, item.part, work)
        parts.append((number, prefix, outer))
        for each in inner:
            at = number
            if each.source is not None:
                at = len(sources)
                sources.append(each.source)
            parts.append((at, f"{prefix}{each.name}/", each.part))
    where = ", ".join(map(str, paths))
    if len(sources) > MAX_SOURCES:
        raise SourceError(
            f"{where}: {len(sources)} zips; at most {MAX_SOURCES} are read at once; unpack them "
            "into a folder, and pass that"
        )
    return join_parts(sources, parts, where=where)


def _of_folder(folder: PathOrUrl, *, alone: bool) -> list[_Item]:
    """A folder's own files, and the zips in it."""
    found = list_folder(folder)
    lead = "" if alone else found.source().name
    items = []
    for name in found.zips:
        source, part = open_zip(folder / name)
        named = _renamed(source, name)
        label = "/".join(filter(None, (lead, name[:-4] if name.lower().endswith(".zip") else name)))
        items.append(_Item(label=label, source=named, part=part, parent=_parent(folder)))
    if found.useful:
        source = found.source()
        items.insert(0, _Item(label=lead, source=source, part=found.part(), parent=_parent(folder)))
    if not items:
        raise SourceError(_nothing(folder, found))
    return items


def _renamed(source: Source, name: str) -> Source:
    """The source under its path in the folder."""
    return Source(
        path=source.path,
        name=name,
        bytes=source.bytes,
        entries=source.entries,
        digest=source.digest,
    )


def _nothing(folder: PathOrUrl, found: Listing) -> str:
    links = sum(each.reason.startswith("is a link") for each in found.refused)
    if links:
        return (
            f"{folder}: nothing but links ({links}), which are not followed; expected images or "
            "zips; pass the folders that they point to"
        )
    return f"{folder}: a folder without zips or images; expected some, at any depth"


def _prefixes(items: Sequence[_Item]) -> list[str]:
    """What leads the names of each item: nothing where there is one item alone."""
    if len(items) == 1:
        return [""]
    labels = [item.label for item in items]
    twice = {label for label, count in Counter(labels).items() if count > 1}
    labels = [
        f"{item.parent}/{label}" if label in twice and item.parent else label
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


def _check_twice(paths: Sequence[PathOrUrl]) -> None:
    seen = set()
    for path in paths:
        where = str(path.resolve() if isinstance(path, Path) else path)
        if where in seen:
            raise SourceError(f"{path}: named twice; expected each source once; name it once")
        seen.add(where)
