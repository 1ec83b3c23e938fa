"""Join the files of each sample into one row of a table, by their names.

Files are never paired by position. A file whose name matches no other gets a row of its own.
Several masks of one picture (``x_mask``, ``x_mask_1``; a folder of masks) are united if each surely
belongs to it; otherwise they claim one place, and the sample is not complete.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.mask_parts import (
    DIGIT,
    FILE_EXTENSION,
    HAS_LETTER,
    NUMBER_FIRST,
    SEPARATOR,
    WORD_END,
    belong_together,
    end_after,
    find_gaps,
)
from shardify.layout.name_groups import Folder, NameGroups, parse_folder
from shardify.layout.name_patterns import (
    ALL_FOLDERS,
    LAST_FOLDER,
    NO_FOLDER,
    UNGROUPED,
    KeyPattern,
    find_key_pattern,
)

IntArray = npt.NDArray[np.int32]

_MIN_COMPLETE_SHARE = 0.95
"""A rule that completes this share of its rows is accepted without trying the others."""

_MAX_ROWS_PER_FILE = 1.5
"""A rule with more rows than this for each file of the largest role is given up."""

_NO_ROLE = -1

_MOST_OUTLINES = 1000
"""Of more outlines than this no rule is ruled out beforehand."""


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

    united: dict[int, list[int]] = field(default_factory=dict)
    """Index of a mask -> indexes of the other masks of its sample, which are united with it."""

    gaps: dict[int, str] = field(default_factory=dict)
    """Row -> why its masks are not all there, if their numbers have a gap."""

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
    """Join files by the first of ``RULES`` that completes nearly all samples, and unite masks.

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
    most_complete, most_claimed = -1, -1
    composites = roles.index("fg_bg") if "fg_bg" in roles else _NO_ROLE
    for rule in RULES:
        if not _can_match(name_groups, role_codes, rule, roles):
            continue
        if rule in _LOOSE_RULES and 2 * most_complete > most_files:
            continue
        limit = _MAX_ROWS_PER_FILE * most_files + 1000
        batches = _batches(name_groups, role_codes, rule, composites)
        table = _tabulate_batches(batches, roles, rule, limit)
        if table is None:
            continue
        # A picture that a further mask leaves in doubt is joined all the same.
        complete = table.complete_count
        if {"mask", "fg_bg"} <= set(roles):
            _unite_masks(name_groups, role_codes, table)
            complete = max(complete, table.complete_count)
        # Without complete samples, those that have too many files give the better reason.
        claimed = int(np.all([column != -1 for column in table.members.values()], axis=0).sum())
        if complete > most_complete or (complete == most_complete == 0 and claimed > most_claimed):
            best, most_complete, most_claimed = table, complete, claimed
        if complete >= _MIN_COMPLETE_SHARE * table.rows:
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
    return "_".join(filenames.number_words(stem)) or stem


def _folder_numbers_key(folder: Folder, stem: str) -> str:
    return f"{folder.last}/{_numbers_key(folder, stem)}"


def _last_number_key(folder: Folder, stem: str) -> str:  # noqa: ARG001
    return values[-1] if (values := filenames.number_words(stem)) else stem


def _batches(
    name_groups: NameGroups, role_codes: npt.NDArray[np.int8], rule: str, composites: int
) -> Iterator[tuple[IntArray, int, list[str]]]:
    """Yield what ``_key_batches`` does, with the keys of a rule that looks at all files of a role.

    Args:
        name_groups: The names in groups.
        role_codes: (N,) role of each name.
        rule: One of ``RULES``.
        composites: Number of the role of composites.
    """
    batches = _key_batches(name_groups, role_codes, rule)
    if rule == _CONSTANT_END:
        cut = _constant_ends(batches)
        for indexes, code, keys in _key_batches(name_groups, role_codes, rule):
            yield indexes, code, [key[: len(key) - cut[code]] or key for key in keys]
        return
    if rule not in (*BY_NAME_START, BY_FOLDER[1]):
        yield from batches
        return
    by_folder = rule == BY_FOLDER[1]
    of_pictures = _key_batches(
        name_groups,
        np.where(role_codes == composites, role_codes, np.int8(_NO_ROLE)),
        "same name" if by_folder else rule,
    )
    pictures = {key for _, _, keys in of_pictures for key in keys}
    for indexes, code, keys in batches:
        if by_folder:
            # A folder may be named as the picture with its extension: masks/x.jpg/0.png.
            parted = (
                (FILE_EXTENSION.sub("", folder), "", stem)
                for folder, _, stem in (key.rpartition("/") for key in keys)
            )
            yield (
                indexes,
                code,
                [
                    folder if code != composites and folder in pictures else stem
                    for folder, _, stem in parted
                ],
            )
        elif code == composites:
            yield indexes, code, keys
        else:
            yield indexes, code, [_longest_start(key, pictures) or key for key in keys]


