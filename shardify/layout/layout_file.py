r"""Layout files: a data set's own rules, where detection cannot find them or should not guess.

A layout file is TOML::

    join = 'names'       # or 'map': what stands in one row of the map is one sample
    map = 'pairs.csv'    # if needed: a csv, tsv or txt beside this file, or in the source

    [roles]              # regular expressions for whole paths
    bg = ['backgrounds/park(?P<bg>\d+)\.jpg']
    fg_bg = ['fg_bg/(?P<bg>\d+)_(?P<n>\d+)\.jpg']
    mask = ['masks/(?P<n>\d+)\.png']

    [background]
    rule = 'number'      # number, order, block, modulo, name, map, only or none
    number = 'bg'        # the group that holds the sample's number
    check = true         # prove it by pixels

Files whose common named groups are equal (as numbers, where they are) are one sample. Groups with
a meaning of their own: ``bg``, the background's name or number; ``fg``, the foreground's;
``split``, ``train`` or ``val``. ``number`` takes ``offset``; ``order`` takes ``order``
(lexicographic or natural) and ``first`` (0 or 1), as do ``modulo`` and ``block``, which also takes
``size``.

This module parses and applies rules. It proposes none, and knows no pixel.
"""

import re
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.csv_map import Row, join_by_map, rows_of
from shardify.layout.sample_table import SampleTable, build_table

__all__ = [
    "BACKGROUND_RULES",
    "Applied",
    "Rules",
    "apply",
    "load",
    "map_rows",
    "match",
    "parse",
    "slots_of",
    "text_of",
]

IntArray = npt.NDArray[np.int32]

BACKGROUND_RULES = ("number", "order", "block", "modulo", "name", "map", "only", "none")

_SETTINGS: dict[str, type] = {
    "rule": str, "number": str, "order": str, "offset": int, "first": int,
    "size": int, "check": bool,
}  # fmt: skip
_PRECEDENCE = ("depth", "mask", "bg", "fg_bg")
"""Where a path matches the patterns of several roles, the first of these has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a layout file says."""

    patterns: Mapping[str, tuple[re.Pattern[str], ...]]
    background: Mapping[str, str | int]
    check: bool = True
    """Whether pixels must agree."""
    map: str | None = None
    """Name of the map."""
    join: str = "names"
    """``names`` or ``map``."""
    rows: Sequence[Row] | None = None
    """Of the map, where it lies beside the layout file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What rules make of a source's names."""

    table: SampleTable
    backgrounds: list[int]
    """Indexes of the background files."""
    unmatched: int
    """Files that no pattern matches."""


def load(path: Path) -> Rules:
    """Read a layout file, and the map beside it, if it names one and that is there.

    Raises:
        LayoutError: It cannot be read, is no TOML, or says what no rule understands.
    """
    try:
        rules = parse(path.read_text(encoding="utf-8"), where=str(path))
        beside = path.parent / rules.map if rules.map else None
        rows = rows_of(beside.read_bytes(), beside.name) if beside and beside.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise LayoutError(
            f"{path}: cannot be read ({reason}); expected a layout file; see shardify inspect"
        ) from error
    return replace(rules, rows=rows)


