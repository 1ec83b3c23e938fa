"""Backgrounds that several parts of a data set bring along, each its own copy.

Equal bytes under an equal name are one background; other bytes under the same name are refused,
with both places. Files of one zip or folder are never compared with each other.
"""

from collections.abc import Callable, Sequence

from shardify.errors import EntryError, LayoutError
from shardify.sources.catalog import Catalog
from shardify.sources.entry_names import common_folders, decode

__all__ = ["without_repeats"]


def without_repeats(
    catalog: Catalog, files: Sequence[int], read: Callable[[int], bytes], *, where: str
) -> list[int]:
    """The files without those that repeat another part's.

    Args:
        catalog: All entries.
        files: Entries that are backgrounds.
        read: Gives an entry's bytes.
        where: What to call the source in an error.

    Returns:
        One entry of each background, in the order of ``files``: where it is repeated, that with
        the least name.

    Raises:
        LayoutError: Two parts have different backgrounds of one name.
    """
    names = catalog.names
    parts: dict[int, list[int]] = {}
    for file in files:
        parts.setdefault(names.part(file), []).append(file)
    if len(parts) < 2:
        return list(files)
    exact: dict[str, list[int]] = {}
    short: dict[str, list[int]] = {}
    for number in sorted(parts, key=lambda each: names[parts[each][0]]):
        own = [decode(names.raw(file)) for file in parts[number]]
        shared = common_folders(sorted({name.rpartition("/")[0] for name in own}))
        for name, file in zip(own, parts[number], strict=True):
            exact.setdefault(name, []).append(file)
            short.setdefault("/".join(name.split("/")[shared:]), []).append(file)
    dropped: set[int] = set()
    for groups, strict in ((exact, True), (short, False)):
        for name, group in groups.items():
            left = sorted({*group} - dropped, key=names.__getitem__)
            for other in left[1:]:
                if _equal(catalog, left[0], other, read):
                    dropped.add(other)
                elif strict:
                    raise LayoutError(
                        f"{where}: two backgrounds named {name} differ: {names[left[0]]} and "
                        f"{names[other]}; expected one, or the same bytes; rename one, or leave "
                        "one part out"
                    )
    return [file for file in files if file not in dropped]


def _equal(catalog: Catalog, one: int, other: int, read: Callable[[int], bytes]) -> bool:
    """Whether two entries have the same bytes. What cannot be read equals nothing."""
    entries = catalog.entries
    if entries.size[one] != entries.size[other]:
        return False
    packed = all(
        not catalog.sources[int(entries.source[each])].path.endswith("/") for each in (one, other)
    )
    if packed and entries.crc[one] != entries.crc[other]:
        return False
    try:
        return read(one) == read(other)
    except EntryError:
        return False
