"""Assign a role to each group of files, all groups together.

The files of each candidate of ``role_candidates`` are joined; the cheapest candidate under which
nearly every sample is complete wins. A few files of each class are read, to compare role words with
pixels. If two candidates are about as good, the source is refused and the error shows both.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.name_groups import NameGroups
from shardify.layout.pixel_kinds import KINDS, kind_of_files
from shardify.layout.role_candidates import Candidate, FileClass, candidates, file_classes
from shardify.layout.sample_table import SampleTable, join_by_name
from shardify.layout.starter_layout import starter_layout
from shardify.layout.unread_files import Refused, claimed_role, unread_message

VALIDITY_MASKS = "validity masks of depth"
"""Key of their count among the ignored files."""

_FILES_PER_CLASS, _FILES_PER_CLASS_IF_UNCLEAR = 3, 12
"""Number of files of a class that are read; and if these do not decide."""

_INCOMPLETE_COST = 6.0
"""Extra cost of an assignment under which no sample is complete."""

_MIN_COST_MARGIN = 0.45
"""The best assignment must be cheaper than any other by more than this."""

_MAX_STRAY_SHARE = 0.1
"""Assignments that differ in fewer unused files than this share of the samples count as equal."""

_MAX_JOINED = 12
"""Number of assignments whose files are joined."""

_MAX_UNUSED_FOLDERS = 10
"""Number of folders of unused images that are recorded."""

_MAX_SHOWN_CLASSES = 3
"""Number of classes that a message lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The roles of all groups, and the evidence for them."""

    roles: tuple[str | None, ...]
    """Role of each group; None for groups that are not used."""

    table: SampleTable
    """The files joined under these roles."""

    evidence: dict[str, object]
    """What decided, and the role words and pixels of each role; can be written as JSON."""

    unknown_images: list[str]
    """Folders and extensions of unused files without role words; the largest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinedCandidate:
    """A candidate whose files were joined."""

    candidate: Candidate
    roles: tuple[str | None, ...]
    table: SampleTable
    cost: float

    @property
    def complete(self) -> float:
        """Share of complete samples, in [0, 1]."""
        most = max(int((column >= 0).sum()) for column in self.table.members.values())
        return self.table.complete_count / max(1, most, self.table.rows)


def assign_roles(
    name_groups: NameGroups,
    where: str,
    read: Callable[[int], bytes] | None = None,
    refused: Refused = (),
) -> Assignment:
    """Return the role of each group.

    Args:
        name_groups: The names in groups.
        where: Name of the source in errors.
        read: Returns a file's bytes; without it role words alone decide.
        refused: Entries that the catalog refused.

    Raises:
        LayoutError: There is no image, a needed role is missing, the files of a role cannot be
            read, or two assignments are about as good.
    """
    if not name_groups.groups:
        if unread := unread_message(name_groups, refused):
            raise LayoutError(f"{where}: {unread}")
        kinds = name_groups.other.most_common(3)
        counts = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in kinds)
        raise LayoutError(
            f"{where}: no image among the files ({counts or 'only junk files'}); expected "
            f"composites, masks and depth maps; is it the right source?"
        )
    partitions = file_classes(name_groups)
    by_words = candidates(partitions)
    if read is not None:
        _inspect_pixels(name_groups, partitions, read, _FILES_PER_CLASS)
    joined: dict[tuple[str | None, ...], SampleTable] = {}
    best, rivals = _find_best(name_groups, candidates(partitions), joined)
    if rivals and read is not None:
        _inspect_pixels(name_groups, partitions, read, _FILES_PER_CLASS_IF_UNCLEAR)
        best, rivals = _find_best(name_groups, candidates(partitions), joined)
    unread = unread_message(
        name_groups, refused, best.roles if best else (), best.table if best else None
    )
    if unread:
        raise LayoutError(f"{where}: {unread}")
    if best is None:
        raise LayoutError(
            f"{where}: {_no_assignment_message(partitions[0])}",
            layout_file=starter_layout(partitions[0], [_likeliest_role(e) for e in partitions[0]]),
        )
    if "mask" not in best.roles and _may_be_masks(best.candidate):
        raise LayoutError(
            f"{where}: {_no_masks_message(best.candidate.classes)}",
            layout_file=starter_layout(best.candidate.classes, best.candidate.roles),
        )
    if duplicates := best.candidate.duplicate_claim():
        role, *both = duplicates
        shown = " and ".join(f"{each.name} ({_describe_files(each)})" for each in both)
        raise LayoutError(
            f"{where}: 2 files claim to be the {role} of a sample: {shown}; expected one; leave "
            f"one of them out, or pass --layout"
        )
    if rivals:
        shown = " or ".join(_describe_assignment(each) for each in (best, rivals[0]))
        raise LayoutError(
            f"{where}: the names can be read in more than one way, and pixels do not decide: "
            f"{shown}; expected one; name the folders or files for their roles, or pass --layout"
        )
    count = len(name_groups.groups)
    # Words alone decide if no other assignment by words is nearly as good.
    by_words = [each for each in by_words if each.cost - by_words[0].cost < _MIN_COST_MARGIN]
    alone = {each.group_roles(count) for each in by_words} == {best.roles}
    decided = "names" if alone else "names and pixels"
    return Assignment(
        roles=best.roles,
        table=best.table,
        evidence=_evidence(name_groups, best, decided),
        unknown_images=_unknown_classes(best.candidate),
    )


