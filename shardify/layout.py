"""From names to samples: which files are one sample, in which role, on which background.

Names in, a ``Layout`` out; the order of the names does not matter. This module reads no payload
and never pairs by position: where names cannot decide, it refuses with ``LayoutError``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify import naming
from shardify.errors import LayoutError
from shardify.joining import Census, Table, join, take_census

__all__ = ["Layout", "Rejection", "detect"]

IntArray = npt.NDArray[np.int32]


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

    rejected: list[Rejection]
    """Samples that are not whole, sorted by key."""

    description: dict[str, object]
    """What was detected and why; can be written as JSON."""


def detect(names: Sequence[str], *, where: str) -> Layout:
    """Find the samples among the names of a source.

    Args:
        names: Paths with ``/`` between folders, in any order, files and litter alike.
        where: What to call the source in an error.

    Returns:
        The layout; see there.

    Raises:
        LayoutError: There is no image, a role is missing that is needed, nothing belongs
            together, or names cannot tell the backgrounds.
    """
    census = take_census(names)
    role_of_group = _roles(census, where)
    table = join(census, role_of_group)
    roles = list(table.members)
    whole = np.flatnonzero(table.whole)
    if not whole.size:
        raise LayoutError(_nothing_fits(names, table, where))
    keys = _unique_keys(names, table.members["fg_bg"][whole], census.shared)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = whole[order]
    members = {role: column[rows] for role, column in table.members.items()}
    samples = _Numbers.of(names, members["fg_bg"], census.shared)
    description: dict[str, object] = {
        "join": table.rule,
        "roles": _describe_roles(census, role_of_group),
        "ignored": _describe_ignored(census, role_of_group),
    }
    background = np.full(len(rows), -1, np.int32)
    ids: list[str] = []
    background_members = np.zeros(0, np.int32)
    if "bg" in role_of_group:
        files = np.flatnonzero(_mask_of(census, role_of_group, "bg")).astype(np.int32)
        background, used = _by_number(names, files, samples.background, where)
        ids = _unique_keys(names, used, census.shared)
        by_id = sorted(range(len(ids)), key=ids.__getitem__)
        background = np.argsort(by_id).astype(np.int32)[background]
        ids, background_members = [ids[place] for place in by_id], used[by_id]
        roles = ["bg", *roles]
        description["background"] = {
            "rule": "number in the name",
            "files": len(files),
            "used": len(ids),
        }
    foreground = samples.foreground
    return Layout(
        roles=tuple(roles),
        keys=[keys[place] for place in order],
        members=members,
        background=background,
        background_ids=ids,
        background_members=background_members,
        foreground=foreground if (foreground >= 0).all() else None,
        rejected=_rejections(names, table),
        description=description,
    )


def _roles(census: Census, where: str) -> list[str | None]:
    """Role of each group; None for groups that are left out."""
    if not census.groups:
        found = (
            ", ".join(
                f"{count} {kind or 'without extension'}"
                for kind, count in census.other.most_common(3)
            )
            or "nothing but litter"
        )
        raise LayoutError(
            f"{where}: no image among the files ({found}); "
            f"expected composites, masks and depth maps; is it the right source?"
        )
    roles = [naming.role_of(group.said) for group in census.groups]
    if "fg_bg" not in roles:
        roles = [role or "fg_bg" for role in roles]
    roles = [None if role == "fg" else role for role in roles]
    if "fg_bg" not in roles:
        raise LayoutError(
            f"{where}: no composite images (folder or name with fg_bg, overlay, "
            f"images) among {_told(census, roles)}; add them, or pass --layout"
        )
    if "bg" in roles and "mask" not in roles:
        raise LayoutError(
            f"{where}: no masks (folder or name with mask) among "
            f"{_told(census, roles)}; add the masks, or pass --layout"
        )
    if "mask" not in roles and "depth" not in roles:
        raise LayoutError(
            f"{where}: neither masks nor depth maps among "
            f"{_told(census, roles)}; add them, or pass --layout"
        )
    return roles


def _told(census: Census, roles: Sequence[str | None]) -> str:
    """``400 bg, 20 fg_bg``: how many files each role has, for an error's line."""
    files: Counter[str] = Counter()
    for role, count in zip(roles, census.counts(), strict=True):
        files[role or "others"] += count
    return ", ".join(f"{files[role]} {role}" for role in (*naming.ROLES, "others") if files[role])


def _nothing_fits(names: Sequence[str], table: Table, where: str) -> str:
    samples = []
    for column in table.members.values():
        place = column[column >= 0]
        if place.size:
            samples.append(min(names[index] for index in place[:1000].tolist()))
    return (
        f"{where}: no image has companions of its own name (e.g. {', '.join(samples)}); "
        f"expected names that share their numbers; pass --layout"
    )