_MIN_FILES_OF_CONSTANT_NUMBER = 8
"""Of fewer files a number at the end may be equal by chance."""


def _constant_ends(batches: Iterable[tuple[IntArray, int, list[str]]]) -> dict[int, int]:
    """Return role -> length of the words that all its keys end in, such as ``-dpt_large_512``.

    A number alone counts if no other role has another one there: it may tell samples apart.
    """
    ends: dict[int, str] = {}
    files: Counter[int] = Counter()
    for _, code, keys in batches:
        backwards = [key[::-1] for key in keys] + ([ends[code]] if code in ends else [])
        low, high = min(backwards), max(backwards)
        pairs = enumerate(zip(low, high, strict=False))
        ends[code] = low[: next((place for place, (a, b) in pairs if a != b), len(low))]
        files[code] += len(keys)
    # What of a common end is not a whole part of the name does not count.
    whole = {code: WORD_END.sub("", end[::-1], count=1) for code, end in ends.items()}
    bare = {end for end in whole.values() if end and not HAS_LETTER.search(end)}
    least = {code: 2 if end not in bare else _MIN_FILES_OF_CONSTANT_NUMBER
             for code, end in whole.items()}  # fmt: skip
    return {
        code: len(end) if files[code] >= least[code] and not (end in bare and len(bare) > 1) else 0
        for code, end in whole.items()
    }


def _longest_start(key: str, keys: set[str]) -> str:
    """Return the longest of ``keys`` that ``key`` is or begins with; empty without one."""
    if key in keys:
        return key
    return next((start for start in _starts(key) if start in keys), "")


def _starts(key: str) -> list[str]:
    """Return the parts of a key before each of its separators, the longest first."""
    return [key[: match.start()] for match in SEPARATOR.finditer(key)][::-1]


def _unite_masks(
    name_groups: NameGroups, role_codes: npt.NDArray[np.int8], table: SampleTable
) -> None:
    """Unite the masks of each picture that has several; if in doubt, they claim one place.

    A mask of no picture whose name continues that of one (``x_mask_1`` beside ``x_mask``) is a
    further mask of that picture.
    """
    names, masks, fronts = name_groups.names, table.members["mask"], table.members["fg_bg"]
    several = {
        row: indexes
        for (row, role), indexes in table.claims.items()
        if role == "mask" and fronts[row] >= 0
    }
    if table.rule not in (*BY_NAME_START, *BY_FOLDER):
        for index, row, front in _continued_pictures(name_groups, role_codes, table):
            several.setdefault(front, [int(masks[front])]).append(index)
            masks[row] = -1
    for row, indexes in several.items():
        indexes.sort(key=names.__getitem__)
        if belong_together(
            names[int(fronts[row])],
            [names[index] for index in indexes],
            in_own_folder=table.rule in BY_FOLDER,
            begin_with_picture=table.rule in BY_NAME_START,
        ):
            masks[row] = indexes[0]
            table.united[indexes[0]] = indexes[1:]
            table.claims.pop((row, "mask"), None)
        else:
            masks[row] = -2
            table.claims[row, "mask"] = indexes
    if table.united:
        _leave_out_gaps(names, table)


def _leave_out_gaps(names: Sequence[str], table: SampleTable) -> None:
    """Leave out pictures whose masks are numbered with a gap: a part of the object is missing."""
    masks, fronts = table.members["mask"], table.members["fg_bg"]
    known: dict[int, list[str]] = {}
    for row in np.flatnonzero((masks >= 0) & (fronts >= 0)).tolist():
        first = int(masks[row])
        indexes = [first, *table.united.get(first, ())]
        ends = [end_after(names[int(fronts[row])], names[index]) for index in indexes]
        stems = [filenames.file_stem(names[index]).lower() for index in indexes]
        texts = [stem if end is None else end for end, stem in zip(ends, stems, strict=True)]
        if len(indexes) > 1 or DIGIT.search(texts[0]):
            known[row] = texts
    united = [row for row in known if int(masks[row]) in table.united]
    for row, number in find_gaps(known, united).items() if united else ():
        first = int(masks[row])
        table.claims[row, "mask"] = [first, *table.united.pop(first, ())]
        table.gaps[row] = f"its masks are numbered with a gap: mask {number} is missing"
        masks[row] = -2


def unite_claimed_masks(table: SampleTable, names: Sequence[str]) -> None:
    """Unite the masks of every picture that has several; changes the table."""
    for (row, role), indexes in list(table.claims.items()):
        if role == "mask":
            first, *more = sorted(indexes, key=names.__getitem__)
            table.members["mask"][row] = first
            table.united[first] = more
            del table.claims[row, role]
    if table.united:
        _leave_out_gaps(names, table)


