"""From names to samples: which files are one sample, in which role, on which background.

Names in, a ``Layout`` out; the order of the names does not matter. No file is opened here: where
names leave a doubt, payloads come through a callable that is passed in. Nothing is ever paired by
position; what neither names nor pixels can decide is refused with ``LayoutError``.

Which files of a source are one sample, before anything is known of backgrounds.

By names (``roles``, ``joining``), by a map in the source, or by a layout file's rules. Opens no
file but texts that may be maps, through a callable that is passed in.

Splits that a data set brings along: ``train`` and ``val`` folders, or what a layout file names.

Names in, numbers out. Draws nothing: samples without such a word are for others to divide.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError, ShardifyError
from shardify.layout import background_match, background_rules, filenames, layout_file, roles
from shardify.layout.background_rules import BackgroundQuery
from shardify.layout.csv_map import Row, join_by_map, rows_of
from shardify.layout.filenames import unique_keys
from shardify.layout.name_groups import NameGroups, group_names, indexes_of
from shardify.layout.name_patterns import UNGROUPED, NamePatterns
from shardify.layout.sample_table import SampleTable
from shardify.sources.entry_names import common_folders

__all__ = [
    "JoinedFiles",
    "Layout",
    "Rejection",
    "detect",
    "join_by_layout_file",
    "join_by_names",
    "split_from_source",
]


Read = Callable[[int], bytes]

_MAPS = 8
"""Most text files that are looked into for a map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedFiles:
    """Companions, before anything is known of backgrounds."""

    table: SampleTable
    backgrounds: list[int]
    told: dict[str, object]
    ignored: dict[str, int]
    shared: int
    maps: Callable[[], list[Row]]
    unknown: list[str]
    """Images that have no role for want of a word; see ``roles.Assignment``."""
    map: str | None
    """Name of the map, if there is one to use."""
    outlines: NamePatterns | None = None
    """Of the names, where they were sorted by them."""