def _inspect_pixels(
    name_groups: NameGroups,
    partitions: Sequence[Sequence[FileClass]],
    read: Callable[[int], bytes],
    samples: int,
) -> None:
    """Set the pixel kind of each class. Files that cannot be decoded do not count."""
    known: dict[tuple[int, ...], tuple[str | None, Counter[str]]] = {}
    for classes in partitions:
        for each in classes:
            if each.words["other"]:
                continue
            key = tuple(sorted(each.groups))
            if key not in known:
                wanted = np.zeros(len(name_groups.groups) + 1, np.bool_)
                wanted[each.groups] = True
                indexes = np.flatnonzero(wanted[name_groups.group])
                # Evenly over the files of the class.
                spread = np.linspace(0, len(indexes) - 1, min(samples, len(indexes))).astype(int)
                known[key] = kind_of_files(indexes[spread].tolist(), read)
            each.kind, each.kinds = known[key]


def _find_best(
    name_groups: NameGroups,
    ranked: Sequence[Candidate],
    joined: dict[tuple[str | None, ...], SampleTable],
) -> tuple[_JoinedCandidate | None, list[_JoinedCandidate]]:
    """Return the best candidate after joining, and others that are about as good but differ."""
    tried: dict[tuple[str | None, ...], _JoinedCandidate] = {}
    for candidate in ranked:
        least = min((each.cost for each in tried.values()), default=np.inf)
        if candidate.cost > least + _MIN_COST_MARGIN or len(tried) == _MAX_JOINED:
            break
        roles = candidate.group_roles(len(name_groups.groups))
        if roles in tried:
            continue
        if roles not in joined:
            joined[roles] = join_by_name(name_groups, roles)
        unranked = _JoinedCandidate(candidate=candidate, roles=roles, table=joined[roles], cost=0.0)
        cost = candidate.cost + _INCOMPLETE_COST * (1 - unranked.complete)
        tried[roles] = _JoinedCandidate(
            candidate=candidate, roles=roles, table=joined[roles], cost=cost
        )
    if not tried:
        return None, []
    order = sorted(tried.values(), key=lambda each: each.cost)
    best = order[0]
    near = [each for each in order[1:] if each.cost - best.cost <= _MIN_COST_MARGIN]
    return best, [each for each in near if _differs(name_groups, best, each)]


def _differs(name_groups: NameGroups, best: _JoinedCandidate, other: _JoinedCandidate) -> bool:
    """Whether two assignments differ in more than a few unused files."""
    apart = 0
    for count, one, two in zip(name_groups.counts(), best.roles, other.roles, strict=True):
        if one != two:
            if one is not None and two is not None:
                return True
            apart += count
    return apart > max(1, _MAX_STRAY_SHARE * best.table.rows)


def _evidence(name_groups: NameGroups, best: _JoinedCandidate, decided: str) -> dict[str, object]:
    """Return role -> count, folders, role words and pixel kinds of its files."""
    evidence: dict[str, object] = {"decided by": decided}
    counts = name_groups.counts()
    pairs = list(zip(best.candidate.classes, best.candidate.roles, strict=True))
    for role in filenames.ROLES:
        files: Counter[str] = Counter()
        for number, class_role in enumerate(best.roles):
            if class_role == role:
                group = name_groups.groups[number]
                files[f"{group.outline}/*.{group.extension}".lstrip("/")] += counts[number]
        if not files:
            continue
        classes = [each for each, class_role in pairs if class_role == role]
        words = sorted(set().union(*(each.words for each in classes)))
        kinds = sum((each.kinds for each in classes), Counter[str]())
        evidence[role] = {
            "files": files.total(),
            "where": sorted(files, key=lambda outline: (-files[outline], outline))[:5],
            "words": words,
            "pixels": {KINDS[kind]: count for kind, count in kinds.most_common()},
        }
    return evidence


def _unknown_classes(candidate: Candidate) -> list[str]:
    pairs = zip(candidate.classes, candidate.roles, strict=True)
    return [each.name for each, role in pairs if role is None and not each.words]


