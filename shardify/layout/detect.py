"""Detect the layout of a source: its samples, their roles, backgrounds and splits.

Takes names and returns a ``Layout``; the order of the names does not matter. If names leave a
doubt, pixels are read through the ``read`` callable. Files are never paired by position. A source
that neither names nor pixels decide is refused with ``LayoutError``.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError, ShardifyError
from shardify.layout import background_rules, filenames, layout_file, roles
from shardify.layout.background_match import BackgroundMatch, match_backgrounds
from shardify.layout.csv_map import Row, join_by_map, parse_rows
from shardify.layout.filenames import IntArray, unique_keys
from shardify.layout.name_groups import NameGroups, group_names, indexes_by_role
from shardify.layout.name_patterns import UNGROUPED, NamePatterns
from shardify.layout.roles import Refused
from shardify.layout.sample_table import SampleTable
from shardify.layout.thumbnails import ReadFile
from shardify.sources.entry_names import common_folders

_MAX_MAPS = 8
"""Number of text files that are read in search of a map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinedFiles:
    """Files joined into samples, without their backgrounds."""

    table: SampleTable
    backgrounds: list[int]
    """Indexes of the background files, sorted by name."""
    evidence: dict[str, object]
    """role -> what decided it."""
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


def _join_by_names(
    names: Sequence[str], where: str, read: ReadFile | None, refused: Refused
) -> _JoinedFiles:
    """Join files by their names, or by a map if names join too few; arguments as for ``detect``."""
    name_groups = group_names(names)
    assigned = roles.assign_roles(name_groups, where, read, refused)
    role_of_group, table = assigned.roles, assigned.table
    read_maps = functools.partial(_read_maps, name_groups, read)
    files = indexes_by_role(name_groups, role_of_group)
    backgrounds = files.pop("bg", np.zeros(0, np.int32)).tolist()
    if table.complete_count * 2 < max(map(len, files.values())) and name_groups.map_files:
        mapped = join_by_map(names, files, backgrounds, read_maps(), where=where)
        if mapped and mapped.complete_count > table.complete_count:
            table = mapped
    return _JoinedFiles(
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


def _join_by_layout_file(
    names: Sequence[str], where: str, layout: layout_file.Rules, read: ReadFile | None
) -> _JoinedFiles:
    """Join files by a layout file; arguments as for ``detect``."""
    read_maps = functools.partial(layout_file.map_rows, layout, names, read)
    matched = layout_file.apply(layout, names, read_maps, where=where)
    used = [*matched.backgrounds]
    for column in matched.table.members.values():
        used += column[column >= 0].tolist()
    has_backgrounds = layout.background["rule"] != "none"
    return _JoinedFiles(
        table=matched.table,
        backgrounds=sorted(matched.backgrounds, key=names.__getitem__) if has_backgrounds else [],
        evidence={
            role: {"patterns": [pattern.pattern for pattern in patterns]}
            for role, patterns in layout.patterns.items()
        },
        ignored={"no pattern matches": matched.unmatched} if matched.unmatched else {},
        # Same rule as in detection, so that the keys are the same.
        shared_folders=common_folders([names[index].rpartition("/")[0] for index in used]),
        read_maps=read_maps,
        unknown_images=[],
        map=layout.map,
    )


def _read_maps(name_groups: NameGroups, read: ReadFile | None) -> list[Row]:
    """Return the rows of all files that may be maps."""
    if read is None:
        return []
    rows: list[Row] = []
    for index in sorted(name_groups.map_files, key=name_groups.names.__getitem__)[:_MAX_MAPS]:
        try:
            data = read(index)
        except ShardifyError:
            continue
        rows += parse_rows(data, name_groups.names[index])
    return rows


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Rejection:
    """A sample that is left out, and the reason; sorted by key."""

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
    read: ReadFile | None = None,
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
        joined = _join_by_names(names, where, read, refused)
    else:
        joined = _join_by_layout_file(names, where, layout, read)
    backgrounds = joined.backgrounds
    if single is not None and backgrounds:
        backgrounds = single(backgrounds)
        if repeats := len(joined.backgrounds) - len(backgrounds):
            joined.ignored["backgrounds that another part repeats"] = repeats
    table = joined.table
    samples = _complete_samples(names, joined, where)
    samples.split, kept = _split_from_source(names, samples.composites, layout, joined.patterns)
    if not kept.all():
        joined.ignored["samples of a test split"] = int((~kept).sum())
        samples.select(kept)
    if joined.patterns is not None:
        samples.slots = background_rules.number_slots(
            joined.patterns, samples.composites, joined.shared_folders
        )
    elif layout is not None:
        samples.slots = layout_file.number_groups(layout, names, samples.composites)
    if layout is None and not backgrounds and "bg" in samples.slots and joined.unknown_images:
        raise LayoutError(
            f"{where}: samples name a background (such as {int(samples.slots['bg'][0])}), but no "
            f"folder is named for backgrounds; expected bg or background; if "
            f"{joined.unknown_images[0]} are meant, pass --layout"
        )
    description: dict[str, object] = {"join": table.rule, "roles": joined.evidence}
    if roles.VALIDITY_MASKS in joined.ignored:
        description["validity"] = "ignored: a depth counts where none was measured, too"
    warnings = [*table.warnings, *joined.warnings]
    rejected, unused = _rejections(names, table, joined.ignored)
    background = np.full(len(samples.keys), -1, np.int32)
    ids: list[str] = []
    used = np.zeros(0, np.int32)
    pending: Iterator[None] | None = None
    if backgrounds:
        composites = samples.composites
        match = match_backgrounds(
            background_rules.BackgroundQuery(
                names=names,
                files=backgrounds,
                members=samples.members,
                slots=samples.slots,
                shared_folders=joined.shared_folders,
                read_maps=joined.read_maps,
                united=table.united,
                where=where,
            ),
            layout,
            read,
            defer=defer,
            check=check,
        )
        rejected += [
            Rejection(
                key=samples.keys[row], member=names[int(composites[row])], role="bg", reason=reason
            )
            for row, reason in match.missing.items()
        ]
        has_background = match.background_index >= 0
        samples.select(has_background)
        numbers, inverse = np.unique(match.background_index[has_background], return_inverse=True)
        used = np.array(backgrounds, np.int32)[numbers]
        ids = unique_keys(names, used, joined.shared_folders)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        background = np.argsort(order).astype(np.int32)[inverse]
        ids, used = [ids[place] for place in order], used[order]
        warnings += match.warnings
        file_counts = {"files": len(backgrounds), "used": len(ids)}
        description["background"] = {**match.description, **file_counts}
        if match.proof is not None:
            pending = _finish_proof(match.proof, description, file_counts)
        settings = match.description["settings"]
        if isinstance(settings, dict) and settings["rule"] == "map":
            description["map"] = joined.map
    if table.rule == "rows of a map":
        description["map"] = joined.map
    if samples.split is not None:
        description["splits"] = "given by the source's folders"
    if unused:
        counts = Counter(rejection.role for rejection in unused)
        files = " and ".join(f"{count} {role} files" for role, count in sorted(counts.items()))
        warnings.append(
            f"{files} belong to no composite (such as {unused[0].member}): not used; they are "
            f"listed in rejected.jsonl"
        )
    description["ignored"] = joined.ignored
    if joined.unused:
        description["unused"] = joined.unused
    if warnings:
        description["warnings"] = warnings
    masks = set(samples.members["mask"].tolist()) if table.united else set()
    united = {first: others for first, others in table.united.items() if first in masks}
    if united:
        description["united"] = f"{len(united)} samples have several masks: their union"
    return Layout(
        roles=("bg", *samples.members) if backgrounds else tuple(samples.members),
        keys=samples.keys,
        members=samples.members,
        background=background,
        background_ids=ids,
        background_members=used,
        foreground=samples.slots.get("fg"),
        split=samples.split,
        rejected=sorted(rejected),
        unused=unused,
        united=united,
        description=description,
        pending=pending,
    )


@dataclass(kw_only=True, slots=True)
class _Samples:
    """The samples so far, sorted by key."""

    keys: list[str]
    members: dict[str, IntArray]
    split: IntArray | None = None
    slots: dict[str, IntArray] = field(default_factory=dict)
    """Numbers of the samples; see ``background_rules.number_slots``."""

    @property
    def composites(self) -> IntArray:
        """(N,) int32, index of each sample's composite."""
        return self.members["fg_bg"]

    def select(self, kept: npt.NDArray[np.bool_]) -> None:
        """Keep some of the samples."""
        if not kept.all():
            self.keys = list(itertools.compress(self.keys, kept.tolist()))
            self.members = {role: column[kept] for role, column in self.members.items()}
            self.slots = {slot: values[kept] for slot, values in self.slots.items()}
            self.split = self.split[kept] if self.split is not None else None


def _complete_samples(names: Sequence[str], joined: _JoinedFiles, where: str) -> _Samples:
    complete = np.flatnonzero(joined.table.is_complete)
    if not complete.size:
        raise LayoutError(_no_samples_message(names, joined.table, where))
    keys = unique_keys(names, joined.table.members["fg_bg"][complete], joined.shared_folders)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = complete[order]
    return _Samples(
        keys=[keys[place] for place in order],
        members={role: column[rows] for role, column in joined.table.members.items()},
    )


def _split_from_source(
    names: Sequence[str],
    composites: IntArray,
    layout: layout_file.Rules | None,
    patterns: NamePatterns | None,
) -> tuple[IntArray | None, npt.NDArray[np.bool_]]:
    """Return the split that the folders, or a layout file's group ``split``, give.

    A ``test`` split is used as ``val`` if there is no ``val``; otherwise its samples are dropped.

    Returns:
        (N,) int32, 0 train and 1 val, or None unless all samples have a split and both occur; (N,)
        bool, which samples to keep.
    """
    codes = {"train": 0, "val": 1, "test": 2, None: 3}
    split = np.full(len(composites), codes[None], np.int32)
    if patterns is not None:
        for outline, rows, group in patterns.groups(composites):
            # Names of one outline differ in digits alone.
            examples = group if outline == UNGROUPED else group[:1]
            folders = [name.rpartition("/")[0] for name in examples]
            split[rows] = [codes[filenames.split_in_path(folder)] for folder in folders]
    elif layout is not None:
        in_group = any("split" in pattern.groupindex for pattern in layout.patterns["fg_bg"])
        split_in_path = functools.cache(filenames.split_in_path)
        for row, index in enumerate(composites.tolist()):
            text = names[index].rpartition("/")[0]
            if in_group:
                text = layout_file.group_text(layout, names[index], "split") or ""
            split[row] = codes[split_in_path(text)]
    kept = np.ones(len(split), np.bool_)
    present = set(np.flatnonzero(np.bincount(split)).tolist())
    if codes[None] in present or not present > {codes["train"]}:
        return None, kept
    if codes["val"] in present:
        return split, split != codes["test"]
    return np.minimum(split, codes["val"]), kept


def _finish_proof(
    proof: Generator[None, None, BackgroundMatch],
    description: dict[str, object],
    counts: dict[str, int],
) -> Iterator[None]:
    """Run a deferred check, and put its result into the description."""
    match = yield from proof
    description["background"] = {**match.description, **counts}


def _no_samples_message(names: Sequence[str], table: SampleTable, where: str) -> str:
    composites = table.members["fg_bg"]
    # Of a row that is whole but for several files in one role, the reason is these.
    for (row, role), indexes in table.claims.items():
        if all(column[row] != -1 for column in table.members.values()):
            first, second, *_ = claimed = sorted(names[index] for index in indexes)
            composite = int(composites[row])
            what = f"the {role} of {names[composite]}" if composite >= 0 else f"one {role}"
            folders = sorted({name.rpartition("/")[0] or "." for name in claimed})
            return (
                f"{where}: {len(claimed)} files claim to be {what}: {first} and {second}, "
                f"and so for {len(table.claims)} samples (in {' and '.join(folders[:2])}); "
                f"expected one for each sample; leave one of them out, or pass --layout"
            )
    columns = [column[column >= 0][:1000].tolist() for column in table.members.values()]
    examples = [min(names[index] for index in indexes) for indexes in columns if indexes]
    return (
        f"{where}: no image has companions of its own name (e.g. {', '.join(examples)}); "
        f"expected names that share their numbers; pass --layout"
    )


def _rejections(
    names: Sequence[str], table: SampleTable, ignored: dict[str, int]
) -> tuple[list[Rejection], list[Rejection]]:
    """Return the incomplete samples, and the files that belong to no composite, sorted.

    Images of a test split without any labels are neither; they are counted in ``ignored``.
    """

    def reject(member: str, role: str, reason: str) -> Rejection:
        key = filenames.safe_key(filenames.file_stem(member))
        return Rejection(key=key, member=member, role=role, reason=reason)

    composites = table.members["fg_bg"]
    claimed_roles: dict[int, str] = {}
    for row, role in table.claims:
        claimed_roles.setdefault(row, role)
    rejected, unused = [], []
    unlabelled = 0
    for row in np.flatnonzero(~table.is_complete).tolist():
        if composites[row] == -1:
            for role, column in table.members.items():
                own = [int(column[row])] if column[row] >= 0 else []
                for index in table.claims.get((row, role), own):
                    unused.append(reject(names[index], role, "unused: belongs to no composite"))
        elif row in claimed_roles:
            role = claimed_roles[row]
            indexes = table.claims[row, role]
            duplicate = f"duplicate: {len(indexes)} files claim to be its {role}"
            member = min(names[index] for index in indexes)
            rejected.append(reject(member, role, table.gaps.get(row) or duplicate))
        else:
            member = names[int(composites[row])]
            missing = [role for role, column in table.members.items() if column[row] < 0]
            unlabelled_row = len(missing) == len(table.members) - 1
            if unlabelled_row and filenames.split_in_path(member.rpartition("/")[0]) == "test":
                unlabelled += 1
            else:
                reason = f"incomplete: no {', no '.join(missing)}"
                rejected.append(reject(member, missing[0], reason))
    if unlabelled:
        ignored["images of a test split without labels"] = unlabelled
    return rejected, sorted(unused)