def join_by_names(names: Sequence[str], where: str, read: Read | None) -> JoinedFiles:
    """Find them by what names say, or by a map where names say too little.

    Args:
        names: Of the source.
        where: What to call it in an error.
        read: Gives the bytes of the file of an index; without it no map is looked into.

    Raises:
        LayoutError: There is no image, a role is missing that is needed, or a map contradicts
            itself.
    """
    census = group_names(names)
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
    return JoinedFiles(
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


def join_by_layout_file(
    names: Sequence[str], where: str, layout: layout_file.Rules, read: Read | None
) -> JoinedFiles:
    """Find them by a layout file. Arguments as for ``join_by_names``.

    Raises:
        LayoutError: The rules match nothing, or the map is missing or contradicts itself.
    """

    def maps() -> list[Row]:
        return layout_file.map_rows(layout, names, read)

    applied = layout_file.apply(layout, names, maps, where=where)
    used = [index for column in applied.table.members.values() for index in column.tolist()]
    paths = [names[index] for index in (*used, *applied.backgrounds) if index >= 0]
    wanted = layout.background["rule"] != "none"
    return JoinedFiles(
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


def _maps(census: NameGroups, read: Read | None) -> list[Row]:
    """The rows of all files that may be maps."""
    rows: list[Row] = []
    for index in sorted(census.texts, key=census.names.__getitem__)[:_MAPS] if read else ():
        try:
            data = read(index) if read else b""
        except ShardifyError:
            continue
        rows += rows_of(data, census.names[index])
    return rows


IntArray = npt.NDArray[np.int32]


def split_from_source(
    names: Sequence[str],
    members: IntArray,
    layout: layout_file.Rules | None,
    outlines: NamePatterns | None = None,
) -> tuple[IntArray | None, npt.NDArray[np.bool_], int]:
    """The source's own split.

    A ``test`` split stands for ``val`` where there is none, and is left aside where there is.

    Args:
        names: Of the source.
        members: (N,) index of each sample's composite.
        layout: A layout file's rules, whose group ``split`` counts if it has one.
        outlines: Of the names, where they are known: then it is quick.

    Returns:
        (N,) int32, 0 train and 1 val, or None where not every sample says so or all say the same;
        (N,) bool, which samples to keep; how many those are that are not kept.
    """
    known: dict[str, str | None] = {}
    said = np.zeros(len(members), np.int32)
    codes = {"train": 0, "val": 1, "test": 2, None: 3}
    if outlines is not None and layout is None:
        for outline, rows, group in outlines.groups(members):
            paths = [
                name.rpartition("/")[0] for name in group[: 1 if outline != UNGROUPED else None]
            ]
            said[rows] = [codes[filenames.split_of(path)] for path in paths]
        members = members[:0]
    for row, index in enumerate(members.tolist()):
        path = names[index].rpartition("/")[0]
        if layout is not None and any(
            "split" in pattern.groupindex for pattern in layout.patterns["fg_bg"]
        ):
            path = layout_file.text_of(layout, names[index], "split") or ""
        if path not in known:
            known[path] = filenames.split_of(path)
        said[row] = codes[known[path]]
    kept = np.ones(len(said), np.bool_)
    has = set(np.flatnonzero(np.bincount(said)).tolist())
    if 3 in has or 0 not in has or len(has) < 2:
        return None, kept, 0
    if 1 in has:
        kept = said != 2
        return said, kept, int((~kept).sum())
    return np.minimum(said, 1), kept, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One sample that is left out, and why."""

    key: str
    """Key the sample would have had."""

    member: str
    """Name of one of its files."""

    role: str
    """Role of the file that is missing or at fault."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a source holds: whole samples, their backgrounds, and what was left out."""

    roles: tuple[str, ...]
    """Those of ``naming.ROLES`` that the source has, in that order."""

    keys: list[str]
    """N keys: ASCII letters, digits, ``_`` and ``-``; unique; sorted."""

    members: dict[str, IntArray]
    """role -> (N,) int32, index into the names; every sample here is whole."""

    background: IntArray
    """(N,) int32, index into ``background_ids``; -1 where there is no ``bg`` role."""

    background_ids: list[str]
    """Sorted. Only backgrounds that some sample uses."""

    background_members: IntArray
    """(len(background_ids),) int32, index into the names."""

    foreground: IntArray | None
    """(N,) int32, the foreground's number, where names tell one for every sample; else None."""

    split: IntArray | None
    """(N,) int32, 0 train and 1 val, where the source itself says so for all; else None."""

    rejected: list[Rejection]
    """Samples that are not whole, or whose background does not exist; sorted by key."""

    description: dict[str, object]
    """What was detected and why; can be written as JSON."""

    pending: Iterator[None] | None = None
    """The steps of the proof by pixels that were deferred: to be gone through before anything is
    believed. They raise LayoutError, and complete the description."""


def detect(
    names: Sequence[str],
    *,
    where: str,
    read: Read | None = None,
    layout: layout_file.Rules | None = None,
    single: Callable[[list[int]], list[int]] | None = None,
    defer: bool = False,
    check: bool = True,
) -> Layout:
    """Find the samples among the names of a source.

    Args:
        names: Paths with ``/`` between folders, in any order, files and litter alike.
        where: What to call the source in an error.
        read: Gives the bytes of the file of an index, raising ``ShardifyError`` where it cannot.
            Without it nothing is proven, and doubts that only pixels settle are refused.
        layout: Rules that take the place of detection.
        single: Drops, from the backgrounds' indexes, those that are there twice.
        defer: Whether the proof of backgrounds that names state may be left for later.
        check: Whether what states the backgrounds is proven by pixels at all.

    Returns:
        The layout; see there.

    Raises:
        LayoutError: There is no image, a role is missing that is needed, nothing belongs
            together, or neither names nor pixels tell the backgrounds; or they contradict.
    """
    if layout is None:
        found = join_by_names(names, where, read)
    else:
        found = join_by_layout_file(names, where, layout, read)
    if single is not None and found.backgrounds:
        once = single(found.backgrounds)
        if len(once) < len(found.backgrounds):
            repeats = len(found.backgrounds) - len(once)
            found.ignored["backgrounds that another part repeats"] = repeats
            found = dataclasses.replace(found, backgrounds=once)
    whole = np.flatnonzero(found.table.whole)
    if not whole.size:
        raise LayoutError(_nothing_fits(names, found.table, where))
    keys = unique_keys(names, found.table.members["fg_bg"][whole], found.shared)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = whole[order]
    keys = [keys[place] for place in order]
    members = {role: column[rows] for role, column in found.table.members.items()}
    split, kept, tests = split_from_source(names, members["fg_bg"], layout, found.outlines)
    if tests:
        found.ignored["samples of a test split"] = tests
    if not kept.all():
        keys = [key for key, keep in zip(keys, kept.tolist(), strict=True) if keep]
        members = {role: column[kept] for role, column in members.items()}
        split = split[kept] if split is not None else None
    if found.outlines is not None:
        slots = background_rules.slots_of(found.outlines, members["fg_bg"], found.shared)
    elif layout is not None:
        slots = layout_file.slots_of(layout, names, members["fg_bg"])
    description: dict[str, object] = {"join": found.table.rule, "roles": found.told}
    if roles.VALIDITY in found.ignored:
        description["validity"] = "ignored: a depth counts where none was measured, too"
    has = list(members)
    background = np.full(len(keys), -1, np.int32)
    ids: list[str] = []
    used = np.zeros(0, np.int32)
    pending: Iterator[None] | None = None
    warnings = [*found.table.warnings]
    absent: list[Rejection] = []
    if layout is None and not found.backgrounds and "bg" in slots and found.unknown:
        raise LayoutError(
            f"{where}: samples name a background (such as {int(slots['bg'][0])}), but no folder is "
            f"named for backgrounds; expected bg or background; if {found.unknown[0]} are meant, "
            f"pass --layout"
        )
    if found.backgrounds:
        has = ["bg", *has]
        decided = background_match.match_backgrounds(
            BackgroundQuery(
                names=names,
                files=found.backgrounds,
                members=members,
                slots=slots,
                runs=lambda: {} if layout else background_rules.runs_of(names, members["fg_bg"]),
                shared=found.shared,
                maps=found.maps,
                where=where,
            ),
            layout,
            read,
            defer=defer,
            check=check,
        )
        there = decided.of_sample >= 0
        if lacking := decided.lacking:
            at = {row: names[int(members["fg_bg"][row])] for row in lacking}
            absent = [
                Rejection(key=keys[row], member=at[row], role="bg", reason=reason)
                for row, reason in lacking.items()
            ]
            keys = [key for row, key in enumerate(keys) if row not in lacking]
            members = {role: column[there] for role, column in members.items()}
            slots = {slot: values[there] for slot, values in slots.items()}
            split = split[there] if split is not None else None
        numbers, row = np.unique(decided.of_sample[there], return_inverse=True)
        used = np.array(found.backgrounds, np.int32)[numbers]
        ids = unique_keys(names, used, found.shared)
        by_id = sorted(range(len(ids)), key=ids.__getitem__)
        background = np.argsort(by_id).astype(np.int32)[row]
        warnings += decided.warnings
        ids, used = [ids[place] for place in by_id], used[by_id]
        counts: dict[str, object] = {"files": len(found.backgrounds), "used": len(ids)}
        description["background"] = {**decided.description, **counts}
        if decided.proof is not None:
            pending = _prove(decided.proof, description, counts)
        settings = decided.description["settings"]
        if isinstance(settings, dict) and settings["rule"] == "map":
            description["map"] = found.map
    if found.table.rule == "rows of a map":
        description["map"] = found.map
    if split is not None:
        description["splits"] = "given by the source's folders"
    description["ignored"] = found.ignored
    if warnings:
        description["warnings"] = warnings
    return Layout(
        roles=tuple(has),
        keys=keys,
        members=members,
        background=background,
        background_ids=ids,
        background_members=used,
        foreground=slots.get("fg"),
        split=split,
        rejected=sorted(
            _rejections(names, found.table, found.ignored) + absent,
            key=lambda rejection: (rejection.key, rejection.member),
        ),
        description=description,
        pending=pending,
    )


def _prove(
    proof: Generator[None, None, background_match.BackgroundMatch],
    description: dict[str, object],
    counts: dict[str, object],
) -> Iterator[None]:
    """Go through a deferred proof, and put what it finds into the description."""
    decided = yield from proof
    description["background"] = {**decided.description, **counts}


def _nothing_fits(names: Sequence[str], table: SampleTable, where: str) -> str:
    samples = []
    for column in table.members.values():
        place = column[column >= 0]
        if place.size:
            samples.append(min(names[index] for index in place[:1000].tolist()))
    return (
        f"{where}: no image has companions of its own name (e.g. {', '.join(samples)}); "
        f"expected names that share their numbers; pass --layout"
    )


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _rejections(
    names: Sequence[str], table: SampleTable, ignored: dict[str, int]
) -> list[Rejection]:
    """One for each row that is not whole, but for a test split that has no labels at all."""
    claims: dict[int, tuple[str, list[int]]] = {}
    for (row, role), indexes in table.claims.items():
        claims.setdefault(row, (role, indexes))
    columns = list(table.members.items())
    rejected, unlabelled = [], []
    for row in np.flatnonzero(~table.whole).tolist():
        if row in claims:
            role, indexes = claims[row]
            member = min(names[index] for index in indexes)
            reason = f"duplicate: {len(indexes)} files claim to be its {role}"
        else:
            there = {role: names[int(column[row])] for role, column in columns if column[row] >= 0}
            role = next(role for role, column in columns if column[row] < 0)
            member = there.get("fg_bg") or next(iter(there.values()))
            reason = "incomplete: no " + ", no ".join(r for r, _ in columns if r not in there)
            if list(there) == ["fg_bg"] and filenames.split_of(member.rpartition("/")[0]) == "test":
                unlabelled.append(member)
                continue
        key = filenames.safe_key(_stem(member))
        rejected.append(Rejection(key=key, member=member, role=role, reason=reason))
    if unlabelled:
        ignored["images of a test split without labels"] = len(unlabelled)
    return rejected
