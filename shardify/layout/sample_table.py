"""Join the files of each sample into one row of a table, by their names.

Files are never paired by position. A file whose name matches no other gets a row of its own.
Several masks of one picture (``x_mask``, ``x_mask_1``; a folder of masks) are united if each surely
belongs to it; otherwise they claim one place, and the sample is not complete.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.layout.filenames import IntArray, OutlineCache, find_pieces, join_pieces
from shardify.layout.mask_parts import belong_together, end_after, find_gaps
from shardify.layout.name_groups import NameGroups
from shardify.layout.name_patterns import (
    ALL_FOLDERS,
    LAST_FOLDER,
    NO_FOLDER,
    UNGROUPED,
    KeyPattern,
    find_key_pattern,
)

RoleCodes = npt.NDArray[np.int8]
"""(N,) int8, index of each name's role; -1 for names that are not joined."""

Batch = tuple[IntArray, int, list[str]]
"""Files of one role: (n,) int32, indexes of the names; index of the role; n keys."""

FILE_EXTENSION = re.compile(r"_(?:jpe?g|png|tiff?|bmp)$")
"""End of a folder that is named as a file, once its words are stripped."""

_DIGIT = re.compile(r"[0-9]")
_LETTER = re.compile(r"[^\W\d_]")
_SEPARATOR = re.compile(r"[\W_]")
_WORD_END = re.compile(r"^[^\W_]*")
_NUMBER_FIRST = re.compile(r"[\W_]*\d")

_NO_ROLE = -1

_MIN_COMPLETE_SHARE = 0.95
"""A rule that completes this share of its rows is accepted without trying the others."""

_MAX_ROWS_PER_FILE = 1.5
"""A rule with more rows than this for each file of the largest role is given up."""

_MAX_CHECKED_OUTLINES = 1000
"""Of more outlines than this no rule is ruled out beforehand."""

_MIN_FILES_OF_CONSTANT_NUMBER = 8
"""Of fewer files a number at the end may be equal by chance."""


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
        complete: npt.NDArray[np.bool_] = np.min(list(self.members.values()), axis=0) >= 0
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
    codes: dict[str | None, int] = {role: code for code, role in enumerate(roles)}
    composites = codes.get("fg_bg", _NO_ROLE)
    # The last code is that of names without a group, -1.
    group_codes = np.array(
        [*(codes.get(role, _NO_ROLE) for role in role_of_group), _NO_ROLE], np.int8
    )
    role_codes = group_codes[name_groups.group]
    most_files = int(np.bincount(role_codes[role_codes >= 0]).max())
    max_rows = _MAX_ROWS_PER_FILE * most_files + 1000
    best: SampleTable | None = None
    best_rank = -1, -1
    for rule in RULES:
        if rule in _LOOSE_RULES and 2 * best_rank[0] > most_files:
            continue
        if not _can_match(name_groups, role_codes, rule, roles):
            continue
        batches = _joining_keys(name_groups, role_codes, rule, composites)
        table = build_table(batches, roles, rule, max_rows=max_rows)
        if table is None:
            continue
        # A picture that a further mask leaves in doubt is joined all the same.
        complete = table.complete_count
        if {"mask", "fg_bg"} <= set(roles):
            _unite_masks(name_groups, role_codes, table)
            complete = max(complete, table.complete_count)
        # Without complete samples, those that have too many files give the better reason.
        claimed = int(np.all([column != -1 for column in table.members.values()], axis=0).sum())
        rank = complete, 0 if complete else claimed
        if rank > best_rank:
            best, best_rank = table, rank
        if complete >= _MIN_COMPLETE_SHARE * table.rows:
            break
    best = best or build_table(_key_batches(name_groups, role_codes, RULES[0]), roles, RULES[0])
    assert best is not None
    return best


