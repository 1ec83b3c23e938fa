"""Which files belong together: every name gets a role, companions get one row of a table.

The comparing half of ``layout``: it sees all names, but knows nothing of backgrounds, keys of
shards or pixels. Nothing here pairs by position; what the names leave open stays apart.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.name_groups import Folder, NameGroups, study_folder
from shardify.layout.name_patterns import (
    ALL_FOLDERS,
    LAST_FOLDER,
    NO_FOLDER,
    UNGROUPED,
    KeyPattern,
    recipe_of,
)

__all__ = ["RULES", "SampleTable", "build_table", "join_by_name"]

IntArray = npt.NDArray[np.int32]

_NEARLY_ALL = 0.95
"""A rule that completes this share of its rows is the right one."""

_HOPELESS = 1.5
"""A rule that gives this many rows for each file of the fullest role brings nothing together."""

_NO_ROLE = -1

_MOST_OUTLINES = 1000
"""Of more outlines than this no rule is ruled out beforehand."""

_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """One row a sample, whole or not."""

    rule: str
    members: dict[str, IntArray]
    """role -> (rows,) int32 index of the name; -1: none, -2: more than one claims the place."""

    claims: dict[tuple[int, str], list[int]]
    """(row, role) -> indexes of the names that claim one place, where there are several."""

    warnings: tuple[str, ...] = ()
    """What a user should know of how it was made."""

    @property
    def rows(self) -> int:
        """How many samples there are, whole or not."""
        return len(next(iter(self.members.values())))

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """(rows,) bool: which samples have just one file in each role."""
        whole = np.ones(self.rows, np.bool_)
        for column in self.members.values():
            whole &= column >= 0
        return whole

    @property
    def complete(self) -> int:
        """How many samples are whole."""
        return int(self.whole.sum())


def join_by_name(census: NameGroups, role_of_group: Sequence[str | None]) -> SampleTable:
    """Bring companions together by the first of ``RULES`` that does so for nearly all.

    Args:
        census: The names and their groups.
        role_of_group: Role of each group; None for groups that are left out. Backgrounds are
            no part of a row.

    Returns:
        The table of the rule that completes the most samples; rows in no order that counts.
    """
    roles = [role for role in filenames.ROLES if role != "bg" and role in role_of_group]
    code = np.array(
        [roles.index(role) if role in roles else _NO_ROLE for role in role_of_group], np.int8
    )
    of_name = np.where(census.group >= 0, code[census.group], np.int8(_NO_ROLE))
    most = int(np.bincount(of_name[of_name >= 0]).max())
    best: SampleTable | None = None
    for rule in RULES:
        if not _may_meet(census, of_name, rule, len(roles)):
            continue
        limit = _HOPELESS * most + 1000
        table = _tabulate_batches(_keyed(census, of_name, rule), roles, rule, limit)
        if table and (best is None or table.complete > best.complete):
            best = table
        if table and table.complete >= _NEARLY_ALL * table.rows:
            break
    best = best or _tabulate_batches(_keyed(census, of_name, RULES[0]), roles, RULES[0], np.inf)
    assert best is not None
    return best


def build_table(
    items: Iterable[tuple[int, int, str]], roles: Sequence[str], rule: str, *, most: float = np.inf
) -> SampleTable | None:
    """Put what has the same key into one row.

    Args:
        items: Index of the name, which of ``roles``, key.
        roles: Of the table's columns.
        rule: What the table shall say of how it was made.
        most: With more rows than this it is given up.
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
            if row > most:
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


def _by_path(folder: Folder, stem: str) -> str:
    return f"{folder.stripped}/{stem}"


def _by_folder(folder: Folder, stem: str) -> str:
    return f"{folder.last}/{stem}"