def _continued_pictures(
    name_groups: NameGroups, role_codes: npt.NDArray[np.int8], table: SampleTable
) -> list[tuple[int, int, int]]:
    """Return masks of no picture whose names continue one: (index, its row, the picture's row)."""
    names, masks, fronts = name_groups.names, table.members["mask"], table.members["fg_bg"]
    alone = np.flatnonzero((masks >= 0) & (fronts == -1))
    if not len(alone):
        return []
    rule, taken = table.rule, fronts[(masks != -1) & (fronts >= 0)]
    pictures: dict[str, int] = {}
    for indexes, _, keys in _key_batches(name_groups, _only(role_codes, taken), rule):
        for index, key in zip(indexes.tolist(), keys, strict=True):
            pictures[key] = -1 if key in pictures else index
    pairs: dict[int, int] = {}
    for indexes, _, keys in _key_batches(name_groups, _only(role_codes, masks[alone]), rule):
        for index, key in zip(indexes.tolist(), keys, strict=True):
            picture = next((pictures[start] for start in _starts(key) if start in pictures), -1)
            end = end_after(names[picture], names[index]) if picture >= 0 else ""
            # x_2_mask is the mask of x_2.
            if picture >= 0 and not (
                end is not None and NUMBER_FIRST.match(end) and HAS_LETTER.search(end)
            ):
                pairs[index] = picture
    rows = np.flatnonzero(np.isin(fronts, list(pairs.values())))
    front_rows = dict(zip(fronts[rows].tolist(), rows.tolist(), strict=True))
    own_rows = dict(zip(masks[alone].tolist(), alone.tolist(), strict=True)) if pairs else {}
    found = [(index, own_rows[index], front_rows[picture]) for index, picture in pairs.items()]
    return found


def _only(role_codes: npt.NDArray[np.int8], indexes: IntArray) -> npt.NDArray[np.int8]:
    """Return the codes of some files; -1 for all others."""
    only = np.full_like(role_codes, _NO_ROLE)
    only[indexes] = role_codes[indexes]
    return only


def _whole_folder_key(folder: Folder, stem: str) -> str:
    # A folder of a split, or of all files, is that of no picture.
    own = folder.last and not filenames.split_in_path(folder.last)
    return folder.stripped if own else f"/{stem}"


_CONSTANT_END = "same name but for a constant end"
BY_NAME_START = ("path begins with that of the picture", "name begins with that of the picture")
BY_FOLDER = ("folder of one picture", "folder named as the picture")
FOLDER_AND_NUMBERS = "same folder and numbers"
_KEY_FUNCTIONS: dict[str, Callable[[Folder, str], str]] = {
    "same path": _path_key,
    "same folder and name": _folder_key,
    "same name": _name_key,
    _CONSTANT_END: _name_key,
    BY_NAME_START[0]: _path_key,
    BY_NAME_START[1]: _name_key,
    BY_FOLDER[0]: _whole_folder_key,
    BY_FOLDER[1]: _folder_key,
    FOLDER_AND_NUMBERS: _folder_numbers_key,
    "same numbers": _numbers_key,
    "same last number": _last_number_key,
}
RULES = tuple(_KEY_FUNCTIONS)
"""Joining rules, the strictest first. All compare names without words for roles."""

_LOOSE_RULES = frozenset(RULES[3:8])
"""Rules that are not tried if a stricter one completes most samples."""


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
    name_groups: NameGroups, role_codes: npt.NDArray[np.int8], rule: str, roles: Sequence[str]
) -> bool:
    """Return whether names of all roles can have equal keys. Looks at one name an outline.

    Keys of one outline's names differ in digits alone, unless a rule makes numbers of them.
    """
    rows, examples = role_codes >= 0, name_groups.patterns.examples
    outlines = name_groups.patterns.outline_index[rows]
    if (
        rule not in (*_KEY_FOLDERS, *_LOOSE_RULES)
        or len(examples) > _MOST_OUTLINES
        or (outlines == UNGROUPED).any()
    ):
        return True
    count = len(roles)
    keys: list[set[str]] = [set() for _ in roles]
    for pair in np.flatnonzero(np.bincount(outlines * count + role_codes[rows])).tolist():
        path, _, base = examples[pair // count].rpartition("/")
        stem = filenames.strip_words(base.rpartition(".")[0])
        key = _KEY_FUNCTIONS[rule](parse_folder(path, name_groups.shared_folders), stem)
        keys[pair % count].add(DIGIT.sub("0", key))
    pictures = keys[roles.index("fg_bg")] if "fg_bg" in roles else set()
    if rule in BY_NAME_START:
        return all(any(_longest_start(key, pictures) for key in each) for each in keys)
    if rule == _CONSTANT_END:
        return bool(set.intersection(*({SEPARATOR.split(key)[0] for key in each} for each in keys)))
    if rule in BY_FOLDER:
        # Some folder must tell pictures apart.
        return any(not key.startswith("/") for each in keys for key in each)
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
