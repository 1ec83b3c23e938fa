r"""Parse layout files and apply their rules: roles and backgrounds given by the user.

A layout file is TOML::

    join = 'names'       # or 'map': the files in one row of the map are one sample
    map = 'pairs.csv'    # if needed: a csv, tsv or txt beside this file, or in the source

    [roles]              # regular expressions for whole paths
    bg = ['backgrounds/park(?P<bg>\d+)\.jpg']
    fg_bg = ['fg_bg/(?P<bg>\d+)_(?P<n>\d+)\.jpg']
    mask = ['masks/(?P<n>\d+)\.png']

    [mask]
    object = 15          # the object's value; or threshold, nonzero or alpha
    several = 'union'    # several masks of one sample are united; without it they are refused

    [background]
    rule = 'number'      # number, order, block, modulo, name, map, only or none
    number = 'bg'        # the group that holds the sample's number
    check = true         # check it by pixels

    [depth]              # what the values of depth maps mean, where the source does not tell
    scale = 256          # 16-bit steps to a unit; floating-point values are multiplied by it
    unit = 'm'
    max = 80.0           # largest depth, in that unit
    invalid = [1e10]     # values, as in the files, that mean "no depth"; false: there are none

``exif = 'stored'`` before the tables says that the masks and depth maps of pictures that EXIF turns
lie on the pixels as stored; ``exif = 'turned'``, that they lie on the turned pixels.

Files whose common named groups are equal (compared as numbers if they are) are one sample. Groups
with a meaning of their own: ``bg``, the background's name or number; ``fg``, the foreground's;
``split``, ``train`` or ``val``. The rule ``number`` takes ``offset``; the rules ``order``,
``modulo`` and ``block`` take ``order`` (lexicographic or natural) and ``first`` (0 or 1); ``block``
also takes ``size``.
"""

import re
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np

from shardify.errors import LayoutError
from shardify.images.depth import DepthEncoding
from shardify.layout import filenames
from shardify.layout.csv_map import Row, join_by_map, parse_rows
from shardify.layout.filenames import IntArray
from shardify.layout.sample_table import SampleTable, build_table, unite_claimed_masks

BACKGROUND_RULES = ("number", "order", "block", "modulo", "name", "map", "only", "none")

_SETTING_TYPES: dict[str, type] = {
    "rule": str, "number": str, "order": str, "offset": int, "first": int,
    "size": int, "check": bool,
}  # fmt: skip
_DEPTH_SETTINGS = ("scale", "unit", "max", "invalid")
_PRECEDENCE = ("depth", "mask", "bg", "fg_bg")
"""A path that matches the patterns of several roles gets the first of these roles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The rules of a layout file."""

    patterns: Mapping[str, tuple[re.Pattern[str], ...]]
    """role -> patterns for whole paths."""
    background: Mapping[str, str | int]
    """The table ``[background]`` without ``check``."""
    check: bool = True
    """Whether backgrounds are checked by pixels."""
    map: str | None = None
    """Name of the map."""
    join: str = "names"
    """``names`` or ``map``."""
    mask: str | None = None
    """Rule of the masks, see ``images.mask_values``; None to tell it from their values."""
    unite_masks: bool = False
    """Whether several masks of one sample are united."""
    rows: Sequence[Row] | None = None
    """Rows of the map, if it is beside the layout file."""
    depth: DepthEncoding | None = None
    """The table ``[depth]``."""
    exif: str = ""
    """``stored``, ``turned`` or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedFiles:
    """The files of a source by the rules of a layout file."""

    table: SampleTable
    backgrounds: list[int]
    """Indexes of the background files."""
    unmatched: int
    """Number of files that no pattern matches."""


def load(path: Path) -> Rules:
    """Read a layout file, and its map if that is beside it.

    Raises:
        LayoutError: It cannot be read, is no TOML, or has an unknown key or value.
    """
    try:
        rules = parse(path.read_text(encoding="utf-8"), where=str(path))
        if rules.map and (map_path := path.parent / rules.map).is_file():
            rules = replace(rules, rows=parse_rows(map_path.read_bytes(), map_path.name))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise LayoutError(
            f"{path}: cannot be read ({reason}); expected a layout file; see shardify inspect"
        ) from error
    return rules


def parse(text: str, *, where: str) -> Rules:
    """Parse the text of a layout file.

    Raises:
        LayoutError: It is no TOML, or has an unknown key or value.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LayoutError(f"{where}: not TOML ({error}); expected a layout file") from error
    unknown = set(table) - {"roles", "background", "mask", "map", "join", "depth", "exif"}
    if unknown:
        raise LayoutError(
            f"{where}: {min(unknown)} means nothing; expected join, map, exif, [roles], "
            "[background], [mask], [depth]"
        )
    mask, unite_masks = _parse_mask(table.get("mask", {}), where)
    patterns = _parse_patterns(table.get("roles"), where)
    default = {"rule": "number" if "bg" in patterns else "none"}
    settings = _parse_background(table.get("background", default), where)
    map_name, join = table.get("map"), table.get("join", "names")
    if join not in ("names", "map") or not isinstance(map_name, str | None):
        raise LayoutError(f"{where}: join is neither 'names' nor 'map', or map is no file's name")
    if "map" in (join, settings["rule"]) and map_name is None:
        raise LayoutError(f"{where}: a map is asked for; expected map = 'file.csv'; add it")
    exif = table.get("exif", "")
    if "exif" in table and exif not in ("stored", "turned"):
        raise LayoutError(f"{where}: exif is {exif!r}; expected 'stored' or 'turned'")
    return Rules(
        patterns=patterns,
        check=bool(settings.pop("check", True)),
        background=settings,
        map=map_name,
        join=join,
        mask=mask,
        depth=_parse_depth(table["depth"], where) if "depth" in table else None,
        exif=exif,
        unite_masks=unite_masks,
    )


