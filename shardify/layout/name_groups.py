"""Group the names of a source by folder, role words and extension; count the other files."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from shardify.layout import filenames
from shardify.layout.filenames import IntArray, OutlineCache
from shardify.layout.name_patterns import UNGROUPED, NamePatterns
from shardify.sources import file_types
from shardify.sources.entry_names import common_folders

Words = tuple[str, ...]
"""Result of ``filenames.role_words``."""

_NO_GROUP = -1
_DIGITS = re.compile(r"\d+")


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

    @property
    def words(self) -> set[str]:
        """All these words."""
        return {*self.stem, *itertools.chain.from_iterable(self.folders)}

    @property
    def label(self) -> str:
        """Name of the group in messages, such as ``masks/part#/*.png``."""
        return f"{self.outline}/*.{self.extension}".lstrip("/")


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
    stem_words = OutlineCache(filenames.role_words)
    kinds: dict[_Kind, int] = {}
    unread: dict[_Kind, list[int]] = {}
    first_image, last_image = "", ""
    for indexes, batch in _batches_of_one_kind(patterns, len(names)):
        kind = _parse_kind(batch[0], stem_words)
        if kind is _JUNK:
            name_groups.junk += len(indexes)
            continue
        extension = kind[2]
        if extension in file_types.IMAGE_EXTENSIONS:
            name_groups.group[indexes] = kinds.setdefault(kind, len(kinds))
            first_image = min(first_image or batch[0], min(batch))
            last_image = max(last_image, max(batch))
            continue
        name_groups.other[extension] += len(indexes)
        if extension in file_types.MAP_EXTENSIONS:
            name_groups.map_files += indexes
        elif extension not in file_types.SIDE_EXTENSIONS:
            unread.setdefault(kind, []).extend(indexes)
    name_groups.map_files.sort()
    # Folders that the first and the last image share, all images share.
    folders = [image.rpartition("/")[0] for image in (first_image, last_image)]
    name_groups.shared_path = "/".join(folders[0].split("/")[: common_folders(folders)])
    _merge_kinds(name_groups, list(kinds))
    for (path, stem, extension), files in unread.items():
        group = parse_group(path, stem, extension, name_groups.shared_path)
        name_groups.unread.setdefault(group, []).extend(files)
    return name_groups


_Kind = tuple[str, Words, str]
"""Folder, words of the stem, extension."""
_JUNK: _Kind = ("", (), "/")


def _batches_of_one_kind(
    patterns: NamePatterns, count: int
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield indexes and names, together those that surely are of one kind."""
    for outline, indexes, names in patterns.batches(np.ones(count, np.bool_)):
        # Digits of an extension differ within one outline.
        if outline == UNGROUPED or any(map(str.isdigit, _extension(names[0]))):
            for index, name in zip(indexes.tolist(), names, strict=True):
                yield [index], [name]
        else:
            yield indexes.tolist(), names


def _parse_kind(name: str, stem_words: OutlineCache[Words]) -> _Kind:
    folder, _, base = name.rpartition("/")
    if file_types.is_junk_folder(folder) or file_types.is_junk(base):
        return _JUNK
    extension = _extension(name)
    if extension in file_types.SIDE_EXTENSIONS:
        return "", (), extension
    stem = base.rpartition(".")[0] if "." in base else base
    return folder, stem_words(stem.lower()), extension


def _extension(name: str) -> str:
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def indexes_by_role(
    name_groups: NameGroups, role_of_group: Sequence[str | None]
) -> dict[str, IntArray]:
    """Return role -> (n,) int32, indexes of its files, for the roles that the source has."""
    indexes = {}
    for role in filenames.ROLES:
        wanted = np.array([group_role == role for group_role in role_of_group] + [False])
        if wanted.any():
            indexes[role] = np.flatnonzero(wanted[name_groups.group]).astype(np.int32)
    return indexes


def parse_group(path: str, stem: Words, extension: str, shared_path: str) -> Group:
    """Return the group of a file.

    Args:
        path: Its folder.
        stem: Role words of its stem.
        extension: Its extension in lower case.
        shared_path: ``NameGroups.shared_path``; only what ``path`` shares with it is left out.
    """
    shared_folders = common_folders([path, shared_path]) if shared_path else 0
    folders = path.split("/")[shared_folders:] if path else []
    return Group(
        outline=_DIGITS.sub("#", "/".join(folders)),
        folders=tuple(map(filenames.role_words, folders)),
        stem=stem,
        extension=extension,
    )


def _merge_kinds(name_groups: NameGroups, kinds: Sequence[_Kind]) -> None:
    """Merge kinds whose folders differ only in numbers into one group."""
    groups = [parse_group(*kind, name_groups.shared_path) for kind in kinds]
    name_groups.groups = sorted(
        dict.fromkeys(groups), key=lambda group: (group.outline, group.stem, group.extension)
    )
    rank = {group: number for number, group in enumerate(name_groups.groups)}
    table = np.array([rank[group] for group in groups] + [_NO_GROUP], np.int32)
    name_groups.group = table[name_groups.group]
