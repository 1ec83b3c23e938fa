"""Which files of a source are one sample, before anything is known of backgrounds.

By names (``roles``, ``joining``), by a map in the source, or by a layout file's rules. Opens no
file but texts that may be maps, through a callable that is passed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shardify.errors import ShardifyError
from shardify.layout import layout_file, roles
from shardify.layout.csv_map import join_by_map
from shardify.layout.maps import Row, rows_of
from shardify.layout.name_groups import Census, indexes_of, take_census
from shardify.layout.outlines import Outlines
from shardify.layout.sample_table import Table
from shardify.sources.entry_names import common_folders

__all__ = ["Companions", "by_names", "by_rules"]

Read = Callable[[int], bytes]

_MAPS = 8
"""Most text files that are looked into for a map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Companions:
    """Companions, before anything is known of backgrounds."""

    table: Table
    backgrounds: list[int]
    told: dict[str, object]
    ignored: dict[str, int]
    shared: int
    maps: Callable[[], list[Row]]
    unknown: list[str]
    """Images that have no role for want of a word; see ``roles.Assignment``."""
    map: str | None
    """Name of the map, if there is one to use."""
    outlines: Outlines | None = None
    """Of the names, where they were sorted by them."""


def by_names(names: Sequence[str], where: str, read: Read | None) -> Companions:
    """Find them by what names say, or by a map where names say too little.

    Args:
        names: Of the source.
        where: What to call it in an error.
        read: Gives the bytes of the file of an index; without it no map is looked into.

    Raises:
        LayoutError: There is no image, a role is missing that is needed, or a map contradicts
            itself.
    """
    census = take_census(names)
    assigned = roles.assign_roles(census, where, read)
    role_of_group, table = assigned.roles, assigned.table

    def maps() -> list[Row]:
        return _maps(census, read)

    files = indexes_of(census, role_of_group)
    backgrounds = files.pop("bg", np.zeros(0, np.int32)).tolist()
    if table.complete * 2 < max(map(len, files.values())) and census.texts:
        mapped = join_by_map(names, files, backgrounds, maps(), where=where)
        if mapped and mapped.complete > table.complete:
            table = mapped
    return Companions(
        table=table,
        backgrounds=sorted(backgrounds, key=names.__getitem__),
        told=assigned.evidence,
        ignored=roles.ignored(census, role_of_group),
        shared=census.shared,
        maps=maps,
        unknown=assigned.unknown,
        map=min((names[index] for index in census.texts), default=None),
        outlines=census.outlines,
    )


def by_rules(
    names: Sequence[str], where: str, layout: layout_file.Rules, read: Read | None
) -> Companions:
    """Find them by a layout file. Arguments as for ``by_names``.

    Raises:
        LayoutError: The rules match nothing, or the map is missing or contradicts itself.
    """

    def maps() -> list[Row]:
        return layout_file.map_rows(layout, names, read)

    applied = layout_file.apply(layout, names, maps, where=where)
    used = [index for column in applied.table.members.values() for index in column.tolist()]
    paths = [names[index] for index in (*used, *applied.backgrounds) if index >= 0]
    wanted = layout.background["rule"] != "none"
    return Companions(
        table=applied.table,
        backgrounds=sorted(applied.backgrounds, key=names.__getitem__) if wanted else [],
        told={
            role: {"patterns": [each.pattern for each in patterns]}
            for role, patterns in layout.patterns.items()
        },
        ignored={"no pattern matches": applied.unmatched} if applied.unmatched else {},
        # As where names are sorted by themselves: keys shall be the same.
        shared=common_folders([path.rpartition("/")[0] for path in paths]),
        maps=maps,
        unknown=[],
        map=layout.map,
    )


def _maps(census: Census, read: Read | None) -> list[Row]:
    """The rows of all files that may be maps."""
    rows: list[Row] = []
    for index in sorted(census.texts, key=census.names.__getitem__)[:_MAPS] if read else ():
        try:
            data = read(index) if read else b""
        except ShardifyError:
            continue
        rows += rows_of(data, census.names[index])
    return rows
