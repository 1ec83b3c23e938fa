"""Join the files of each sample into one row of a table, by their names.

Files are never paired by position. A file whose name matches no other gets a row of its own.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.name_groups import Folder, NameGroups, parse_folder
from shardify.layout.name_patterns import (
    ALL_FOLDERS,
    LAST_FOLDER,
    NO_FOLDER,
    UNGROUPED,
    KeyPattern,
    find_key_pattern,
)

__all__ = ["RULES", "SampleTable", "build_table", "join_by_name"]

IntArray = npt.NDArray[np.int32]

_MIN_COMPLETE_SHARE = 0.95
"""A rule that completes this share of its rows is accepted without trying the others."""

_MAX_ROWS_PER_FILE = 1.5
"""A rule with more rows than this for each file of the largest role is given up."""

_NO_ROLE = -1

_MOST_OUTLINES = 1000
"""Of more outlines than this no rule is ruled out beforehand."""

_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """One row for each sample, complete or not."""

    rule: str
    """Name of the joining rule, for messages."""
    members: dict[str, IntArray]
    """role -> (rows,) int32, index of the name; -1: none, -2: several, see ``claims``."""

    claims: dict[tuple[int, str], list[int]]
    """(row, role) -> indexes of the names, if there are several."""

    warnings: tuple[str, ...] = ()
    """Warnings for the user about the join."""

    @property
    def rows(self) -> int:
        """Number of samples, complete or not."""
        return len(next(iter(self.members.values())))

    @property
    def is_complete(self) -> npt.NDArray[np.bool_]:
        """(rows,) bool, which samples have exactly one file in each role."""
        complete = np.ones(self.rows, np.bool_)
        for column in self.members.values():
            complete &= column >= 0
        return complete

    @property
    def complete_count(self) -> int:
        """Number of complete samples."""
        return int(self.is_complete.sum())


def join_by_name(name_groups: NameGroups, role_of_group: Sequence[str | None]) -> SampleTable:
    """Join files by the first of ``RULES`` that completes nearly all samples.

    Args:
        name_groups: The names in groups.
        role_of_group: Role of each group; None for groups that are left out. Backgrounds are
            not joined.

    Returns:
        The table of the rule that completes the most samples; rows in arbitrary order.
    """
    roles = [role for role in filenames.ROLES if role != "bg" and role in role_of_group]
    code = np.array(
        [roles.index(role) if role in roles else _NO_ROLE for role in role_of_group], np.int8
    )
    role_codes = np.where(name_groups.group >= 0, code[name_groups.group], np.int8(_NO_ROLE))
    most_files = int(np.bincount(role_codes[role_codes >= 0]).max())
    best: SampleTable | None = None
    for rule in RULES:
        if not _can_match(name_groups, role_codes, rule, len(roles)):
            continue
        limit = _MAX_ROWS_PER_FILE * most_files + 1000
        table = _tabulate_batches(_key_batches(name_groups, role_codes, rule), roles, rule, limit)
        if table and (best is None or table.complete_count > best.complete_count):
            best = table
        if table and table.complete_count >= _MIN_COMPLETE_SHARE * table.rows:
            break
    best = best or _tabulate_batches(
        _key_batches(name_groups, role_codes, RULES[0]), roles, RULES[0], np.inf
    )
    assert best is not None
    return best


def build_table(
    items: Iterable[tuple[int, int, str]],
    roles: Sequence[str],
    rule: str,
    *,
    max_rows: float = np.inf,
) -> SampleTable | None:
    """Put files with the same key into one row; None if there are more than ``max_rows``.

    Args:
        items: For each file: index of the name, index into ``roles``, key.
        roles: Roles of the columns.
        rule: Name of the joining rule, for messages.
        max_rows: Largest number of rows.
    """
    rows: dict[str, int] = {}
    columns = [array("i") for _ in roles]
    claims: dict[tuple[int, str], list[int]] = {}
    for index, code, key in items:
        row = rows.get(key)
        if row is None:
            row = rows[key] = len(rows)
            for column in columns:
                column.append(-1)
            if row > max_rows:
                return None
        before = columns[code][row]
        if before == -1:
            columns[code][row] = index
        else:
            claims.setdefault((row, roles[code]), [before] if before >= 0 else []).append(index)
            columns[code][row] = -2
    members = {
        role: np.array(column, np.int32) for role, column in zip(roles, columns, strict=True)
    }
    return SampleTable(rule=rule, members=members, claims=claims)


def _path_key(folder: Folder, stem: str) -> str:
    return f"{folder.stripped}/{stem}"


def _folder_key(folder: Folder, stem: str) -> str:
    return f"{folder.last}/{stem}"


def _name_key(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return stem


def _numbers_key(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return "_".join(map(str, filenames.numbers(stem))) or stem


def _last_number_key(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return str(values[-1]) if (values := filenames.numbers(stem)) else stem


_KEY_FUNCTIONS: dict[str, Callable[[Folder, str], str]] = {
    "same path": _path_key,
    "same folder and name": _folder_key,
    "same name": _name_key,
    "same numbers": _numbers_key,
    "same last number": _last_number_key,
}
RULES = tuple(_KEY_FUNCTIONS)
"""Joining rules, the strictest first. All compare names without words for roles."""


def _key_batches(
    name_groups: NameGroups, role_codes: npt.NDArray[np.int8], rule: str
) -> Iterator[tuple[IntArray, int, list[str]]]:
    """Yield indexes, index of the role and keys of names with a role, many names at a time."""
    key, shared_folders = _KEY_FUNCTIONS[rule], name_groups.shared_folders
    stripped = filenames.StemCache().stripped
    folders: dict[str, Folder] = {}
    key_patterns: dict[int, KeyPattern | None] = {}

    def make_key(name: str) -> str:
        path, _, base = name.rpartition("/")
        folder = folders.get(path)
        if folder is None:
            folder = folders[path] = parse_folder(path, shared_folders)
        return key(folder, stripped(base.rpartition(".")[0].lower()))

    for outline, indexes, names in name_groups.patterns.batches(role_codes >= 0):
        code = int(role_codes[indexes[0]])
        if outline == UNGROUPED:
            for index, name in zip(indexes, names, strict=True):
                yield np.array([index], np.int32), int(role_codes[index]), [make_key(name)]
            continue
        if outline not in key_patterns:
            key_patterns[outline] = (
                find_key_pattern(names[0], shared_folders, _KEY_FOLDERS[rule])
                if rule in _KEY_FOLDERS
                else None
            )
        key_pattern = key_patterns[outline]
        yield (
            indexes,
            code,
            key_pattern.apply(names) if key_pattern else [make_key(name) for name in names],
        )


_KEY_FOLDERS = {
    "same path": ALL_FOLDERS,
    "same folder and name": LAST_FOLDER,
    "same name": NO_FOLDER,
}
"""Rules whose keys are at the same positions in all names of one outline."""


def _can_match(
    name_groups: NameGroups, role_codes: npt.NDArray[np.int8], rule: str, roles: int
) -> bool:
    """Return whether names of all roles can have equal keys. Looks at one name an outline.

    Keys of one outline's names differ in digits alone, unless a rule makes numbers of them.
    """
    rows, examples = role_codes >= 0, name_groups.patterns.examples
    outlines = name_groups.patterns.outline_index[rows]
    if rule not in _KEY_FOLDERS or len(examples) > _MOST_OUTLINES or (outlines == UNGROUPED).any():
        return True
    keys: list[set[bytes]] = [set() for _ in range(roles)]
    for pair in np.flatnonzero(np.bincount(outlines * roles + role_codes[rows])).tolist():
        path, _, base = examples[pair // roles].rpartition("/")
        stem = filenames.strip_words(base.rpartition(".")[0])
        key = _KEY_FUNCTIONS[rule](parse_folder(path, name_groups.shared_folders), stem)
        keys[pair % roles].add(key.encode("utf-8", "surrogatepass").translate(_ANY_DIGIT))
    return bool(set.intersection(*keys))


def _tabulate_batches(
    batches: Iterable[tuple[IntArray, int, list[str]]],
    roles: Sequence[str],
    rule: str,
    max_rows: float,
) -> SampleTable | None:
    """Build a table like ``build_table``, from many names at a time."""
    rows: dict[str, int] = {}
    columns = [np.full(1024, -1, np.int32) for _ in roles]
    claims: dict[tuple[int, str], list[int]] = {}
    for indexes, code, keys in batches:
        row_for = rows.setdefault
        numbers = np.array([row_for(key, len(rows)) for key in keys], np.int64)
        if len(rows) > max_rows:
            return None
        if len(rows) > len(columns[code]):
            room = np.full(len(rows) + len(rows) // 2 - len(columns[code]), -1, np.int32)
            columns[code] = np.concatenate((columns[code], room))
        column = columns[code]
        before = column[numbers]
        column[numbers] = indexes
        if (before == -1).all() and (column[numbers] == indexes).all():
            continue
        # Several names have one row: undo, and add them one by one.
        column[numbers] = before
        for row, index in zip(numbers.tolist(), indexes.tolist(), strict=True):
            old = int(column[row])
            if old == -1:
                column[row] = index
            else:
                claims.setdefault((row, roles[code]), [old] if old >= 0 else []).append(index)
                column[row] = -2
    members = {}
    for role, column in zip(roles, columns, strict=True):
        padded = np.full(len(rows), -1, np.int32)
        padded[: len(column)] = column[: len(rows)]
        members[role] = padded
    return SampleTable(rule=rule, members=members, claims=claims)
