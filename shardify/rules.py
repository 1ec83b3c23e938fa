r"""Layout files: a data set's own rules, where detection cannot find them or should not guess.

A layout file is TOML::

    [roles.fg_bg]
    patterns = ['fg_bg/(?P<bg>\d+)_(?P<n>\d+)\.jpg']
    [roles.mask]
    patterns = ['masks/(?P<n>\d+)\.png']
    [roles.bg]
    patterns = ['backgrounds/park(?P<bg>\d+)\.jpg']

    [background]
    rule = 'number'      # number, order, block, modulo, name, map, only or none
    number = 'bg'        # the group that holds the sample's number
    check = true         # prove it by pixels

A pattern is a regular expression for a whole path. Files whose common named groups are equal (as
numbers, where they are) are one sample. Groups with a meaning of their own: ``bg``, the
background's name or number; ``fg``, the foreground's; ``split``, ``train`` or ``val``.
``order`` takes ``order`` (lexicographic or natural) and ``first`` (0 or 1); ``block`` also
``size``; ``map`` takes ``file``, a csv, tsv or txt beside the layout file.

This module parses and applies rules. It proposes none, and knows no pixel.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shardify import naming
from shardify.errors import LayoutError
from shardify.joining import Table, tabulate
from shardify.maps import rows_of

__all__ = ["BACKGROUND_RULES", "Applied", "Rules", "load", "parse"]

IntArray = npt.NDArray[np.int32]

BACKGROUND_RULES = ("number", "order", "block", "modulo", "name", "map", "only", "none")

_SETTINGS: dict[str, type] = {
    "rule": str, "number": str, "order": str, "file": str, "offset": int, "first": int,
    "size": int, "check": bool,
}  # fmt: skip
_MEANT = frozenset({"bg", "fg", "split"})
_PRECEDENCE = ("depth", "mask", "bg", "fg_bg")
"""Where a path matches the patterns of several roles, the first of these has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a layout file says."""

    patterns: Mapping[str, tuple[re.Pattern[str], ...]]
    background: Mapping[str, str | int]
    check: bool = True
    """Whether pixels must agree."""
    rows: Sequence[Sequence[str]] = field(default=())
    """Of the map file, where the rule is ``map``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What rules make of a source's names."""

    table: Table
    backgrounds: list[int]
    """Indexes of the background files."""
    unmatched: int
    """Files that no pattern matches."""


def load(path: Path) -> Rules:
    """Read a layout file, and the map beside it that it may name.

    Raises:
        LayoutError: It cannot be read, is no TOML, or says what no rule understands.
    """
    try:
        rules, file = parse(path.read_text(encoding="utf-8"), where=str(path))
        if file is None:
            return rules
        rows = rows_of((path.parent / file).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise LayoutError(
            f"{path}: it, or the map that it names, cannot be read ({reason}); expected a layout "
            f"file; see shardify inspect"
        ) from error
    return Rules(patterns=rules.patterns, background=rules.background, check=rules.check, rows=rows)


def parse(text: str, *, where: str) -> tuple[Rules, str | None]:
    """The rules in a layout file's text, and the map file they name.

    Raises:
        LayoutError: It is no TOML, or says what no rule understands.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LayoutError(f"{where}: not TOML ({error}); expected a layout file") from error
    roles = table.get("roles")
    if not isinstance(roles, dict) or not roles:
        raise LayoutError(f"{where}: no [roles.fg_bg]; expected a pattern for each role")
    patterns = {role: _patterns(role, value, where) for role, value in roles.items()}
    if "fg_bg" not in patterns or not {"mask", "depth"} & set(patterns):
        raise LayoutError(
            f"{where}: patterns for {', '.join(patterns)}; expected fg_bg and mask or depth"
        )
    background = table.get("background", {"rule": "number" if "bg" in patterns else "none"})
    if not isinstance(background, dict):
        raise LayoutError(f"{where}: background is no table; expected [background]")
    settings = _settings(background, where)
    unknown = set(table) - {"roles", "background"}
    if unknown:
        raise LayoutError(f"{where}: [{min(unknown)}] means nothing; expected roles, background")
    check, file = bool(settings.pop("check", True)), settings.pop("file", None)
    if (settings["rule"] == "map") != (file is not None):
        raise LayoutError(f"{where}: rule map and file go together; expected both or neither")
    rules = Rules(patterns=patterns, background=settings, check=check)
    return rules, None if file is None else str(file)


def apply(rules: Rules, names: Sequence[str], *, where: str) -> Applied:
    """Match every name and bring companions together.

    Raises:
        LayoutError: A role's patterns match nothing, or companions share no group.
    """
    roles = [role for role in naming.ROLES if role in rules.patterns and role != "bg"]
    groups = [
        {name for pattern in rules.patterns[role] for name in pattern.groupindex} for role in roles
    ]
    shared = sorted(set.intersection(*groups) - {"split"})
    if not shared:
        raise LayoutError(
            f"{where}: the patterns of {', '.join(roles)} share no named group; expected one that "
            f"tells which files belong together, such as (?P<n>\\d+)"
        )
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
                key = "/".join(str(int(each)) if each.isdecimal() else each for each in values)
                yield index, roles.index(role), key

    table = tabulate(items(), roles, "layout file")
    assert table is not None
    for role, column in table.members.items():
        if (column == -1).all():
            raise LayoutError(
                f"{where}: no file matches the patterns of {role}; expected e.g. "
                f"{rules.patterns[role][0].pattern}; correct the layout file"
            )
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


def _patterns(role: str, value: object, where: str) -> tuple[re.Pattern[str], ...]:
    listed = value.get("patterns") if isinstance(value, dict) else None
    if role not in naming.ROLES or not isinstance(listed, list) or not listed:
        raise LayoutError(
            f"{where}: [roles.{role}] is not understood; expected one of "
            f"{', '.join(naming.ROLES)} with patterns = ['…']"
        )
    try:
        return tuple(re.compile(str(each)) for each in listed)
    except re.error as error:
        raise LayoutError(
            f"{where}: a pattern of {role} is no regular expression ({error})"
        ) from error


def _settings(background: Mapping[str, Any], where: str) -> dict[str, str | int]:
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
