"""Drop duplicate backgrounds: several parts of a data set may each carry their own copy.

Equal bytes under an equal name are one background; different bytes under the same name are an
error that names both. Files of one zip or folder are never compared with each other.
"""

from collections.abc import Callable, Sequence

from shardify.errors import EntryError, LayoutError
from shardify.sources.catalog import Catalog
from shardify.sources.entry_names import common_folders


def drop_duplicates(
    catalog: Catalog, files: Sequence[int], read: Callable[[int], bytes], *, where: str
) -> list[int]:
    """Return the files without those that duplicate a file of another part.

    Args:
        catalog: All entries.
        files: Entry numbers of the backgrounds.
        read: Returns an entry's bytes.
        where: Name of the source in an error.

    Returns:
        One entry of each background, in the order of ``files``; of duplicates, the one whose name
        sorts first.

    Raises:
        LayoutError: Two parts have different backgrounds of the same name.
    """
    names = catalog.names
    parts: dict[int, list[int]] = {}
    for file in files:
        parts.setdefault(names.part(file), []).append(file)
    if len(parts) < 2:
        return list(files)
    by_path: dict[str, list[int]] = {}
    by_short_path: dict[str, list[int]] = {}  # Without the folders that a part's files share.
    for number in sorted(parts, key=lambda part: names[parts[part][0]]):
        own = [names.inner(file) for file in parts[number]]
        shared = common_folders(sorted({name.rpartition("/")[0] for name in own}))
        for name, file in zip(own, parts[number], strict=True):
            by_path.setdefault(name, []).append(file)
            by_short_path.setdefault("/".join(name.split("/")[shared:]), []).append(file)
    dropped: set[int] = set()
    for groups, strict in ((by_path, True), (by_short_path, False)):
        for name, group in groups.items():
            kept, *others = sorted({*group} - dropped, key=names.__getitem__)
            for other in others:
                if _equal(catalog, kept, other, read):
                    dropped.add(other)
                elif strict:
                    raise LayoutError(
                        f"{where}: two backgrounds named {name} differ: {names[kept]} and "
                        f"{names[other]}; expected one, or the same bytes; rename one, or leave "
                        "one part out"
                    )
    return [file for file in files if file not in dropped]


def _equal(catalog: Catalog, one: int, other: int, read: Callable[[int], bytes]) -> bool:
    """Whether two entries have the same bytes. An unreadable entry equals no other."""
    entries, pair = catalog.entries, [one, other]
    in_folder = any(catalog.sources[source].is_folder for source in entries.source[pair].tolist())
    for column in (entries.size,) if in_folder else (entries.size, entries.crc):
        if column[one] != column[other]:
            return False
    try:
        return read(one) == read(other)
    except EntryError:
        return False