def _mask_of(
    census: Census, role_of_group: Sequence[str | None], role: str
) -> npt.NDArray[np.bool_]:
    """(names,) bool: which files have ``role``."""
    wanted = np.array([each == role for each in role_of_group])
    having: npt.NDArray[np.bool_] = (census.group >= 0) & wanted[census.group]
    return having


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbers:
    """The numbers that names give samples; -1 where they give none."""

    background: IntArray
    foreground: IntArray

    @classmethod
    def of(cls, names: Sequence[str], members: IntArray, shared: int) -> "_Numbers":
        shapes, folders = naming.Shapes(), dict[str, int]()
        background = np.full(len(members), -1, np.int32)
        foreground = np.full(len(members), -1, np.int32)
        for row, index in enumerate(members.tolist()):
            path, _, base = names[index].rpartition("/")
            stem = base.rpartition(".")[0].lower()
            shape, text = shapes.of(stem), shapes.stripped(stem)
            if shape.background:
                background[row] = int(text[shape.background])
            else:
                if path not in folders:
                    folders[path] = naming.folder_number(path, shared)
                background[row] = folders[path]
            if shape.foreground:
                foreground[row] = int(text[shape.foreground])
        return cls(background=background, foreground=foreground)


def _by_number(
    names: Sequence[str], files: IntArray, samples: IntArray, where: str
) -> tuple[IntArray, IntArray]:
    """The background whose name has the number that the sample's name gives.

    Returns:
        (N,) index into the second, (used,) index into the names, in the numbers' order.
    """
    of_number: dict[int, int] = {}
    for index in sorted(files.tolist(), key=names.__getitem__):
        found = naming.numbers(names[index].rpartition("/")[2].rpartition(".")[0])
        if not found or of_number.setdefault(found[-1], index) != index:
            what = f"{names[index]} has " + ("another's number" if found else "no number")
            raise LayoutError(
                f"{where}: backgrounds cannot be told by number: {what}; "
                f"expected one number each; pass --layout"
            )
    wanted, row = np.unique(samples, return_inverse=True)
    if wanted[0] < 0:
        raise LayoutError(
            f"{where}: names do not say which background a sample has (nothing "
            f"like bg_012 in them); pass --layout with a rule for backgrounds"
        )
    absent = [number for number in wanted.tolist() if number not in of_number]
    if absent:
        raise LayoutError(
            f"{where}: samples name background {absent[0]}, but backgrounds are numbered "
            f"{min(of_number)} to {max(of_number)}; so names cannot decide which is meant; "
            f"pass --layout with a rule for backgrounds"
        )
    used = np.array([of_number[number] for number in wanted.tolist()], np.int32)
    return row.astype(np.int32), used


def _unique_keys(names: Sequence[str], members: IntArray, shared: int) -> list[str]:
    """A safe key for each file: its stem, or its path where stems repeat.

    Paths that are alike once made safe are told apart by digits of their SHA-256.
    """
    keys = [naming.safe_key(_stem(names[index])) for index in members.tolist()]
    if len(set(keys)) == len(keys):
        return keys
    paths = [
        "/".join(names[index].split("/")[shared:]).rpartition(".")[0] for index in members.tolist()
    ]
    keys = [naming.safe_key(path) for path in paths]
    often = {key for key, count in Counter(keys).items() if count > 1}
    return [
        naming.safe_key(key, of=names[index]) if key in often else key
        for key, index in zip(keys, members.tolist(), strict=True)
    ]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _rejections(names: Sequence[str], table: Table) -> list[Rejection]:
    """One for each row that is not whole."""
    claims: dict[int, tuple[str, list[int]]] = {}
    for (row, role), indexes in table.claims.items():
        claims.setdefault(row, (role, indexes))
    columns = list(table.members.items())
    rejected = []
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
        key = naming.safe_key(_stem(member))
        rejected.append(Rejection(key=key, member=member, role=role, reason=reason))
    return sorted(rejected, key=lambda rejection: (rejection.key, rejection.member))


def _describe_roles(census: Census, role_of_group: Sequence[str | None]) -> dict[str, object]:
    """Role -> the outlines of its files' folders, most frequent first, and their number."""
    found: dict[str, object] = {}
    for role in naming.ROLES:
        groups = [
            (count, f"{group.outline}/*.{group.extension}".lstrip("/"))
            for group, count, its in zip(census.groups, census.counts(), role_of_group, strict=True)
            if its == role
        ]
        if groups:
            groups.sort(key=lambda pair: (-pair[0], pair[1]))
            found[role] = {
                "files": sum(count for count, _ in groups),
                "where": list(dict.fromkeys(outline for _, outline in groups))[:5],
            }
    return found


def _describe_ignored(census: Census, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """What was left aside and is no part of any sample, counted."""
    ignored = {"junk": census.junk}
    pairs = zip(role_of_group, census.counts(), strict=True)
    ignored["images without a role"] = sum(count for role, count in pairs if role is None)
    for extension, count in sorted(census.other.items()):
        ignored[f".{extension}" if extension else "without extension"] = count
    return {what: count for what, count in ignored.items() if count}