def map_rows(rules: Rules, names: Sequence[str], read: Callable[[int], bytes] | None) -> list[Row]:
    """Return the rows of the rules' map: beside the layout file, or else in the source."""
    if rules.rows is not None or rules.map is None:
        return list(rules.rows or ())
    tail = f"/{rules.map.strip('/')}"
    matches = [index for index, name in enumerate(names) if f"/{name}".endswith(tail)]
    if len(matches) != 1 or read is None:
        raise LayoutError(
            f"{rules.map}: the layout file's map is not beside it, and {len(matches)} files of the "
            f"source have this name; expected one"
        )
    return parse_rows(read(matches[0]), names[matches[0]])


def apply(
    rules: Rules, names: Sequence[str], rows: Callable[[], list[Row]], *, where: str
) -> MatchedFiles:
    """Match every name and join the files of each sample.

    Args:
        rules: The rules of a layout file.
        names: All names of the source.
        rows: Returns the map's rows; called if the rules join by map.
        where: Name of the source in errors.

    Raises:
        LayoutError: A role's patterns match nothing, or share no group that joins files.
    """
    roles = [role for role in filenames.ROLES if role in rules.patterns and role != "bg"]
    shared = _shared_groups(rules, roles, where) if rules.join == "names" else []
    indexes: dict[str, list[int]] = {role: [] for role in (*roles, "bg")}
    keys: dict[str, list[str]] = {role: [] for role in (*roles, "bg")}
    unmatched = 0
    for index, name in enumerate(names):
        role, match = match_role(rules, name)
        if match is None:
            unmatched += 1
            continue
        groups = match.groupdict()
        indexes[role].append(index)
        keys[role].append("/".join(filenames.strip_zeros(groups.get(g) or "") for g in shared))
    files = {role: np.array(indexes[role], np.int32) for role in roles}
    if rules.join == "names":
        batches = ((files[role], code, keys[role]) for code, role in enumerate(roles))
        table = build_table(batches, roles, "layout file")
    else:
        table = join_by_map(names, files, indexes["bg"], rows(), where=where)
    for role in roles:
        if table is None or (table.members[role] == -1).all():
            raise LayoutError(
                f"{where}: nothing matches the patterns of {role} ("
                f"{rules.patterns[role][0].pattern}) and the map, if any; correct the layout file"
            )
    assert table is not None
    if rules.unite_masks and "mask" in roles:
        unite_claimed_masks(table, names)
    return MatchedFiles(table=table, backgrounds=indexes["bg"], unmatched=unmatched)


def match_role(rules: Rules, name: str) -> tuple[str, re.Match[str] | None]:
    """Return the role of a path and its match; an empty role and None without one."""
    for role in _PRECEDENCE:
        for pattern in rules.patterns.get(role, ()):
            if match := pattern.fullmatch(name):
                return role, match
    return "", None


