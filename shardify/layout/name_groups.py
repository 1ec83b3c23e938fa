"""Group the names of a source by folder, role words and extension; count the other files."""

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

IntArray = npt.NDArray[np.int32]
Words = tuple[str, ...]
"""Result of ``filenames.role_words``."""

_NO_GROUP = -1
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Parsed path of a folder."""

    words: tuple[Words, ...]
    """Role words of each folder, the outermost first, without folders that all images share."""

    outline: str
    """The path with every number as ``#``."""

    stripped: str
    """The path without words for roles."""

    last: str
    """The innermost part of ``stripped``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Files with the same kind of folder, the same words for a role and the same extension."""

    outline: str
    """The folders without those that all images share, with every number as ``#``."""

    folders: tuple[Words, ...]
    """Words for a role in each of these folders, the outermost first."""

    stem: Words
    """Words for a role in the stem."""

    extension: str


@dataclass(kw_only=True, slots=True)
class NameGroups:
    """All names of a source, in groups; the files of a group have the same role."""

    names: Sequence[str]
    group: IntArray
    """(N,) int32, index into ``groups``; -1 for files that are no images."""

    patterns: NamePatterns

    groups: list[Group] = field(default_factory=list)
    junk: int = 0
    """Number of junk files."""
    other: Counter[str] = field(default_factory=Counter)
    """Files that are neither junk nor images, by extension."""

    unread: dict[Group, list[int]] = field(default_factory=dict)
    """Files that may hold pixels, but in a format that is not read: indexes, by group."""

    map_files: list[int] = field(default_factory=list)
    """Indexes of files that may be maps."""

    shared_path: str = ""
    """Leading folders that all images share."""

    @property
    def shared_folders(self) -> int:
        """Number of leading folders that all images share."""
        return self.shared_path.count("/") + 1 if self.shared_path else 0

    def counts(self) -> list[int]:
        """Return the number of files in each group."""
        images = self.group[self.group >= 0]
        return [int(count) for count in np.bincount(images, minlength=len(self.groups))]


def group_names(names: Sequence[str]) -> NameGroups:
    """Put every image into a group; count junk and other files."""
    patterns = NamePatterns(names)
    name_groups = NameGroups(
        names=names, group=np.full(len(names), _NO_GROUP, np.int32), patterns=patterns
    )
    stems = filenames.StemCache()
    kinds: dict[_Kind, int] = {}
    bounds: list[str] = []
    unread: dict[_Kind, list[int]] = {}
    for code, indexes, some in patterns.batches(np.ones(len(names), np.bool_)):
        # Digits of an extension differ within one outline: count such names one by one.
        same = code != UNGROUPED and not any(each.isdigit() for each in _extension(some[0]))
        for each, index in zip(some, indexes.tolist(), strict=True) if not same else ():
            kind = _parse_kind(each, stems)
            _add_names(name_groups, kind, [index], kinds, [each], bounds, unread)
        if same:
            kind = _parse_kind(some[0], stems)
            _add_names(name_groups, kind, indexes.tolist(), kinds, some, bounds, unread)
    name_groups.map_files.sort()
    _merge_kinds(name_groups, list(kinds), bounds)
    for (path, stem, extension), files in unread.items():
        group = parse_group(path, stem, extension, name_groups.shared_path)
        name_groups.unread.setdefault(group, []).extend(files)
    return name_groups


_Kind = tuple[str, Words, str]
"""Folder, words of the stem, extension."""
_JUNK: _Kind = ("", (), "/")


def _parse_kind(name: str, stems: filenames.StemCache) -> _Kind:
    folder, _, base = name.rpartition("/")
    if file_types.is_junk_folder(folder) or file_types.is_junk(base):
        return _JUNK
    extension = _extension(name)
    if extension in file_types.SIDE_EXTENSIONS:
        return "", (), extension
    stem = base.rpartition(".")[0] if "." in base else base
    return folder, stems.role_words(stem.lower()), extension


def _extension(name: str) -> str:
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def _add_names(
    name_groups: NameGroups,
    kind: _Kind,
    indexes: list[int],
    kinds: dict[_Kind, int],
    names: list[str],
    bounds: list[str],
    unread: dict[_Kind, list[int]],
) -> None:
    """Add names of one kind to their group; keep the first and last image by name in ``bounds``."""
    if kind is _JUNK:
        name_groups.junk += len(indexes)
    elif kind[2] not in file_types.IMAGE_EXTENSIONS:
        if kind[2] in MAP_EXTENSIONS:
            name_groups.map_files += indexes
        elif kind[2] not in file_types.SIDE_EXTENSIONS:
            unread.setdefault(kind, []).extend(indexes)
        name_groups.other[kind[2]] += len(indexes)
    else:
        name_groups.group[indexes] = kinds.setdefault(kind, len(kinds))
        bounds[:] = min([*bounds[:1], min(names)]), max([*bounds[1:], max(names)])


def indexes_by_role(
    name_groups: NameGroups, role_of_group: Sequence[str | None]
) -> dict[str, IntArray]:
    """Return role -> (n,) int32, indexes of its files, for the roles that the source has."""
    indexes = {}
    for role in filenames.ROLES:
        wanted = np.array([each == role for each in role_of_group] + [False])
        if wanted.any():
            indexes[role] = np.flatnonzero(wanted[name_groups.group]).astype(np.int32)
    return indexes


def parse_folder(path: str, shared_folders: int) -> Folder:
    """Parse a folder's path without its outermost ``shared_folders`` folders."""
    parts = path.split("/")[shared_folders:] if path else []
    stripped = [text for text in map(filenames.strip_words, parts) if text]
    return Folder(
        words=tuple(map(filenames.role_words, parts)),
        outline=_DIGITS.sub("#", "/".join(parts)),
        stripped="/".join(stripped),
        last=stripped[-1] if stripped else "",
    )


def parse_group(path: str, stem: Words, extension: str, shared_path: str) -> Group:
    """Return the group of a file.

    Args:
        path: Its folder.
        stem: Role words of its stem.
        extension: Its extension in lower case.
        shared_path: ``NameGroups.shared_path``; only what ``path`` shares with it is left out.
    """
    both = common_folders([path, shared_path]) if shared_path else 0
    folder = parse_folder(path, both)
    return Group(outline=folder.outline, folders=folder.words, stem=stem, extension=extension)


def _merge_kinds(name_groups: NameGroups, kinds: list[_Kind], bounds: list[str]) -> None:
    """Merge kinds whose folders differ only in numbers into one group."""
    # Folders that the first and the last name share, all names between them share.
    paths = [name.rpartition("/")[0] for name in bounds]
    shared = common_folders(paths)
    name_groups.shared_path = "/".join(paths[0].split("/")[:shared]) if shared else ""
    groups: dict[Group, int] = {}
    place = []
    for path, stem, extension in kinds:
        group = parse_group(path, stem, extension, name_groups.shared_path)
        place.append(groups.setdefault(group, len(groups)))
    order = sorted(groups, key=lambda group: (group.outline, group.stem, group.extension))
    rank = {groups[group]: new for new, group in enumerate(order)}
    table = np.array([rank[old] for old in place] + [_NO_GROUP], np.int32)
    name_groups.group = table[name_groups.group]
    name_groups.groups = order
