"""Detect the layout of a source: its samples, their roles, backgrounds and splits.

Takes names and returns a ``Layout``; the order of the names does not matter. If names leave a
doubt, pixels are read through the ``read`` callable. Files are never paired by position. A source
that neither names nor pixels decide is refused with ``LayoutError``.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError, ShardifyError
from shardify.layout import background_match, background_rules, filenames, layout_file, roles
from shardify.layout.background_rules import BackgroundQuery
from shardify.layout.csv_map import Row, join_by_map, parse_rows
from shardify.layout.filenames import unique_keys
from shardify.layout.name_groups import NameGroups, group_names, indexes_by_role
from shardify.layout.name_patterns import UNGROUPED, NamePatterns
from shardify.layout.sample_table import SampleTable
from shardify.layout.unread_files import Refused
from shardify.sources.entry_names import common_folders

IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

_MAX_MAPS = 8
"""Number of text files that are read in search of a map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedFiles:
    """Files joined into samples, without their backgrounds."""

    table: SampleTable
    backgrounds: list[int]
    """Indexes of the background files, sorted by name."""
    evidence: dict[str, object]
    """role -> what decided it; can be written as JSON."""
    ignored: dict[str, int]
    """Kind of unused file -> count."""
    shared_folders: int
    """Number of leading folders that all images share."""
    read_maps: Callable[[], list[Row]]
    """Returns the rows of the maps."""
    unknown_images: list[str]
    """Images without a role; see ``roles.Assignment``."""
    map: str | None
    """Name of the map, if there is one."""
    patterns: NamePatterns | None = None
    """Patterns of the names; None with a layout file."""
    unused: dict[str, int] = field(default_factory=dict)
    """Folders and extensions of images without a role -> number of files; the largest."""
    warnings: Sequence[str] = ()


def join_by_names(
    names: Sequence[str], where: str, read: Read | None, refused: Refused = ()
) -> JoinedFiles:
    """Join files by their names, or by a map if names join too few.

    Args:
        names: All names of the source.
        where: Name of the source in errors.
        read: Returns the bytes of the file with an index; without it no map is read.
        refused: Name and reason of each entry that is not among the names.

    Raises:
        LayoutError: There is no image, a needed role is missing, the files of a role cannot be
            read, or a map contradicts itself.
    """
    name_groups = group_names(names)
    assigned = roles.assign_roles(name_groups, where, read, refused)
    role_of_group, table = assigned.roles, assigned.table

    def read_maps() -> list[Row]:
        return _read_maps(name_groups, read)

    files = indexes_by_role(name_groups, role_of_group)
    backgrounds = files.pop("bg", np.zeros(0, np.int32)).tolist()
    if table.complete_count * 2 < max(map(len, files.values())) and name_groups.map_files:
        mapped = join_by_map(names, files, backgrounds, read_maps(), where=where)
        if mapped and mapped.complete_count > table.complete_count:
            table = mapped
    return JoinedFiles(
        table=table,
        backgrounds=sorted(backgrounds, key=names.__getitem__),
        evidence=assigned.evidence,
        ignored=roles.count_ignored(name_groups, role_of_group),
        shared_folders=name_groups.shared_folders,
        read_maps=read_maps,
        unknown_images=assigned.unknown_images,
        map=min((names[index] for index in name_groups.map_files), default=None),
        patterns=name_groups.patterns,
        unused=roles.list_unused(name_groups, role_of_group),
        warnings=roles.role_warnings(name_groups, role_of_group),
    )


def join_by_layout_file(
    names: Sequence[str], where: str, layout: layout_file.Rules, read: Read | None
) -> JoinedFiles:
    """Join files by a layout file. Arguments as for ``join_by_names``.

    Raises:
        LayoutError: The rules match nothing, or the map is missing or contradicts itself.
    """

    def read_maps() -> list[Row]:
        return layout_file.map_rows(layout, names, read)

    matched = layout_file.apply(layout, names, read_maps, where=where)
    used = [index for column in matched.table.members.values() for index in column.tolist()]
    paths = [names[index] for index in (*used, *matched.backgrounds) if index >= 0]
    wanted = layout.background["rule"] != "none"
    return JoinedFiles(
        table=matched.table,
        backgrounds=sorted(matched.backgrounds, key=names.__getitem__) if wanted else [],
        evidence={
            role: {"patterns": [each.pattern for each in patterns]}
            for role, patterns in layout.patterns.items()
        },
        ignored={"no pattern matches": matched.unmatched} if matched.unmatched else {},
        # Same rule as in detection, so that the keys are the same.
        shared_folders=common_folders([path.rpartition("/")[0] for path in paths]),
        read_maps=read_maps,
        unknown_images=[],
        map=layout.map,
    )


