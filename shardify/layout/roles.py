"""Assign a role to each group of files, all groups together.

The files of each candidate of ``role_candidates`` are joined; the cheapest candidate under which
nearly every sample is complete wins. A few files of each class are read, to compare role words with
pixels. If two candidates are about as good, the source is refused and the error shows both. A role
whose files are there but cannot be read is an error, never an absent role.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.layout_file_writer import starter_layout
from shardify.layout.name_groups import Group, NameGroups, indexes_by_role, parse_group
from shardify.layout.role_candidates import Candidate, FileClass, candidates, file_classes
from shardify.layout.sample_table import SampleTable, join_by_name
from shardify.layout.thumbnails import KINDS, ReadFile, kind_of_files
from shardify.sources import file_types

Refused = Sequence[tuple[str, str]]
"""Name and reason of each entry that the catalog refused."""

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

_REMEDIES = {
    "depth": "16-bit PNG or .npy", "mask": "PNG", "bg": "JPEG or PNG", "fg_bg": "JPEG or PNG",
}  # fmt: skip
"""Role -> formats to convert its files to; the role that is reported first comes first."""


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


@dataclass(frozen=True, kw_only=True)
class _JoinedCandidate:
    """A candidate whose files were joined."""

    candidate: Candidate
    roles: tuple[str | None, ...]
    table: SampleTable

    @functools.cached_property
    def complete(self) -> float:
        """Share of complete samples, in [0, 1]."""
        return self.table.complete_count / max(1, self.table.rows)

    @property
    def cost(self) -> float:
        """Cost of the candidate, and of its incomplete samples."""
        return self.candidate.cost + _INCOMPLETE_COST * (1 - self.complete)


def assign_roles(
    name_groups: NameGroups, where: str, read: ReadFile | None, refused: Refused
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
        if unread := _unread_message(name_groups, refused, None):
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
    if unread := _unread_message(name_groups, refused, best):
        raise LayoutError(f"{where}: {unread}")
    if best is None:
        classes = partitions[0]
        raise LayoutError(
            f"{where}: {_no_assignment_message(classes)}",
            layout_file=starter_layout(classes, list(map(_likeliest_role, classes))),
        )
    candidate = best.candidate
    if "mask" not in best.roles and _may_be_masks(candidate):
        raise LayoutError(
            f"{where}: {_no_masks_message(candidate.classes)}",
            layout_file=starter_layout(candidate.classes, candidate.roles),
        )
    if duplicates := candidate.duplicate_claim():
        role, *both = duplicates
        shown = " and ".join(f"{duplicate.name} ({duplicate.contents})" for duplicate in both)
        raise LayoutError(
            f"{where}: 2 files claim to be the {role} of a sample: {shown}; expected one; leave "
            f"one of them out, or pass --layout"
        )
    if rivals:
        shown = f"{_describe_assignment(best)} or {_describe_assignment(rivals[0])}"
        raise LayoutError(
            f"{where}: the names can be read in more than one way, and pixels do not decide: "
            f"{shown}; expected one; name the folders or files for their roles, or pass --layout"
        )
    # Words alone decide if no other assignment by words is nearly as good.
    near = [other for other in by_words if other.cost - by_words[0].cost < _MIN_COST_MARGIN]
    by_words_alone = {other.group_roles(len(best.roles)) for other in near} == {best.roles}
    return Assignment(
        roles=best.roles,
        table=best.table,
        evidence=_evidence(name_groups, best, "names" if by_words_alone else "names and pixels"),
        unknown_images=[
            file_class.name for file_class in candidate.role_classes(None) if not file_class.words
        ],
    )


def _inspect_pixels(
    name_groups: NameGroups,
    partitions: Sequence[Sequence[FileClass]],
    read: ReadFile,
    samples: int,
) -> None:
    """Set the pixel kind of each class. Files that cannot be decoded do not count."""
    known: dict[tuple[int, ...], tuple[str | None, Counter[str]]] = {}
    for classes in partitions:
        for file_class in classes:
            if file_class.words["other"]:
                continue
            key = tuple(sorted(file_class.groups))
            if key not in known:
                wanted = np.zeros(len(name_groups.groups) + 1, np.bool_)
                wanted[file_class.groups] = True
                indexes = np.flatnonzero(wanted[name_groups.group])
                # Evenly over the files of the class.
                spread = np.linspace(0, len(indexes) - 1, min(samples, len(indexes))).astype(int)
                known[key] = kind_of_files(indexes[spread].tolist(), read)
            file_class.kind, file_class.kinds = known[key]


def _find_best(
    name_groups: NameGroups,
    ranked: Sequence[Candidate],
    joined: dict[tuple[str | None, ...], SampleTable],
) -> tuple[_JoinedCandidate | None, list[_JoinedCandidate]]:
    """Return the best candidate after joining, and others that are about as good but differ."""
    tried: dict[tuple[str | None, ...], _JoinedCandidate] = {}
    for candidate in ranked:
        least = min((other.cost for other in tried.values()), default=np.inf)
        if candidate.cost > least + _MIN_COST_MARGIN or len(tried) == _MAX_JOINED:
            break
        roles = candidate.group_roles(len(name_groups.groups))
        if roles in tried:
            continue
        if roles not in joined:
            joined[roles] = join_by_name(name_groups, roles)
        tried[roles] = _JoinedCandidate(candidate=candidate, roles=roles, table=joined[roles])
    if not tried:
        return None, []
    best, *others = sorted(tried.values(), key=lambda each: each.cost)
    near = [other for other in others if other.cost - best.cost <= _MIN_COST_MARGIN]
    return best, [other for other in near if _differs(name_groups, best, other)]


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
    for role in filenames.ROLES:
        files = _count_by_label(name_groups, [group_role == role for group_role in best.roles])
        if not files:
            continue
        classes = best.candidate.role_classes(role)
        kinds = sum((file_class.kinds for file_class in classes), Counter[str]())
        evidence[role] = {
            "files": files.total(),
            "where": sorted(files, key=lambda label: (-files[label], label))[:5],
            "words": sorted(set().union(*(file_class.words for file_class in classes))),
            "pixels": {KINDS[kind]: count for kind, count in kinds.most_common()},
        }
    return evidence


def _count_by_label(name_groups: NameGroups, wanted: Sequence[bool]) -> Counter[str]:
    """Count the files of the wanted groups by folder and extension."""
    files: Counter[str] = Counter()
    groups = zip(name_groups.groups, name_groups.counts(), wanted, strict=True)
    for group, count, is_wanted in groups:
        if is_wanted:
            files[group.label] += count
    return files


def count_ignored(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """Return the number of unused files by kind."""
    unused = [role is None for role in role_of_group]
    pairs = zip(name_groups.groups, unused, strict=True)
    validity = [is_unused and "validity" in group.words for group, is_unused in pairs]
    validity_count = _count_by_label(name_groups, validity).total()
    ignored = {
        "junk": name_groups.junk,
        "images without a role": _count_by_label(name_groups, unused).total() - validity_count,
        VALIDITY_MASKS: validity_count,
    }
    for extension, count in sorted(name_groups.other.items()):
        ignored[f".{extension}" if extension else "without extension"] = count
    return {kind: count for kind, count in ignored.items() if count}


def list_unused(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """Return folders and extensions of images without a role -> number of files; largest first."""
    files = _count_by_label(name_groups, [role is None for role in role_of_group])
    return dict(files.most_common(_MAX_UNUSED_FOLDERS))


def role_warnings(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> list[str]:
    """Return a warning for each missing role for which unused files are named."""
    warnings = []
    for role in ("mask", "depth"):
        if role in role_of_group:
            continue
        may_have_role = [
            group_role is None
            and (
                _claimed_role(group) == role
                or ("other" in group.words and role == "mask")
                or {"eye", role} <= group.words
            )
            for group, group_role in zip(name_groups.groups, role_of_group, strict=True)
        ]
        if files := _count_by_label(name_groups, may_have_role):
            labels = ", ".join(label for label, _ in files.most_common(3))
            warnings.append(
                f"no sample has a {role}: {files.total()} files that may be {role}s are not used "
                f"({labels}); name them in a layout file (--layout) if they are"
            )
    return warnings


def _describe_assignment(tried: _JoinedCandidate) -> str:
    """Describe as ``fg_bg a/*.jpg (9 files, colour pictures), mask b/*.png (...) [...]``."""
    parts = [
        f"{role} {file_class.name} ({file_class.contents})"
        for role in filenames.ROLES
        for file_class in tried.candidate.role_classes(role)
    ]
    return f"{', '.join(parts)} [{tried.complete:.0%} of samples complete]"


def _may_be_masks(candidate: Candidate) -> bool:
    """Whether unused files without role words may be the masks: half as many as composites."""
    composites = sum(file_class.files for file_class in candidate.role_classes("fg_bg"))
    return any(
        unused.kind in (None, "few") and 2 * unused.files >= composites
        for unused in candidate.role_classes(None)
        if not +unused.words or unused.words["label"]
    )


def _no_assignment_message(classes: Sequence[FileClass]) -> str:
    """Explain why no assignment is possible."""
    if not {"fg_bg", None} & set(map(_likeliest_role, classes)):
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
    names = ", ".join(f"{each.name} ({each.contents})" for each in unread[:_MAX_SHOWN_CLASSES])
    return (
        f"{message}; {names} may be label maps or mattes, which are not read as masks: convert "
        f"them to two values, leave them out, or pass --layout"
    )


def _likeliest_role(file_class: FileClass) -> str | None:
    if file_class.words["label"] and not file_class.words["mask"]:
        return None
    return min((*filenames.ROLES, None), key=file_class.word_cost)


def _count_by_role(classes: Sequence[FileClass]) -> str:
    """List as ``400 bg, 20 fg_bg, 20 others (labels/*.png: 20 files, a few values)``."""
    files: Counter[str] = Counter()
    others = []
    for file_class in classes:
        role = _likeliest_role(file_class)
        files[role or "others"] += file_class.files
        if role is None:
            others.append(f"{file_class.name}: {file_class.contents}")
    counts = [f"{files[role]} {role}" for role in (*filenames.ROLES, "others") if files[role]]
    shown = "; ".join(others[:_MAX_SHOWN_CLASSES])
    more = "; …" if len(others) > _MAX_SHOWN_CLASSES else ""
    return ", ".join(counts) + (f" ({shown}{more})" if others else "")


def _unread_message(
    name_groups: NameGroups, refused: Refused, best: _JoinedCandidate | None
) -> str | None:
    """Describe the files of one role that cannot be read and that samples lack; None without any.

    Without a best candidate, every such file counts.
    """
    names = name_groups.names
    unread: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for group, indexes in name_groups.unread.items():
        if role := _claimed_role(group):
            kind = f".{group.extension}" if group.extension else "without extension"
            unread[role] += [(names[index], kind) for index in indexes]
    for name, reason in refused:
        if role := _claimed_by_name(name, name_groups.shared_path):
            unread[role].append((name, reason))
    files = indexes_by_role(name_groups, best.roles) if unread and best else {}
    for role, remedy in _REMEDIES.items():
        missing = unread[role]
        if missing and role in files:
            column = best.table.members.get(role) if best else None
            if column is not None and not (column == -1).any():
                continue
            # A few entries that the catalog refused are in rejected.jsonl, as are their samples.
            stems = {_stripped_stem(names[index]) for index in files[role].tolist()}
            missing = [
                (name, kind)
                for name, kind in missing
                if kind.startswith(".") and _stripped_stem(name) not in stems
            ]
        if missing:
            kinds = Counter(kind for _, kind in missing).most_common(3)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds)
            example = min(ascii(name)[1:-1] for name, _ in missing)
            return (
                f"{len(missing)} files named as {role} cannot be read ({shown}; such as "
                f"{example}); convert them to {remedy}, or leave them out, or pass --layout"
            )
    return None


def _claimed_by_name(name: str, shared_path: str) -> str | None:
    path, _, base = name.replace("\\", "/").strip("/").rpartition("/")
    stem, dot, extension = base.rpartition(".")
    extension = extension.lower()
    if file_types.is_junk(base) or file_types.is_junk_folder(path):
        return None
    if extension in file_types.SIDE_EXTENSIONS:
        return None
    words = filenames.role_words(stem if dot else base)
    return _claimed_role(parse_group(path, words, extension, shared_path))


def _stripped_stem(name: str) -> str:
    return filenames.strip_words(filenames.file_stem(name) or name)


def _claimed_role(group: Group) -> str | None:
    """Return the role that the words of a group's folders and stems name; None without one."""
    words = group.words
    if words & {"other", "eye", "validity", "cutout"}:
        return None
    for role, role_words in (
        ("depth", {"depth"}),
        ("mask", {"mask", "trimap", "label"}),
        ("fg_bg", {"fg_bg"}),
        ("bg", {"bg"}),
        ("fg_bg", {"picture"}),
    ):
        if words & role_words and not (role == "fg_bg" and "fg" in words):
            return role
    return None