def build_table(
    batches: Iterable[Batch], roles: Sequence[str], rule: str, *, max_rows: float = np.inf
) -> SampleTable | None:
    """Put files with the same key into one row; None if there are more than ``max_rows``.

    Args:
        batches: The files of each role, many at a time.
        roles: Roles of the columns.
        rule: Name of the joining rule, for messages.
        max_rows: Largest number of rows.
    """
    rows: dict[str, int] = {}
    columns = [np.full(1024, -1, np.int32) for _ in roles]
    claims: dict[tuple[int, str], list[int]] = {}
    for indexes, code, keys in batches:
        numbers = np.array([rows.setdefault(key, len(rows)) for key in keys], np.int64)
        if len(rows) > max_rows:
            return None
        if len(rows) > len(columns[code]):
            columns[code] = _lengthen(columns[code], len(rows) + len(rows) // 2)
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
    members = {
        role: _lengthen(column, len(rows))[: len(rows)]
        for role, column in zip(roles, columns, strict=True)
    }
    return SampleTable(rule=rule, members=members, claims=claims)


def _lengthen(column: IntArray, length: int) -> IntArray:
    """Return a column with -1 in its new rows."""
    return np.pad(column, (0, max(0, length - len(column))), constant_values=-1)


def _joining_keys(
    name_groups: NameGroups, role_codes: RoleCodes, rule: str, composites: int
) -> Iterator[Batch]:
    """Yield what ``_key_batches`` does, with the keys of rules that compare all files of a role.

    ``composites`` is the index of the role of composites.
    """
    ends: dict[int, int] = {}
    pictures: set[str] = set()
    if rule == _CONSTANT_END:
        ends = _constant_ends(_key_batches(name_groups, role_codes, rule))
    elif rule in (*BY_NAME_START, BY_FOLDER[1]):
        picture_codes = _only(role_codes, np.flatnonzero(role_codes == composites))
        picture_rule = "same name" if rule == BY_FOLDER[1] else rule
        for _, _, keys in _key_batches(name_groups, picture_codes, picture_rule):
            pictures.update(keys)
    for indexes, code, keys in _key_batches(name_groups, role_codes, rule):
        if rule == _CONSTANT_END:
            keys = [key[: len(key) - ends[code]] or key for key in keys]
        elif rule in BY_NAME_START and code != composites:
            keys = [_longest_start(key, pictures) or key for key in keys]
        elif rule == BY_FOLDER[1]:
            keys = [_picture_or_stem(key, pictures if code != composites else ()) for key in keys]
        yield indexes, code, keys


def _picture_or_stem(key: str, pictures: Container[str]) -> str:
    """Return the folder of a key if it is named as a picture, else the key's stem."""
    folder, _, stem = key.rpartition("/")
    # A folder may be named as the picture with its extension: masks/x.jpg/0.png.
    folder = FILE_EXTENSION.sub("", folder)
    return folder if folder in pictures else stem


def _constant_ends(batches: Iterable[Batch]) -> dict[int, int]:
    """Return role -> length of the words that all its keys end in, such as ``-dpt_large_512``.

    A number alone counts if no other role has another one there: it may tell samples apart.
    """
    ends: dict[int, str] = {}
    files: Counter[int] = Counter()
    for _, code, keys in batches:
        backwards = [key[::-1] for key in keys]
        backwards.append(ends.get(code, backwards[0]))
        low, high = min(backwards), max(backwards)
        pairs = enumerate(zip(low, high, strict=False))
        ends[code] = low[: next((place for place, (a, b) in pairs if a != b), len(low))]
        files[code] += len(keys)
    # What of a common end is not a whole part of the name does not count.
    whole = {code: _WORD_END.sub("", end[::-1], count=1) for code, end in ends.items()}
    numbers = {end for end in whole.values() if end and not _LETTER.search(end)}
    lengths = {}
    for code, end in whole.items():
        fewest = _MIN_FILES_OF_CONSTANT_NUMBER if end in numbers else 2
        differs = end in numbers and len(numbers) > 1
        lengths[code] = 0 if differs or files[code] < fewest else len(end)
    return lengths


def _longest_start(key: str, keys: set[str]) -> str:
    """Return the longest of ``keys`` that ``key`` is or begins with; empty without one."""
    if key in keys:
        return key
    return next((start for start in _starts(key) if start in keys), "")


def _starts(key: str) -> list[str]:
    """Return the parts of a key before each of its separators, the longest first."""
    return [key[: match.start()] for match in _SEPARATOR.finditer(key)][::-1]


def _unite_masks(name_groups: NameGroups, role_codes: RoleCodes, table: SampleTable) -> None:
    """Unite the masks of each picture that has several; if in doubt, they claim one place.

    A mask of no picture whose name continues that of one (``x_mask_1`` beside ``x_mask``) is a
    further mask of that picture.
    """
    names, masks, composites = name_groups.names, table.members["mask"], table.members["fg_bg"]
    several = {
        row: indexes
        for (row, role), indexes in table.claims.items()
        if role == "mask" and composites[row] >= 0
    }
    if table.rule not in (*BY_NAME_START, *BY_FOLDER):
        for index, row, picture_row in _continued_pictures(name_groups, role_codes, table):
            several.setdefault(picture_row, [int(masks[picture_row])]).append(index)
            masks[row] = -1
    for row, indexes in several.items():
        indexes.sort(key=names.__getitem__)
        if belong_together(
            names[int(composites[row])],
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
    _leave_out_gaps(names, table)


def unite_claimed_masks(table: SampleTable, names: Sequence[str]) -> None:
    """Unite the masks of every picture that has several; changes the table."""
    for (row, role), indexes in list(table.claims.items()):
        if role == "mask":
            first, *others = sorted(indexes, key=names.__getitem__)
            table.members["mask"][row] = first
            table.united[first] = others
            del table.claims[row, role]
    _leave_out_gaps(names, table)


def _leave_out_gaps(names: Sequence[str], table: SampleTable) -> None:
    """Leave out pictures whose united masks are numbered with a gap: a part is missing."""
    if not table.united:
        return
    masks, composites = table.members["mask"], table.members["fg_bg"]
    ends: dict[int, list[str]] = {}
    for row in np.flatnonzero((masks >= 0) & (composites >= 0)).tolist():
        first, picture = int(masks[row]), names[int(composites[row])]
        mask_names = [names[index] for index in (first, *table.united.get(first, ()))]
        row_ends = [_end_or_stem(picture, name) for name in mask_names]
        if len(row_ends) > 1 or _DIGIT.search(row_ends[0]):
            ends[row] = row_ends
    united = [row for row in ends if int(masks[row]) in table.united]
    for row, number in find_gaps(ends, united).items() if united else ():
        first = int(masks[row])
        table.claims[row, "mask"] = [first, *table.united.pop(first, ())]
        table.gaps[row] = f"its masks are numbered with a gap: mask {number} is missing"
        masks[row] = -2


def _end_or_stem(picture: str, mask: str) -> str:
    end = end_after(picture, mask)
    return filenames.file_stem(mask).lower() if end is None else end


def _continued_pictures(
    name_groups: NameGroups, role_codes: RoleCodes, table: SampleTable
) -> list[tuple[int, int, int]]:
    """Return masks of no picture whose names continue one: (index, its row, the picture's row)."""
    names, masks, composites = name_groups.names, table.members["mask"], table.members["fg_bg"]
    alone = np.flatnonzero((masks >= 0) & (composites == -1))
    if not len(alone):
        return []
    with_mask = np.flatnonzero((masks != -1) & (composites >= 0))
    picture_rows = dict(zip(composites[with_mask].tolist(), with_mask.tolist(), strict=True))
    own_rows = dict(zip(masks[alone].tolist(), alone.tolist(), strict=True))
    pictures: dict[str, int] = {}
    picture_codes = _only(role_codes, composites[with_mask])
    for indexes, _, keys in _key_batches(name_groups, picture_codes, table.rule):
        for index, key in zip(indexes.tolist(), keys, strict=True):
            pictures[key] = -1 if key in pictures else index
    continued = []
    mask_codes = _only(role_codes, masks[alone])
    for indexes, _, keys in _key_batches(name_groups, mask_codes, table.rule):
        for index, key in zip(indexes.tolist(), keys, strict=True):
            picture = next((pictures[start] for start in _starts(key) if start in pictures), -1)
            if picture == -1:
                continue
            end = end_after(names[picture], names[index])
            # x_2_mask is the mask of x_2.
            if end is None or not (_NUMBER_FIRST.match(end) and _LETTER.search(end)):
                continued.append((index, own_rows[index], picture_rows[picture]))
    return continued


def _only(role_codes: RoleCodes, indexes: IntArray | npt.NDArray[np.int64]) -> RoleCodes:
    """Return the codes of some files; -1 for all others."""
    only = np.full_like(role_codes, _NO_ROLE)
    only[indexes] = role_codes[indexes]
    return only


def _numbers_key(stem: str) -> str:
    return "_".join(filenames.number_words(stem)) or stem


def _picture_folder_key(folder: str, stem: str) -> str:
    # A folder of a split, or of all files, is that of no picture.
    is_split = filenames.split_in_path(_innermost(folder))
    return f"/{stem}" if not folder or is_split else folder


def _innermost(folder: str) -> str:
    return folder.rpartition("/")[2]


_CONSTANT_END = "same name but for a constant end"
BY_NAME_START = ("path begins with that of the picture", "name begins with that of the picture")
BY_FOLDER = ("folder of one picture", "folder named as the picture")
FOLDER_AND_NUMBERS = "same folder and numbers"
_KEY_FUNCTIONS: dict[str, Callable[[str, str], str]] = {
    "same path": lambda folder, stem: f"{folder}/{stem}",
    "same folder and name": lambda folder, stem: f"{_innermost(folder)}/{stem}",
    "same name": lambda _, stem: stem,
    _CONSTANT_END: lambda _, stem: stem,
    BY_NAME_START[0]: lambda folder, stem: f"{folder}/{stem}",
    BY_NAME_START[1]: lambda _, stem: stem,
    BY_FOLDER[0]: _picture_folder_key,
    BY_FOLDER[1]: lambda folder, stem: f"{_innermost(folder)}/{stem}",
    FOLDER_AND_NUMBERS: lambda folder, stem: f"{_innermost(folder)}/{_numbers_key(stem)}",
    "same numbers": lambda _, stem: _numbers_key(stem),
    "same last number": lambda _, stem: (filenames.number_words(stem) or [stem])[-1],
}
"""Rule -> function that makes a key of a folder's path and a stem, both without role words."""
RULES = tuple(_KEY_FUNCTIONS)
"""Joining rules, the strictest first. All compare names without words for roles."""

_LOOSE_RULES = frozenset(RULES[3:8])
"""Rules that are not tried if a stricter one completes most samples."""

_KEY_FOLDERS = {
    "same path": ALL_FOLDERS,
    "same folder and name": LAST_FOLDER,
    "same name": NO_FOLDER,
}
"""Rules whose keys are at the same positions in all names of one outline."""


def _key_batches(name_groups: NameGroups, role_codes: RoleCodes, rule: str) -> Iterator[Batch]:
    """Yield the names that have a role, many of one role at a time."""
    make_key, shared_folders = _KEY_FUNCTIONS[rule], name_groups.shared_folders
    stem_pieces = OutlineCache(find_pieces)
    folders: dict[str, str] = {}
    key_patterns: dict[int, KeyPattern | None] = {}

    def parse_key(name: str) -> str:
        path, _, base = name.rpartition("/")
        folder = folders.get(path)
        if folder is None:
            folder = folders[path] = _strip_folders(path, shared_folders)
        stem = base.rpartition(".")[0].lower()
        return make_key(folder, join_pieces(stem, stem_pieces(stem)))

    for outline, indexes, names in name_groups.patterns.batches(role_codes >= 0):
        if outline == UNGROUPED:
            for index, name in zip(indexes, names, strict=True):
                yield np.array([index], np.int32), int(role_codes[index]), [parse_key(name)]
            continue
        if outline not in key_patterns:
            key_patterns[outline] = (
                find_key_pattern(names[0], shared_folders, _KEY_FOLDERS[rule])
                if rule in _KEY_FOLDERS
                else None
            )
        key_pattern = key_patterns[outline]
        keys = key_pattern.apply(names) if key_pattern else list(map(parse_key, names))
        yield indexes, int(role_codes[indexes[0]]), keys


def _strip_folders(path: str, shared_folders: int) -> str:
    """Return a folder's path without role words and without its outermost shared folders."""
    stripped = map(filenames.strip_words, path.split("/")[shared_folders:])
    return "/".join(part for part in stripped if part)


def _can_match(
    name_groups: NameGroups, role_codes: RoleCodes, rule: str, roles: Sequence[str]
) -> bool:
    """Return whether names of all roles can have equal keys. Looks at one name an outline.

    Keys of one outline's names differ in digits alone, unless a rule makes numbers of them.
    """
    patterns = name_groups.patterns
    rows = role_codes >= 0
    outlines = patterns.outline_index[rows]
    if (
        rule not in (*_KEY_FOLDERS, *_LOOSE_RULES)
        or len(patterns.examples) > _MAX_CHECKED_OUTLINES
        or (outlines == UNGROUPED).any()
    ):
        return True
    keys: list[set[str]] = [set() for _ in roles]
    pairs = np.bincount(outlines * len(roles) + role_codes[rows])
    for pair in np.flatnonzero(pairs).tolist():
        outline, role = divmod(pair, len(roles))
        path, _, base = patterns.examples[outline].rpartition("/")
        stem = filenames.strip_words(base.rpartition(".")[0])
        key = _KEY_FUNCTIONS[rule](_strip_folders(path, name_groups.shared_folders), stem)
        keys[role].add(_DIGIT.sub("0", key))
    if rule in BY_NAME_START:
        pictures = keys[roles.index("fg_bg")] if "fg_bg" in roles else set()
        return all(any(_longest_start(key, pictures) for key in role_keys) for role_keys in keys)
    if rule in BY_FOLDER:
        # Some folder must tell pictures apart.
        return any(not key.startswith("/") for role_keys in keys for key in role_keys)
    if rule == _CONSTANT_END:
        keys = [{_SEPARATOR.split(key)[0] for key in role_keys} for role_keys in keys]
    return bool(set.intersection(*keys))
