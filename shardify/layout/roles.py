"""Which role each group of alike files has: one assignment of all groups, not word by word.

Candidates come from ``role_candidates``; each is tried by joining the files, and the one is taken
under which nearly every sample is complete at the least cost. Reads a handful of payloads a class,
to hold words against pixels. Where two candidates remain, the source is refused with both.
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

__all__ = ["VALIDITY", "Assignment", "assign_roles", "ignored", "validity"]

VALIDITY = "validity masks of depth"
"""How they are counted among what is ignored."""

_LOOKS, _MORE_LOOKS = 3, 12
"""Files of a class that are opened; and where that leaves a doubt."""

_INCOMPLETE = 6.0
"""Cost of an assignment under which no sample is complete."""

_MARGIN = 0.45
"""An assignment whose cost is within this of the best is another way to read the source."""

_STRAY = 0.1
"""Two assignments that differ in fewer files than this share of the samples mean the same."""

_JOINED = 12
"""Most assignments that are tried by joining."""

_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The roles of all groups, and what speaks for them."""

    roles: tuple[str | None, ...]
    """Of each group; None for groups that are left aside."""

    table: SampleTable
    """The files joined under these roles."""

    evidence: dict[str, object]
    """For people: what decided, and what words and pixels say of each role."""

    unknown: list[str]
    """Folders and extensions of files left aside of which no word tells anything; fullest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    """A candidate whose files were joined."""

    candidate: Candidate
    roles: tuple[str | None, ...]
    table: SampleTable
    cost: float

    @property
    def complete(self) -> float:
        """Whole samples, as a share of the fullest role's files."""
        most = max(int((column >= 0).sum()) for column in self.table.members.values())
        return self.table.complete / max(1, most, self.table.rows)


def assign_roles(
    census: NameGroups, where: str, read: Callable[[int], bytes] | None = None
) -> Assignment:
    """Find the role of each group.

    Args:
        census: The names, in groups.
        where: What to call the source in an error.
        read: Gives a file's bytes; without it words alone decide.

    Raises:
        LayoutError: There is no image at all, a role is missing without which nothing can be
            made of the source, or two assignments suit it alike.
    """
    if not census.groups:
        kinds = census.other.most_common(3)
        found = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in kinds)
        raise LayoutError(
            f"{where}: no image among the files ({found or 'nothing but litter'}); expected "
            f"composites, masks and depth maps; is it the right source?"
        )
    partitions = file_classes(census)
    by_words = candidates(partitions)
    if read is not None:
        _look(census, partitions, read, _LOOKS)
    joined: dict[tuple[str | None, ...], SampleTable] = {}
    best, rivals = _best(census, candidates(partitions), joined)
    if rivals and read is not None:
        _look(census, partitions, read, _MORE_LOOKS)
        best, rivals = _best(census, candidates(partitions), joined)
    if best is None:
        raise LayoutError(f"{where}: {_nothing(partitions[0])}")
    if "mask" not in best.roles and _may_be_masks(best.candidate):
        raise LayoutError(f"{where}: {_no_masks(best.candidate.classes)}")
    if twins := best.candidate.twins():
        role, *both = twins
        shown = " and ".join(f"{each.name} ({_looks_of(each)})" for each in both)
        raise LayoutError(
            f"{where}: 2 files claim to be the {role} of a sample: {shown}; expected one; leave "
            f"one of them out, or pass --layout"
        )
    if rivals:
        shown = " or ".join(_shown(each) for each in (best, rivals[0]))
        raise LayoutError(
            f"{where}: the names can be read in more than one way, and pixels do not decide: "
            f"{shown}; expected one; name the folders or files for their roles, or pass --layout"
        )
    count = len(census.groups)
    # Words alone would do where no other way to read them is nearly as good.
    by_words = [each for each in by_words if each.cost - by_words[0].cost < _MARGIN]
    alone = {each.of_groups(count) for each in by_words} == {best.roles}
    decided = "names" if alone else "names and pixels"
    return Assignment(
        roles=best.roles,
        table=best.table,
        evidence=_evidence(census, best, decided),
        unknown=_unknown(best.candidate),
    )