def _read_maps(name_groups: NameGroups, read: Read | None) -> list[Row]:
    """Return the rows of all files that may be maps."""
    rows: list[Row] = []
    for index in (
        sorted(name_groups.map_files, key=name_groups.names.__getitem__)[:_MAX_MAPS] if read else ()
    ):
        try:
            data = read(index) if read else b""
        except ShardifyError:
            continue
        rows += parse_rows(data, name_groups.names[index])
    return rows


def split_from_source(
    names: Sequence[str],
    members: IntArray,
    layout: layout_file.Rules | None,
    patterns: NamePatterns | None = None,
) -> tuple[IntArray | None, npt.NDArray[np.bool_], int]:
    """Return the train and validation split that the source's folders or a layout file give.

    A ``test`` split is used as ``val`` if there is no ``val``; otherwise its samples are dropped.

    Args:
        names: All names of the source.
        members: (N,) int32, index of each sample's composite.
        layout: A layout file's rules; its group ``split``, if any, takes the place of folders.
        patterns: Patterns of the names, if known; faster with them.

    Returns:
        (N,) int32, 0 train and 1 val, or None unless all samples have a split and both occur; (N,)
        bool, which samples to keep; the number of dropped samples.
    """
    known: dict[str, str | None] = {}
    codes_by_sample = np.zeros(len(members), np.int32)
    codes = {"train": 0, "val": 1, "test": 2, None: 3}
    if patterns is not None and layout is None:
        for outline, rows, group in patterns.groups(members):
            paths = [
                name.rpartition("/")[0] for name in group[: 1 if outline != UNGROUPED else None]
            ]
            codes_by_sample[rows] = [codes[filenames.split_in_path(path)] for path in paths]
        members = members[:0]
    for row, index in enumerate(members.tolist()):
        path = names[index].rpartition("/")[0]
        if layout is not None and any(
            "split" in pattern.groupindex for pattern in layout.patterns["fg_bg"]
        ):
            path = layout_file.group_text(layout, names[index], "split") or ""
        if path not in known:
            known[path] = filenames.split_in_path(path)
        codes_by_sample[row] = codes[known[path]]
    kept = np.ones(len(codes_by_sample), np.bool_)
    has = set(np.flatnonzero(np.bincount(codes_by_sample)).tolist())
    if 3 in has or 0 not in has or len(has) < 2:
        return None, kept, 0
    if 1 in has:
        kept = codes_by_sample != 2
        return codes_by_sample, kept, int((~kept).sum())
    return np.minimum(codes_by_sample, 1), kept, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A sample that is left out, and the reason."""

    key: str
    """Key that the sample would have had."""

    member: str
    """Name of one of its files."""

    role: str
    """Role of the file that is missing or at fault."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Complete samples of a source, their backgrounds, and what was left out."""

    roles: tuple[str, ...]
    """Roles that the source has, in the order of ``filenames.ROLES``."""

    keys: list[str]
    """N keys: ASCII letters, digits, ``_`` and ``-``; unique; sorted."""

    members: dict[str, IntArray]
    """role -> (N,) int32, index into the names; no sample lacks a file."""

    background: IntArray
    """(N,) int32, index into ``background_ids``; -1 without a ``bg`` role."""

    background_ids: list[str]
    """Keys of the backgrounds that samples use, sorted."""

    background_members: IntArray
    """(len(background_ids),) int32, index into the names."""

    foreground: IntArray | None
    """(N,) int32, number of the foreground; None unless all names have one."""

    split: IntArray | None
    """(N,) int32, 0 train and 1 val, if the source gives a split; else None."""

    rejected: list[Rejection]
    """Incomplete samples, and samples whose background does not exist; sorted by key."""

    unused: list[Rejection]
    """Masks and depth maps that belong to no composite; sorted by key. They are no samples."""

    united: dict[int, list[int]]
    """Index of a mask -> indexes of further masks of its sample: the object is their union."""

    description: dict[str, object]
    """What was detected and why; can be written as JSON."""

    pending: Iterator[None] | None = None
    """Remaining steps of the check by pixels, if it was deferred. Run them before the layout is
    used: they raise LayoutError if pixels contradict it, and complete the description."""