def number_groups(rules: Rules, names: Sequence[str], members: IntArray) -> dict[str, IntArray]:
    """Return every named group that is a number in all composites: group -> (N,) int32."""
    values: defaultdict[str, list[int]] = defaultdict(list)
    for index in members.tolist():
        _, match = match_role(rules, names[index])
        for group, text in match.groupdict().items() if match else ():
            if text and text.isdecimal() and len(text) < 10:
                values[group].append(int(text))
    return {
        group: np.array(column, np.int32)
        for group, column in values.items()
        if len(column) == len(members)
    }


def group_text(rules: Rules, name: str, group: str) -> str | None:
    """Return the text of a group in one path; None without such a group."""
    _, match = match_role(rules, name)
    return match.groupdict().get(group) if match else None


def _shared_groups(rules: Rules, roles: Sequence[str], where: str) -> list[str]:
    """Return the named groups that the patterns of all roles have."""
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


def _parse_patterns(roles: object, where: str) -> dict[str, tuple[re.Pattern[str], ...]]:
    if not isinstance(roles, dict):
        raise LayoutError(f"{where}: no [roles]; expected a list of patterns for each role")
    patterns = {}
    for role, role_patterns in roles.items():
        if role not in filenames.ROLES or not isinstance(role_patterns, list) or not role_patterns:
            raise LayoutError(
                f"{where}: roles.{role} is not understood; expected a list of patterns for any of "
                f"{', '.join(filenames.ROLES)}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                patterns[role] = tuple(re.compile(str(pattern)) for pattern in role_patterns)
        except (re.error, OverflowError, RecursionError) as error:
            what = f"a pattern of {role} is no regular expression ({error})"
            raise LayoutError(f"{where}: {what}; correct the layout file") from error
    if "fg_bg" not in patterns or not {"mask", "depth"} & set(patterns):
        raise LayoutError(
            f"{where}: patterns for {', '.join(patterns) or 'nothing'}; expected fg_bg, and mask "
            f"or depth or both"
        )
    return patterns


def _parse_mask(mask: object, where: str) -> tuple[str | None, bool]:
    """Return the rule of the masks (see ``images.mask_values``), and whether to unite several."""
    if isinstance(mask, dict) and set(mask) <= {"object", "several"}:
        value, several = mask.get("object"), mask.get("several")
        unite = several == "union"
        if several is None or unite:
            if value is None or value in ("threshold", "nonzero", "alpha"):
                return value, unite
            if type(value) is int and value >= 0:
                return f"level {value}", unite
    raise LayoutError(
        f"{where}: [mask] {mask!r} is not understood; expected object = the value of the object in "
        "the masks, or 'threshold', 'nonzero' or 'alpha'; and several = 'union' to unite several "
        "masks of one sample"
    )


def _parse_background(background: object, where: str) -> dict[str, str | int]:
    if not isinstance(background, dict):
        raise LayoutError(f"{where}: background is no table; expected [background]")
    for name, value in background.items():
        if name not in _SETTING_TYPES or not isinstance(value, _SETTING_TYPES[name]):
            raise LayoutError(
                f"{where}: background.{name} = {value!r} is not understood; expected "
                f"{', '.join(_SETTING_TYPES)}"
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


def _parse_depth(depth: object, where: str) -> DepthEncoding:
    if not isinstance(depth, dict):
        raise LayoutError(f"{where}: depth is no table; expected [depth]")
    for name, value in depth.items():
        numbers = value if name == "invalid" and isinstance(value, list) else [value]
        fits = all(type(number) in (int, float) and isfinite(number) for number in numbers)
        if name == "unit":
            fits = isinstance(value, str) and value.isprintable()
        elif name == "invalid" and value is False:
            fits = True
        if name not in _DEPTH_SETTINGS or not fits or (name in ("scale", "max") and value <= 0):
            raise LayoutError(
                f"{where}: depth.{name} = {value!r} is not understood; expected scale and max "
                "(above 0), unit (a text), invalid (a number, several, or false)"
            )
    marks = depth.get("invalid", [])
    complete = marks is False
    marks = [] if complete else marks
    return DepthEncoding(
        scale=float(depth["scale"]) if "scale" in depth else None,
        unit=depth.get("unit", ""),
        maximum=float(depth["max"]) if "max" in depth else None,
        invalid=tuple(map(float, marks if isinstance(marks, list) else [marks])),
        has_holes=None if complete else "invalid" in depth,
    )