def _look(
    census: NameGroups, partitions: Sequence[Sequence[FileClass]], read: Callable[[int], bytes],
    looks: int,
) -> None:  # fmt: skip
    """Find out what the pixels of each class look like. Files that cannot be decoded count not."""
    known: dict[tuple[int, ...], tuple[str | None, Counter[str]]] = {}
    for classes in partitions:
        for each in classes:
            if each.words["other"]:
                continue
            key = tuple(sorted(each.groups))
            if key not in known:
                wanted = np.zeros(len(census.groups) + 1, np.bool_)
                wanted[each.groups] = True
                indexes = np.flatnonzero(wanted[census.group])
                # By name, so that the order in the source is of no account.
                spread = np.linspace(0, len(indexes) - 1, min(looks, len(indexes))).astype(int)
                known[key] = kind_of_files(indexes[spread].tolist(), read)
            each.kind, each.kinds = known[key]


def _best(
    census: NameGroups,
    ranked: Sequence[Candidate],
    joined: dict[tuple[str | None, ...], SampleTable],
) -> tuple[_Tried | None, list[_Tried]]:
    """The best candidate once its files are joined, and others that are as good but differ."""
    tried: dict[tuple[str | None, ...], _Tried] = {}
    for candidate in ranked:
        least = min((each.cost for each in tried.values()), default=np.inf)
        if candidate.cost > least + _MARGIN or len(tried) == _JOINED:
            break
        roles = candidate.of_groups(len(census.groups))
        if roles in tried:
            continue
        if roles not in joined:
            joined[roles] = join_by_name(census, roles)
        found = _Tried(candidate=candidate, roles=roles, table=joined[roles], cost=0.0)
        cost = candidate.cost + _INCOMPLETE * (1 - found.complete)
        tried[roles] = _Tried(candidate=candidate, roles=roles, table=joined[roles], cost=cost)
    if not tried:
        return None, []
    order = sorted(tried.values(), key=lambda each: each.cost)
    best = order[0]
    near = [each for each in order[1:] if each.cost - best.cost <= _MARGIN]
    return best, [each for each in near if _differs(census, best, each)]


def _differs(census: NameGroups, best: _Tried, other: _Tried) -> bool:
    """Whether two assignments mean other things, and not only a few stray files."""
    apart = 0
    for count, one, two in zip(census.counts(), best.roles, other.roles, strict=True):
        if one != two:
            if one is not None and two is not None:
                return True
            apart += count
    return apart > max(1, _STRAY * best.table.rows)


def _evidence(census: NameGroups, best: _Tried, decided: str) -> dict[str, object]:
    """Role -> its files, where they lie, and what words and pixels say of them."""
    found: dict[str, object] = {"decided by": decided}
    counts = census.counts()
    pairs = list(zip(best.candidate.classes, best.candidate.roles, strict=True))
    for role in filenames.ROLES:
        files: Counter[str] = Counter()
        for number, its in enumerate(best.roles):
            if its == role:
                group = census.groups[number]
                files[f"{group.outline}/*.{group.extension}".lstrip("/")] += counts[number]
        if not files:
            continue
        classes = [each for each, its in pairs if its == role]
        words = sorted(set().union(*(each.words for each in classes)))
        looks = sum((each.kinds for each in classes), Counter[str]())
        found[role] = {
            "files": files.total(),
            "where": sorted(files, key=lambda outline: (-files[outline], outline))[:5],
            "words": words,
            "pixels": {KINDS[kind]: count for kind, count in looks.most_common()},
        }
    return found


def _unknown(candidate: Candidate) -> list[str]:
    pairs = zip(candidate.classes, candidate.roles, strict=True)
    return [each.name for each, role in pairs if role is None and not each.words]


