"""All names of a source, sorted into groups that speak alike.

Counts litter and what is no image, and sets text files aside. Decides no role and joins nothing.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.name_patterns import UNGROUPED, NamePatterns
from shardify.sources import file_types
from shardify.sources.entry_names import common_folders
from shardify.sources.file_types import MAP_EXTENSIONS

__all__ = ["Folder", "Group", "NameGroups", "group_names", "indexes_of", "study_folder"]

IntArray = npt.NDArray[np.int32]
Words = tuple[str, ...]
"""As ``naming.words`` gives them."""

_NONE = -1
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """What a folder's path says of the files in it."""

    words: tuple[Words, ...]
    """Words for a role in each part, the outermost first, without those that all names share."""

    outline: str
    """The path with every number as ``#``."""

    stripped: str
    """The path without words for roles."""

    last: str
    """The innermost part of ``stripped``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Files whose names speak alike: the same kind of folder, words for a role and extension."""

    outline: str
    """The folders without those that all images share, with every number as ``#``."""

    folders: tuple[Words, ...]
    """Words for a role in each of these folders, the outermost first."""

    stem: Words
    """Words for a role in the stem."""

    extension: str


@dataclass(kw_only=True, slots=True)
class NameGroups:
    """Every name, sorted into groups that share a role."""

    names: Sequence[str]
    group: IntArray
    """(len(names),) int32: which of ``groups``; -1 for what is no image."""

    outlines: NamePatterns

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


def group_names(names: Sequence[str]) -> NameGroups:
    """Sort every name into a group of alike names; count junk and what is no image."""
    outlines = NamePatterns(names)
    census = NameGroups(names=names, group=np.full(len(names), _NONE, np.int32), outlines=outlines)
    shapes = filenames.Shapes()
    kinds: dict[_Kind, int] = {}
    bounds: list[str] = []
    for code, indexes, some in outlines.batches(np.ones(len(names), np.bool_)):
        # Extensions with digits in them are counted by what they are.
        same = code != UNGROUPED and not any(each.isdigit() for each in _extension(some[0]))
        for each, index in zip(some, indexes.tolist(), strict=True) if not same else ():
            kind = _kind_of(each, shapes)
            _count(census, kind, [index], kinds, [each], bounds)
        if same:
            _count(census, _kind_of(some[0], shapes), indexes.tolist(), kinds, some, bounds)
    census.texts.sort()
    return _merge(census, list(kinds), bounds)


_Kind = tuple[str, Words, str]
"""A folder, words of a stem, an extension; folder and stem of one name stand for all alike."""
_JUNK: _Kind = ("", (), "/")


def _kind_of(name: str, shapes: filenames.Shapes) -> _Kind:
    folder, _, base = name.rpartition("/")
    if file_types.is_junk_folder(folder) or file_types.is_junk(base):
        return _JUNK
    extension = _extension(name)
    if extension not in file_types.IMAGE_EXTENSIONS:
        return "", (), extension
    return folder, shapes.words(base.rpartition(".")[0].lower()), extension


def _extension(name: str) -> str:
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def _count(
    census: NameGroups,
    kind: _Kind,
    indexes: list[int],
    kinds: dict[_Kind, int],
    names: list[str],
    bounds: list[str],
) -> None:
    """Put names of one kind where they belong; ``bounds`` keeps the least and greatest image."""
    if kind is _JUNK:
        census.junk += len(indexes)
    elif kind[2] not in file_types.IMAGE_EXTENSIONS:
        if kind[2] in MAP_EXTENSIONS:
            census.texts += indexes
        census.other[kind[2]] += len(indexes)
    else:
        census.group[indexes] = kinds.setdefault(kind, len(kinds))
        bounds[:] = min([*bounds[:1], min(names)]), max([*bounds[1:], max(names)])


def indexes_of(census: NameGroups, role_of_group: Sequence[str | None]) -> dict[str, IntArray]:
    """Role -> indexes of its files, for the roles that the source has."""
    found = {}
    for role in filenames.ROLES:
        wanted = np.array([each == role for each in role_of_group] + [False])
        if wanted.any():
            found[role] = np.flatnonzero(wanted[census.group]).astype(np.int32)
    return found


def study_folder(path: str, shared: int) -> Folder:
    """What a path says without its outermost ``shared`` folders."""
    parts = path.split("/")[shared:] if path else []
    stripped = [text for text in map(filenames.strip_words, parts) if text]
    return Folder(
        words=tuple(map(filenames.words, parts)),
        outline=_DIGITS.sub("#", "/".join(parts)),
        stripped="/".join(stripped),
        last=stripped[-1] if stripped else "",
    )


def _merge(census: NameGroups, kinds: list[_Kind], bounds: list[str]) -> NameGroups:
    """Turn kinds of names, folder by folder, into groups of folders that look alike."""
    # What the least and the greatest name share, all between them share.
    census.shared = common_folders([name.rpartition("/")[0] for name in bounds])
    groups: dict[Group, int] = {}
    place = []
    for path, stem, extension in kinds:
        folder = study_folder(path, census.shared)
        group = Group(outline=folder.outline, folders=folder.words, stem=stem, extension=extension)
        place.append(groups.setdefault(group, len(groups)))
    order = sorted(groups, key=lambda group: (group.outline, group.stem, group.extension))
    rank = {groups[group]: new for new, group in enumerate(order)}
    table = np.array([rank[old] for old in place] + [_NONE], np.int32)
    census.group = table[census.group]
    census.groups = order
    return census