def detect(
    names: Sequence[str],
    *,
    where: str,
    read: Read | None = None,
    layout: layout_file.Rules | None = None,
    single: Callable[[list[int]], list[int]] | None = None,
    defer: bool = False,
    check: bool = True,
    refused: Refused = (),
) -> Layout:
    """Find the samples among the names of a source.

    Args:
        names: All paths of the source, with ``/`` between folders, in any order.
        where: Name of the source in errors.
        read: Returns the bytes of the file with an index, or raises ``ShardifyError``. Without it
            nothing is checked, and a source that only pixels can decide is refused.
        layout: A layout file's rules, used in place of detection.
        single: Returns the backgrounds' indexes without duplicates.
        defer: Whether the check of stated backgrounds may be returned as ``Layout.pending``.
        check: Whether backgrounds are checked by pixels.
        refused: Name and reason of each entry of the source that is not among the names.

    Raises:
        LayoutError: There is no image, a needed role is missing or cannot be read, no files belong
            together, or names and pixels do not decide the backgrounds or contradict each other.
    """
    if layout is None:
        joined = join_by_names(names, where, read, refused)
    else:
        joined = join_by_layout_file(names, where, layout, read)
    if single is not None and joined.backgrounds:
        unique = single(joined.backgrounds)
        if len(unique) < len(joined.backgrounds):
            repeats = len(joined.backgrounds) - len(unique)
            joined.ignored["backgrounds that another part repeats"] = repeats
            joined = dataclasses.replace(joined, backgrounds=unique)
    complete = np.flatnonzero(joined.table.is_complete)
    if not complete.size:
        raise LayoutError(_no_samples_message(names, joined.table, where))
    keys = unique_keys(names, joined.table.members["fg_bg"][complete], joined.shared_folders)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = complete[order]
    keys = [keys[place] for place in order]
    members = {role: column[rows] for role, column in joined.table.members.items()}
    split, kept, tests = split_from_source(names, members["fg_bg"], layout, joined.patterns)
    if tests:
        joined.ignored["samples of a test split"] = tests
    if not kept.all():
        keys = [key for key, keep in zip(keys, kept.tolist(), strict=True) if keep]
        members = {role: column[kept] for role, column in members.items()}
        split = split[kept] if split is not None else None
    if joined.patterns is not None:
        slots = background_rules.number_slots(
            joined.patterns, members["fg_bg"], joined.shared_folders
        )
    elif layout is not None:
        slots = layout_file.number_groups(layout, names, members["fg_bg"])
    description: dict[str, object] = {"join": joined.table.rule, "roles": joined.evidence}
    if roles.VALIDITY_MASKS in joined.ignored:
        description["validity"] = "ignored: a depth counts where none was measured, too"
    present = list(members)
    background = np.full(len(keys), -1, np.int32)
    ids: list[str] = []
    used = np.zeros(0, np.int32)
    pending: Iterator[None] | None = None
    warnings = [*joined.table.warnings, *joined.warnings]
    absent: list[Rejection] = []
    if layout is None and not joined.backgrounds and "bg" in slots and joined.unknown_images:
        raise LayoutError(
            f"{where}: samples name a background (such as {int(slots['bg'][0])}), but no folder is "
            f"named for backgrounds; expected bg or background; if {joined.unknown_images[0]} "
            f"are meant, pass --layout"
        )
    if joined.backgrounds:
        present = ["bg", *present]
        decided = background_match.match_backgrounds(
            BackgroundQuery(
                names=names,
                files=joined.backgrounds,
                members=members,
                slots=slots,
                runs=lambda: {} if layout else background_rules.digit_runs(names, members["fg_bg"]),
                shared_folders=joined.shared_folders,
                read_maps=joined.read_maps,
                united=joined.table.united,
                where=where,
            ),
            layout,
            read,
            defer=defer,
            check=check,
        )
        there = decided.background_index >= 0
        if missing := decided.missing:
            at = {row: names[int(members["fg_bg"][row])] for row in missing}
            absent = [
                Rejection(key=keys[row], member=at[row], role="bg", reason=reason)
                for row, reason in missing.items()
            ]
            keys = [key for row, key in enumerate(keys) if row not in missing]
            members = {role: column[there] for role, column in members.items()}
            slots = {slot: values[there] for slot, values in slots.items()}
            split = split[there] if split is not None else None
        numbers, row = np.unique(decided.background_index[there], return_inverse=True)
        used = np.array(joined.backgrounds, np.int32)[numbers]
        ids = unique_keys(names, used, joined.shared_folders)
        by_id = sorted(range(len(ids)), key=ids.__getitem__)
        background = np.argsort(by_id).astype(np.int32)[row]
        warnings += decided.warnings
        ids, used = [ids[place] for place in by_id], used[by_id]
        counts: dict[str, object] = {"files": len(joined.backgrounds), "used": len(ids)}
        description["background"] = {**decided.description, **counts}
        if decided.proof is not None:
            pending = _finish_proof(decided.proof, description, counts)
        settings = decided.description["settings"]
        if isinstance(settings, dict) and settings["rule"] == "map":
            description["map"] = joined.map
    if joined.table.rule == "rows of a map":
        description["map"] = joined.map
    if split is not None:
        description["splits"] = "given by the source's folders"
    rejected, unused = _rejections(names, joined.table, joined.ignored)
    unused.sort(key=_by_key)
    if unused:
        warnings.append(_unused_warning(unused))
    description["ignored"] = joined.ignored
    if joined.unused:
        description["unused"] = joined.unused
    if warnings:
        description["warnings"] = warnings
    masks = set(members["mask"].tolist()) if joined.table.united else set()
    united = {first: more for first, more in joined.table.united.items() if first in masks}
    if united:
        description["united"] = f"{len(united)} samples have several masks: their union"
    return Layout(
        roles=tuple(present),
        keys=keys,
        members=members,
        background=background,
        background_ids=ids,
        background_members=used,
        foreground=slots.get("fg"),
        split=split,
        rejected=sorted(rejected + absent, key=_by_key),
        unused=unused,
        united=united,
        description=description,
        pending=pending,
    )