def ignored(census: NameGroups, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """What was left aside and is no part of any sample, counted."""
    pairs = zip(role_of_group, census.counts(), strict=True)
    valid = validity(census, role_of_group)
    left = {
        "junk": census.junk,
        "images without a role": sum(count for role, count in pairs if role is None) - valid,
        VALIDITY: valid,
    }
    for extension, count in sorted(census.other.items()):
        left[f".{extension}" if extension else "without extension"] = count
    return {what: count for what, count in left.items() if count}


def validity(census: NameGroups, role_of_group: Sequence[str | None]) -> int:
    """How many files left aside only say where a depth was measured: no mask of an object."""
    return sum(
        count
        for group, count, role in zip(census.groups, census.counts(), role_of_group, strict=True)
        if role is None and "validity" in {*group.stem, *(w for f in group.folders for w in f)}
    )


def _shown(tried: _Tried) -> str:
    """``fg_bg a/*.jpg (9 files, colour pictures), mask b/*.png (...)`` and how well it joins."""
    parts: list[str] = []
    pairs = list(zip(tried.candidate.classes, tried.candidate.roles, strict=True))
    for role in filenames.ROLES:
        parts += [f"{role} {each.name} ({_looks_of(each)})" for each, its in pairs if its == role]
    return f"{', '.join(parts)} [{tried.complete:.0%} of samples complete]"


def _looks_of(each: FileClass) -> str:
    kinds = ", ".join(KINDS[kind] for kind, _ in each.kinds.most_common(2))
    return f"{each.files} files" + (f", {kinds}" if kinds else "")


def _may_be_masks(candidate: Candidate) -> bool:
    """Whether files are left aside that no word tells, as many as composites, perhaps masks."""
    pairs = list(zip(candidate.classes, candidate.roles, strict=True))
    composites = sum(each.files for each, role in pairs if role == "fg_bg")
    return any(
        role is None and each.kind in (None, "few") and 2 * each.files >= composites
        for each, role in pairs
        if not +each.words or each.words["label"]
    )


def _nothing(classes: Sequence[FileClass]) -> str:
    """Why no assignment is possible at all."""
    if not any(_likeliest(each) in ("fg_bg", None) for each in classes):
        return (
            f"no composite images (folder or name with fg_bg, overlay, images) among "
            f"{_listed(classes)}; add them, or pass --layout"
        )
    return _no_masks(classes)


def _no_masks(classes: Sequence[FileClass]) -> str:
    told = f"no masks (folder or name with mask) among {_listed(classes)}"
    unread = [each for each in classes if not each.words["mask"] and each.kind in ("few", "cutout")]
    if not unread:
        return f"{told}; add the masks, or pass --layout"
    names = ", ".join(f"{each.name} ({_looks_of(each)})" for each in unread[:_SHOWN])
    return (
        f"{told}; {names} may be label maps or mattes, which are not read as masks: convert them "
        f"to two values, leave them out, or pass --layout"
    )


def _likeliest(each: FileClass) -> str | None:
    if each.words["label"] and not each.words["mask"]:
        return None
    return min((*filenames.ROLES, None), key=lambda role: (each.word_cost(role), role is None))


def _listed(classes: Sequence[FileClass]) -> str:
    """``400 bg, 20 fg_bg, 20 others (labels/*.png: 20 files, a few values)``."""
    files: Counter[str] = Counter()
    others = []
    for each in classes:
        role = _likeliest(each)
        files[role or "others"] += each.files
        if role is None:
            others.append(f"{each.name}: {_looks_of(each)}")
    told = [f"{files[role]} {role}" for role in (*filenames.ROLES, "others") if files[role]]
    more = "; …" if len(others) > _SHOWN else ""
    return ", ".join(told) + (f" ({'; '.join(others[:_SHOWN])}{more})" if others else "")