def _by_name(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return stem


def _by_numbers(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return "_".join(map(str, filenames.numbers(stem))) or stem


def _by_last_number(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return str(found[-1]) if (found := filenames.numbers(stem)) else stem


_RULES: dict[str, Callable[[Folder, str], str]] = {
    "same path": _by_path,
    "same folder and name": _by_folder,
    "same name": _by_name,
    "same numbers": _by_numbers,
    "same last number": _by_last_number,
}
RULES = tuple(_RULES)
"""How companions are known, in order of trust. All compare names without words for roles."""


def _keyed(
    census: NameGroups, of_name: npt.NDArray[np.int8], rule: str
) -> Iterator[tuple[IntArray, int, list[str]]]:
    """Indexes, code of the role and joining keys of the names that have a role, many at a time."""
    key, shared = _RULES[rule], census.shared
    stripped = filenames.Shapes().stripped
    folders: dict[str, Folder] = {}
    recipes: dict[int, KeyPattern | None] = {}

    def one(name: str) -> str:
        path, _, base = name.rpartition("/")
        folder = folders.get(path)
        if folder is None:
            folder = folders[path] = study_folder(path, shared)
        return key(folder, stripped(base.rpartition(".")[0].lower()))

    for outline, indexes, names in census.outlines.batches(of_name >= 0):
        code = int(of_name[indexes[0]])
        if outline == UNGROUPED:
            for index, name in zip(indexes, names, strict=True):
                yield np.array([index], np.int32), int(of_name[index]), [one(name)]
            continue
        if outline not in recipes:
            recipes[outline] = recipe_of(names[0], shared, _PARTS[rule]) if rule in _PARTS else None
        recipe = recipes[outline]
        yield indexes, code, recipe.apply(names) if recipe else [one(name) for name in names]


_PARTS = {"same path": ALL_FOLDERS, "same folder and name": LAST_FOLDER, "same name": NO_FOLDER}
"""Rules whose keys are cut out of names at the same places for all of an outline."""


def _may_meet(census: NameGroups, of_name: npt.NDArray[np.int8], rule: str, roles: int) -> bool:
    """Whether a key can be that of a name of every role. Looks at one name an outline.

    Keys of one outline's names differ in digits alone, unless a rule makes numbers of them.
    """
    rows, examples = of_name >= 0, census.outlines.examples
    outlines = census.outlines.of_name[rows]
    if rule not in _PARTS or len(examples) > _MOST_OUTLINES or (outlines == UNGROUPED).any():
        return True
    keys: list[set[bytes]] = [set() for _ in range(roles)]
    for pair in np.flatnonzero(np.bincount(outlines * roles + of_name[rows])).tolist():
        path, _, base = examples[pair // roles].rpartition("/")
        stem = filenames.strip_words(base.rpartition(".")[0])
        key = _RULES[rule](study_folder(path, census.shared), stem)
        keys[pair % roles].add(key.encode("utf-8", "surrogatepass").translate(_ANY_DIGIT))
    return bool(set.intersection(*keys))


def _tabulate_batches(
    batches: Iterable[tuple[IntArray, int, list[str]]],
    roles: Sequence[str],
    rule: str,
    most: float,
) -> SampleTable | None:
    """As ``build_table``, of many names at a time."""
    rows: dict[str, int] = {}
    columns = [np.full(1024, -1, np.int32) for _ in roles]
    claims: dict[tuple[int, str], list[int]] = {}
    for indexes, code, keys in batches:
        find = rows.setdefault
        found = np.array([find(key, len(rows)) for key in keys], np.int64)
        if len(rows) > most:
            return None
        if len(rows) > len(columns[code]):
            room = np.full(len(rows) + len(rows) // 2 - len(columns[code]), -1, np.int32)
            columns[code] = np.concatenate((columns[code], room))
        column = columns[code]
        before = column[found]
        column[found] = indexes
        if (before == -1).all() and (column[found] == indexes).all():
            continue
        # Several names claim one place: go back, and take them one by one.
        column[found] = before
        for row, index in zip(found.tolist(), indexes.tolist(), strict=True):
            old = int(column[row])
            if old == -1:
                column[row] = index
            else:
                claims.setdefault((row, roles[code]), [old] if old >= 0 else []).append(index)
                column[row] = -2
    members = {}
    for role, column in zip(roles, columns, strict=True):
        whole = np.full(len(rows), -1, np.int32)
        whole[: len(column)] = column[: len(rows)]
        members[role] = whole
    return SampleTable(rule=rule, members=members, claims=claims)