def _finish_proof(
    proof: Generator[None, None, background_match.BackgroundMatch],
    description: dict[str, object],
    counts: dict[str, object],
) -> Iterator[None]:
    """Run a deferred check, and put its result into the description."""
    decided = yield from proof
    description["background"] = {**decided.description, **counts}


def _by_key(rejection: Rejection) -> tuple[str, str]:
    return rejection.key, rejection.member


def _no_samples_message(names: Sequence[str], table: SampleTable, where: str) -> str:
    fronts = table.members["fg_bg"]
    # Of a row that is whole but for several files in one role, the reason is these.
    for (row, role), indexes in table.claims.items():
        others = [column for name, column in table.members.items() if name != role]
        if all(column[row] != -1 for column in others):
            claimed = sorted(names[index] for index in indexes)
            what = f"the {role} of {names[int(fronts[row])]}" if fronts[row] >= 0 else f"one {role}"
            folders = sorted({name.rpartition("/")[0] or "." for name in claimed})
            return (
                f"{where}: {len(claimed)} files claim to be {what}: {claimed[0]} and {claimed[1]}, "
                f"and so for {len(table.claims)} samples (in {' and '.join(folders[:2])}); "
                f"expected one for each sample; leave one of them out, or pass --layout"
            )
    samples = []
    for column in table.members.values():
        place = column[column >= 0]
        if place.size:
            samples.append(min(names[index] for index in place[:1000].tolist()))
    return (
        f"{where}: no image has companions of its own name (e.g. {', '.join(samples)}); "
        f"expected names that share their numbers; pass --layout"
    )


def _unused_warning(unused: Sequence[Rejection]) -> str:
    counts = Counter(each.role for each in unused)
    files = " and ".join(f"{count} {role} files" for role, count in sorted(counts.items()))
    return (
        f"{files} belong to no composite (such as {unused[0].member}): not used; they are listed "
        f"in rejected.jsonl"
    )


def _rejections(
    names: Sequence[str], table: SampleTable, ignored: dict[str, int]
) -> tuple[list[Rejection], list[Rejection]]:
    """Return the incomplete samples, and the files that belong to no composite.

    Images of a test split without any labels are neither.
    """
    claims: dict[int, list[tuple[str, list[int]]]] = {}
    for (row, role), indexes in table.claims.items():
        claims.setdefault(row, []).append((role, indexes))
    columns = list(table.members.items())
    fronts = table.members["fg_bg"]
    rejected, unused, unlabelled = [], [], []
    for row in np.flatnonzero(~table.is_complete).tolist():
        if fronts[row] == -1:
            for role, column in columns:
                several = [each for own, indexes in claims.get(row, ()) if own == role
                           for each in indexes]  # fmt: skip
                for index in several or ([int(column[row])] if column[row] >= 0 else []):
                    key = filenames.safe_key(filenames.file_stem(names[index]))
                    unused.append(
                        Rejection(key=key, member=names[index], role=role, reason=_NO_COMPOSITE)
                    )
            continue
        if row in claims:
            role, indexes = claims[row][0]
            member = min(names[index] for index in indexes)
            reason = table.gaps.get(row) or (
                f"duplicate: {len(indexes)} files claim to be its {role}"
            )
        else:
            missing = [role for role, column in columns if column[row] < 0]
            member, role = names[int(fronts[row])], missing[0]
            reason = "incomplete: no " + ", no ".join(missing)
            if (
                len(missing) == len(columns) - 1
                and filenames.split_in_path(member.rpartition("/")[0]) == "test"
            ):
                unlabelled.append(member)
                continue
        key = filenames.safe_key(filenames.file_stem(member))
        rejected.append(Rejection(key=key, member=member, role=role, reason=reason))
    if unlabelled:
        ignored["images of a test split without labels"] = len(unlabelled)
    return rejected, unused


_NO_COMPOSITE = "unused: belongs to no composite"
