"""All names of a source, sorted into groups that speak alike.

Counts litter and what is no image, and sets text files aside. Decides no role and joins nothing.
"""

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify import naming
from shardify.maps import EXTENSIONS

__all__ = ["Census", "Folder", "Group", "indexes_of", "study_folder", "take_census"]

IntArray = npt.NDArray[np.int32]

_NONE = -1
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """What a folder's path says of the files in it."""

    said: tuple[str | None, ...]
    """Evidence of each part, the outermost first, without those that all names share."""

    outline: str
    """The path with every number as ``#``."""

    stripped: str
    """The path without words for roles."""

    last: str
    """The innermost part of ``stripped``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Files whose names speak alike: the same kind of folder, evidence and extension."""

    outline: str
    said: tuple[str | None, ...]
    extension: str


@dataclass(kw_only=True, slots=True)
class Census:
    """Every name, sorted into groups that share a role."""

    names: Sequence[str]
    group: IntArray
    """(len(names),) int32: which of ``groups``; -1 for what is no image."""

    groups: list[Group] = field(default_factory=list)
    junk: int = 0
    other: Counter[str] = field(default_factory=Counter)
    """Files that are neither junk nor images, by extension."""

    texts: list[int] = field(default_factory=list)
    """Indexes of files that may be a map of the others."""

    shared: int = 0
    """How many leading folders all images have in common."""

    def counts(self) -> list[int]:
        """Files in each group."""
        found = self.group[self.group >= 0]
        return [int(count) for count in np.bincount(found, minlength=len(self.groups))]


def take_census(names: Sequence[str]) -> Census:
    """Sort every name into a group of alike names; count junk and what is no image."""
    shapes = naming.Shapes()
    folders: dict[str, int] = {}
    litter: set[int] = set()
    kinds: dict[tuple[int, str | None, str], int] = {}
    group = array("i", bytes(4 * len(names)))
    census = Census(names=names, group=np.frombuffer(group, np.int32))
    for index, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        number = folders.get(folder)
        if number is None:
            number = folders[folder] = len(folders)
            if naming.is_junk_folder(folder):
                litter.add(number)
        stem, dot, extension = base.rpartition(".")
        if number in litter or naming.is_junk(base):
            group[index] = _NONE
            census.junk += 1
            continue
        extension = extension.lower() if dot else ""
        if extension not in naming.IMAGES:
            if extension in EXTENSIONS:
                census.texts.append(index)
            group[index] = _NONE
            census.other[extension] += 1
            continue
        kind = (number, shapes.said(stem.lower()), extension)
        place = kinds.get(kind)
        if place is None:
            place = kinds[kind] = len(kinds)
        group[index] = place
    return _merge(census, list(folders), list(kinds))


def indexes_of(census: Census, role_of_group: Sequence[str | None]) -> dict[str, IntArray]:
    """Role -> indexes of its files, for the roles that the source has."""
    found = {}
    for role in naming.ROLES:
        wanted = np.array([each == role for each in role_of_group] + [False])
        if wanted.any():
            found[role] = np.flatnonzero(wanted[census.group]).astype(np.int32)
    return found


def study_folder(path: str, shared: int) -> Folder:
    """What a path says without its outermost ``shared`` folders."""
    parts = path.split("/")[shared:] if path else []
    stripped = [text for text in map(naming.strip_words, parts) if text]
    return Folder(
        said=tuple(map(naming.evidence, parts)),
        outline=_DIGITS.sub("#", "/".join(parts)),
        stripped="/".join(stripped),
        last=stripped[-1] if stripped else "",
    )


def _merge(census: Census, folders: list[str], kinds: list[tuple[int, str | None, str]]) -> Census:
    """Turn kinds of names, folder by folder, into groups of folders that look alike."""
    used = sorted({folders[number] for number, _, _ in kinds})
    census.shared = naming.common_folders(used)
    groups: dict[Group, int] = {}
    place = []
    for number, said, extension in kinds:
        folder = study_folder(folders[number], census.shared)
        group = Group(outline=folder.outline, said=(*folder.said, said), extension=extension)
        place.append(groups.setdefault(group, len(groups)))
    order = sorted(groups, key=lambda group: (group.outline, str(group.said), group.extension))
    rank = {groups[group]: new for new, group in enumerate(order)}
    table = np.array([rank[old] for old in place] + [_NONE], np.int32)
    census.group = table[census.group]
    census.groups = order
    return census