def count_ignored(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """Return the number of unused files by kind."""
    pairs = zip(role_of_group, name_groups.counts(), strict=True)
    valid = count_validity_masks(name_groups, role_of_group)
    left = {
        "junk": name_groups.junk,
        "images without a role": sum(count for role, count in pairs if role is None) - valid,
        VALIDITY_MASKS: valid,
    }
    for extension, count in sorted(name_groups.other.items()):
        left[f".{extension}" if extension else "without extension"] = count
    return {what: count for what, count in left.items() if count}


def list_unused(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """Return folders and extensions of images without a role -> number of files; largest first."""
    files: Counter[str] = Counter()
    pairs = zip(name_groups.groups, name_groups.counts(), role_of_group, strict=True)
    for group, count, role in pairs:
        if role is None:
            files[f"{group.outline}/*.{group.extension}".lstrip("/")] += count
    return dict(files.most_common(_MAX_UNUSED_FOLDERS))


def role_warnings(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> list[str]:
    """Return a warning for each missing role for which unused files are named."""
    warnings = []
    for role in ("mask", "depth"):
        files: Counter[str] = Counter()
        pairs = zip(name_groups.groups, name_groups.counts(), role_of_group, strict=True)
        for group, count, own in pairs if role not in role_of_group else ():
            words = {*group.stem, *(word for folder in group.folders for word in folder)}
            if own is None and (
                claimed_role(group) == role
                or ("other" in words and role == "mask")
                or ("eye" in words and role in words)
            ):
                files[f"{group.outline}/*.{group.extension}".lstrip("/")] += count
        if files:
            where = ", ".join(outline for outline, _ in files.most_common(3))
            warnings.append(
                f"no sample has a {role}: {files.total()} files that may be {role}s are not used "
                f"({where}); name them in a layout file (--layout) if they are"
            )
    return warnings


def count_validity_masks(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> int:
    """Return the number of unused files that mark where a depth was measured."""
    return sum(
        count
        for group, count, role in zip(
            name_groups.groups, name_groups.counts(), role_of_group, strict=True
        )
        if role is None and "validity" in {*group.stem, *(w for f in group.folders for w in f)}
    )


def _describe_assignment(tried: _JoinedCandidate) -> str:
    """Describe as ``fg_bg a/*.jpg (9 files, colour pictures), mask b/*.png (...) [...]``."""
    parts: list[str] = []
    pairs = list(zip(tried.candidate.classes, tried.candidate.roles, strict=True))
    for role in filenames.ROLES:
        parts += [
            f"{role} {each.name} ({_describe_files(each)})"
            for each, class_role in pairs
            if class_role == role
        ]
    return f"{', '.join(parts)} [{tried.complete:.0%} of samples complete]"


def _describe_files(each: FileClass) -> str:
    kinds = ", ".join(KINDS[kind] for kind, _ in each.kinds.most_common(2))
    return f"{each.files} files" + (f", {kinds}" if kinds else "")


def _may_be_masks(candidate: Candidate) -> bool:
    """Whether unused files without role words may be the masks: half as many as composites."""
    pairs = list(zip(candidate.classes, candidate.roles, strict=True))
    composites = sum(each.files for each, role in pairs if role == "fg_bg")
    return any(
        role is None and each.kind in (None, "few") and 2 * each.files >= composites
        for each, role in pairs
        if not +each.words or each.words["label"]
    )


def _no_assignment_message(classes: Sequence[FileClass]) -> str:
    """Explain why no assignment is possible."""
    if not any(_likeliest_role(each) in ("fg_bg", None) for each in classes):
        return (
            f"no composite images (folder or name with fg_bg, overlay, images) among "
            f"{_count_by_role(classes)}; add them, or pass --layout"
        )
    return _no_masks_message(classes)


def _no_masks_message(classes: Sequence[FileClass]) -> str:
    message = f"no masks (folder or name with mask) among {_count_by_role(classes)}"
    unread = [each for each in classes if not each.words["mask"] and each.kind in ("few", "cutout")]
    if not unread:
        return f"{message}; add the masks, or pass --layout"
    names = ", ".join(
        f"{each.name} ({_describe_files(each)})" for each in unread[:_MAX_SHOWN_CLASSES]
    )
    return (
        f"{message}; {names} may be label maps or mattes, which are not read as masks: convert "
        f"them to two values, leave them out, or pass --layout"
    )


def _likeliest_role(each: FileClass) -> str | None:
    if each.words["label"] and not each.words["mask"]:
        return None
    return min((*filenames.ROLES, None), key=lambda role: (each.word_cost(role), role is None))


def _count_by_role(classes: Sequence[FileClass]) -> str:
    """List as ``400 bg, 20 fg_bg, 20 others (labels/*.png: 20 files, a few values)``."""
    files: Counter[str] = Counter()
    others = []
    for each in classes:
        role = _likeliest_role(each)
        files[role or "others"] += each.files
        if role is None:
            others.append(f"{each.name}: {_describe_files(each)}")
    counts = [f"{files[role]} {role}" for role in (*filenames.ROLES, "others") if files[role]]
    more = "; …" if len(others) > _MAX_SHOWN_CLASSES else ""
    return ", ".join(counts) + (
        f" ({'; '.join(others[:_MAX_SHOWN_CLASSES])}{more})" if others else ""
    )
