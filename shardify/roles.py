"""Which role each group of alike files has, from what their names say and from each other.

Sees groups, not samples. Reads a handful of payloads at most, and only where two files differ in
their extension alone, so that no word tells a mask from a depth map.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from shardify import naming
from shardify.census import Census
from shardify.errors import LayoutError, ShardifyError
from shardify.thumbs import looks_binary

__all__ = ["VALIDITY", "assign", "describe", "ignored", "unknown", "validity"]

VALIDITY = "validity masks of depth"
"""How they are counted among what is ignored."""

_CUTOUT_MASK = re.compile(r"(?<![a-z])(?:fg|foreground)s?[-_ ]?masks?(?![a-z])")
_PHOTOGRAPHS = frozenset({"jpg", "jpeg", "jpe", "jfif"})


def assign(
    census: Census, where: str, read: Callable[[int], bytes] | None = None
) -> list[str | None]:
    """Role of each group; None for groups that are left out.

    Args:
        census: The names, in groups.
        where: What to call the source in an error.
        read: Gives a file's bytes.

    Raises:
        LayoutError: There is no image at all, a role is missing without which nothing can be
            made of the source, or nothing tells masks from depth maps.
    """
    if not census.groups:
        kinds = census.other.most_common(3)
        found = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in kinds)
        raise LayoutError(
            f"{where}: no image among the files ({found or 'nothing but litter'}); expected "
            f"composites, masks and depth maps; is it the right source?"
        )
    roles = [naming.role_of(group.said) for group in census.groups]
    pairs = zip(roles, census.groups, strict=True)
    if not any(role == "fg_bg" and "fg_bg" in group.said for role, group in pairs):
        _give_the_rest(census, roles, where, read)
    _without_cutouts(census, roles)
    roles = [role if role in naming.ROLES else None for role in roles]
    told = _told(census, roles)
    if "fg_bg" not in roles:
        raise LayoutError(
            f"{where}: no composite images (folder or name with fg_bg, overlay, images) among "
            f"{told}; add them, or pass --layout"
        )
    # Masks may be absent; but images of which no word tells anything may be the masks.
    if "mask" not in roles and ("depth" not in roles or ("bg" in roles and None in roles)):
        raise LayoutError(
            f"{where}: no masks (folder or name with mask) among {told}; add the masks, or pass "
            f"--layout"
        )
    return roles


def unknown(census: Census, role_of_group: Sequence[str | None]) -> list[str]:
    """Folders and extensions of images of which no word tells anything, the fullest first."""
    files: Counter[str] = Counter()
    for group, count, role in zip(census.groups, census.counts(), role_of_group, strict=True):
        if role is None and naming.role_of(group.said) is None:
            files[f"{group.outline}/*.{group.extension}".lstrip("/")] += count
    return sorted(files, key=lambda outline: (-files[outline], outline))


def describe(census: Census, role_of_group: Sequence[str | None]) -> dict[str, object]:
    """Role -> how many files it has, and in which folders, the fullest first."""
    found: dict[str, object] = {}
    for role in naming.ROLES:
        files: Counter[str] = Counter()
        for group, count, its in zip(census.groups, census.counts(), role_of_group, strict=True):
            if its == role:
                files[f"{group.outline}/*.{group.extension}".lstrip("/")] += count
        if files:
            found[role] = {
                "files": files.total(),
                "where": sorted(files, key=lambda outline: (-files[outline], outline))[:5],
            }
    return found


def ignored(census: Census, role_of_group: Sequence[str | None]) -> dict[str, int]:
    """What was left aside and is no part of any sample, counted."""
    pairs = zip(role_of_group, census.counts(), strict=True)
    valid = validity(census)
    left = {
        "junk": census.junk,
        "images without a role": sum(count for role, count in pairs if role is None) - valid,
        VALIDITY: valid,
    }
    for extension, count in sorted(census.other.items()):
        left[f".{extension}" if extension else "without extension"] = count
    return {what: count for what, count in left.items() if count}


def validity(census: Census) -> int:
    """How many files only say where a depth was measured. They are no mask of an object."""
    pairs = zip(census.groups, census.counts(), strict=True)
    return sum(count for group, count in pairs if naming.role_of(group.said) == "validity")


def _without_cutouts(census: Census, roles: list[str | None]) -> None:
    """Leave masks of cut-outs aside, where there are masks of composites too."""
    masks = [number for number, role in enumerate(roles) if role == "mask"]
    cut = {number for number in masks if _CUTOUT_MASK.search(census.groups[number].outline.lower())}
    if len(cut) < len(masks):
        for number in cut:
            roles[number] = "fg"


def _give_the_rest(
    census: Census, roles: list[str | None], where: str, read: Callable[[int], bytes] | None
) -> None:
    """Take files that no word tells for the images; of two extensions one is a label."""
    extensions: dict[str, set[str]] = {}
    for group, role in zip(census.groups, roles, strict=True):
        if role is None:
            extensions.setdefault(group.outline, set()).add(group.extension)
    for number, group in enumerate(census.groups):
        if roles[number] is None:
            beside = extensions[group.outline] - {group.extension}
            is_label = group.extension not in _PHOTOGRAPHS and beside & _PHOTOGRAPHS
            roles[number] = _label(census, number, roles, where, read) if is_label else "fg_bg"


def _label(
    census: Census,
    number: int,
    roles: Sequence[str | None],
    where: str,
    read: Callable[[int], bytes] | None,
) -> str:
    """``mask`` or ``depth``: what the rest of the source has, or what the pixels look like."""
    elsewhere = {role for role in roles if role in ("mask", "depth")}
    if len(elsewhere) == 1:
        return elsewhere.pop()
    group = census.groups[number]
    indexes = np.flatnonzero(census.group == number)
    indexes = indexes[np.linspace(0, len(indexes) - 1, min(9, len(indexes))).astype(int)]
    votes: Counter[bool] = Counter()
    for index in indexes.tolist() if read else ():
        try:
            binary = looks_binary(read(index)) if read else None
        except ShardifyError:
            continue
        if binary is not None:
            votes[binary] += 1
    if not votes:
        raise LayoutError(
            f"{where}: {group.outline}/*.{group.extension} may be masks or depth maps; expected a "
            f"name that says so; pass --layout"
        )
    return "mask" if votes[True] > votes[False] else "depth"


def _told(census: Census, roles: Sequence[str | None]) -> str:
    """``400 bg, 20 fg_bg``: how many files each role has, for an error's line."""
    files: Counter[str] = Counter()
    for role, count in zip(roles, census.counts(), strict=True):
        files[role or "others"] += count
    return ", ".join(f"{files[role]} {role}" for role in (*naming.ROLES, "others") if files[role])