def parse(text: str, *, where: str) -> Rules:
    """The rules in a layout file's text.

    Raises:
        LayoutError: It is no TOML, or says what no rule understands.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LayoutError(f"{where}: not TOML ({error}); expected a layout file") from error
    unknown = set(table) - {"roles", "background", "map", "join"}
    if unknown:
        raise LayoutError(
            f"{where}: {min(unknown)} means nothing; expected join, map, [roles], [background]"
        )
    patterns = _patterns(table.get("roles"), where)
    settings = _settings(
        table.get("background", {"rule": "number" if "bg" in patterns else "none"}), where
    )
    file, join = table.get("map"), table.get("join", "names")
    if join not in ("names", "map") or not isinstance(file, str | None):
        raise LayoutError(f"{where}: join is neither 'names' nor 'map', or map is no file's name")
    if "map" in (join, settings["rule"]) and file is None:
        raise LayoutError(f"{where}: a map is asked for; expected map = 'file.csv'; add it")
    check = bool(settings.pop("check", True))
    return Rules(patterns=patterns, background=settings, check=check, map=file, join=join)


def map_rows(rules: Rules, names: Sequence[str], read: Callable[[int], bytes] | None) -> list[Row]:
    """The rows of the map that the rules name: beside the layout file, or else in the source."""
    if rules.rows is not None or rules.map is None:
        return list(rules.rows or ())
    tail = f"/{rules.map.strip('/')}"
    found = [index for index, name in enumerate(names) if f"/{name}".endswith(tail)]
    if len(found) != 1 or read is None:
        raise LayoutError(
            f"{rules.map}: the layout file's map is not beside it, and {len(found)} files of the "
            f"source have this name; expected one"
        )
    return rows_of(read(found[0]), names[found[0]])


def apply(
    rules: Rules, names: Sequence[str], rows: Callable[[], list[Row]], *, where: str
) -> Applied:
    """Match every name and bring companions together.

    Args:
        rules: What to apply.
        names: Of the source.
        rows: Gives the map's rows, where the rules join by it.
        where: What to call the source in an error.

    Raises:
        LayoutError: A role's patterns match nothing, or nothing tells which files are companions.
    """
    roles = [role for role in filenames.ROLES if role in rules.patterns and role != "bg"]
    shared = _shared_groups(rules, roles, where) if rules.join == "names" else []
    backgrounds: list[int] = []
    unmatched: list[int] = []

    def items() -> Iterator[tuple[int, int, str]]:
        for index, name in enumerate(names):
            role, found = match(rules, name)
            if role is None or found is None:
                unmatched.append(index)
            elif role == "bg":
                backgrounds.append(index)
            else:
                values = (found.groupdict().get(each) or "" for each in shared)
                key = "/".join(each.lstrip("0") if each.isdecimal() else each for each in values)
                yield index, roles.index(role), key

    table: SampleTable | None
    if rules.join == "names":
        table = build_table(items(), roles, "layout file")
    else:
        files: dict[str, list[int]] = {role: [] for role in roles}
        for index, code, _ in items():
            files[roles[code]].append(index)
        arrays = {role: np.array(indexes, np.int32) for role, indexes in files.items()}
        table = join_by_map(names, arrays, backgrounds, rows(), where=where)
    for role in roles:
        if table is None or (table.members[role] == -1).all():
            raise LayoutError(
                f"{where}: nothing matches the patterns of {role} ("
                f"{rules.patterns[role][0].pattern}) and the map, if any; correct the layout file"
            )
    assert table is not None
    return Applied(table=table, backgrounds=backgrounds, unmatched=len(unmatched))


def match(rules: Rules, name: str) -> tuple[str | None, re.Match[str] | None]:
    """Role of one path, and how it matched."""
    for role in _PRECEDENCE:
        for pattern in rules.patterns.get(role, ()):
            found = pattern.fullmatch(name)
            if found:
                return role, found
    return None, None


def slots_of(rules: Rules, names: Sequence[str], members: IntArray) -> dict[str, IntArray]:
    """Every named group of the composites that is a number in all of them."""
    values: dict[str, list[int]] = {}
    for row, index in enumerate(members.tolist()):
        _, found = match(rules, names[index])
        for name, text in (found.groupdict() if found else {}).items():
            if text and text.isdecimal() and len(text) < 10:
                column = values.setdefault(name, [])
                if len(column) == row:
                    column.append(int(text))
    return {
        name: np.array(column, np.int32)
        for name, column in values.items()
        if len(column) == len(members)
    }


def text_of(rules: Rules, name: str, group: str) -> str | None:
    """What a group holds in one path; None where it has no such group."""
    _, found = match(rules, name)
    return found.groupdict().get(group) if found else None


def _shared_groups(rules: Rules, roles: Sequence[str], where: str) -> list[str]:
    """The named groups that the patterns of all roles have."""
    groups = [
        {name for pattern in rules.patterns[role] for name in pattern.groupindex} for role in roles
    ]
    shared = sorted(set.intersection(*groups) - {"split"})
    if not shared:
        raise LayoutError(
            f"{where}: the patterns of {', '.join(roles)} share no named group; expected one that "
            f"tells which files belong together, such as (?P<n>[0-9]+)"
        )
    return shared


def _patterns(roles: object, where: str) -> dict[str, tuple[re.Pattern[str], ...]]:
    if not isinstance(roles, dict):
        raise LayoutError(f"{where}: no [roles]; expected a list of patterns for each role")
    patterns = {}
    for role, listed in roles.items():
        if role not in filenames.ROLES or not isinstance(listed, list) or not listed:
            raise LayoutError(
                f"{where}: roles.{role} is not understood; expected a list of patterns for any of "
                f"{', '.join(filenames.ROLES)}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                patterns[role] = tuple(re.compile(str(each)) for each in listed)
        except (re.error, OverflowError, RecursionError) as error:
            what = f"a pattern of {role} is no regular expression ({error})"
            raise LayoutError(f"{where}: {what}; correct the layout file") from error
    if "fg_bg" not in patterns or not {"mask", "depth"} & set(patterns):
        raise LayoutError(
            f"{where}: patterns for {', '.join(patterns) or 'nothing'}; expected fg_bg, and mask "
            f"or depth or both"
        )
    return patterns


def _settings(background: object, where: str) -> dict[str, str | int]:
    if not isinstance(background, dict):
        raise LayoutError(f"{where}: background is no table; expected [background]")
    for name, value in background.items():
        if name not in _SETTINGS or not isinstance(value, _SETTINGS[name]):
            raise LayoutError(
                f"{where}: background.{name} = {value!r} is not understood; expected "
                f"{', '.join(_SETTINGS)}"
            )
    settings = dict(background)
    if settings.get("rule") not in BACKGROUND_RULES:
        raise LayoutError(
            f"{where}: background.rule is {settings.get('rule')!r}; expected one of "
            f"{', '.join(BACKGROUND_RULES)}"
        )
    if settings.get("order", "natural") not in ("natural", "lexicographic"):
        raise LayoutError(f"{where}: background.order is neither natural nor lexicographic")
    if settings["rule"] == "block" and int(settings.get("size", 0)) < 1:
        raise LayoutError(f"{where}: rule block needs a size of at least 1")
    return settings
