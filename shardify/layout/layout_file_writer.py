"""Write layout files: of a detected layout, or to begin with where roles were not found.

Patterns are built from the names of the source. ``layout_file`` reads the result.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from shardify.images.depth import DepthEncoding
from shardify.layout import filenames
from shardify.layout.mask_parts import end_after
from shardify.layout.role_candidates import FileClass
from shardify.layout.sample_table import BY_FOLDER, FILE_EXTENSION, FOLDER_AND_NUMBERS

if TYPE_CHECKING:
    from shardify.layout.detect import Layout

_DIGITS = re.compile(r"\d+")
_BACKGROUND_NUMBER = r"[^/]*?(?<![a-z])(?:bg|b|back|background)[-_ ]?(?P<bg>\d+)"
_MAX_PATTERNS = 12
"""Largest number of patterns for one role: more would not be readable."""
_INNERMOST = ("same folder and name", FOLDER_AND_NUMBERS)
"""Rules that compare the innermost folder that has more than words for roles."""


def to_toml(
    layout: "Layout",
    names: Sequence[str],
    *,
    exif: str = "",
    depth: DepthEncoding | None = None,
    mask_rule: str | None = None,
) -> str:
    """Return the text of a layout file that finds the same samples.

    Args:
        layout: Result of ``detect``.
        names: The names that ``detect`` was given.
        exif: As in the layout file that was given, if any.
        depth: As in the layout file that was given, if any.
        mask_rule: Rule of the masks, if a layout file gave it.

    Returns:
        TOML. If names are too irregular for a few patterns, the patterns are as general as the
        folders allow and may need editing; a comment says so.
    """
    description = layout.description
    background = description.get("background")
    settings: dict[str, object] = {"rule": "none"}
    if isinstance(background, Mapping):
        settings = dict(background["settings"])
    lines = [
        "# Layout file: files whose named groups are equal are one sample; see docs/layouts.md."
    ]
    join = "map" if description["join"] == "rows of a map" else "names"
    if "map" in (join, settings["rule"]):
        lines += [
            f"join = {_toml_value(join)}",
            f"map = {_toml_value(str(description.get('map', '')))}",
        ]
    if exif:
        lines.append(f"exif = {_toml_value(exif)}")
    patterns, exact = _write_patterns(layout, names, settings)
    if not exact:
        lines.append("# The names are irregular: check these patterns.")
    lines += ["", "[roles]"]
    for role in filenames.ROLES:
        if role in patterns:
            body = "".join(f"    {_toml_value(pattern)},\n" for pattern in patterns[role])
            lines.append(f"{role} = [\n{body}]")
    lines += ["", "[background]", *_toml_lines(settings)]
    if depth:
        values = {
            "scale": depth.scale, "unit": depth.unit, "max": depth.maximum,
            "invalid": False if depth.has_holes is None else list(depth.invalid),
        }  # fmt: skip
        lines += ["", "[depth]"]
        given = {name: value for name, value in values.items() if value or value is False}
        lines += _toml_lines(given)
    if mask_rule or layout.united:
        lines += ["", "[mask]"]
    if mask_rule:
        word, *level = mask_rule.split()
        lines.append(f"object = {level[0] if level else _toml_value(word)}")
    if layout.united:
        lines.append("several = 'union'")
    return "\n".join(lines) + "\n"


def starter_layout(classes: Sequence[FileClass], roles: Sequence[str | None]) -> str:
    """Return TOML with a pattern for each class of files, under its role if it has one."""
    patterns_by_role: dict[str | None, list[str]] = {}
    for file_class, role in zip(classes, roles, strict=True):
        pattern = _toml_value(_class_pattern(file_class.name, role))
        patterns_by_role.setdefault(role, []).append(f"{pattern},  # {file_class.contents}")
    lines = [
        "# A layout file to begin with: give each role its files; see docs/layouts.md.",
        "",
        "[roles]",
    ]
    for role in filenames.ROLES:
        if role in patterns_by_role:
            patterns = [f"    {pattern}" for pattern in patterns_by_role[role][:_MAX_PATTERNS]]
            lines += [f"{role} = [", *patterns, "]"]
        else:
            lines.append(f"# {role} = []  # none was found")
    if None in patterns_by_role:
        lines += ["# Files without a role:"]
        lines += [f"#     {pattern}" for pattern in patterns_by_role[None][:_MAX_PATTERNS]]
    return "\n".join(lines) + "\n"


def _class_pattern(name: str, role: str | None) -> str:
    """Return the pattern of a class from its name, such as ``a_#/*.png``."""
    folder, _, base = name.rpartition("*")
    group = "bg" if role == "bg" else "name"
    start = ".*" if folder else "(?:.*/)?"
    body = re.escape(folder).replace(r"\#", r"\d+")
    return f"{start}{body}(?P<{group}>[^/]+){re.escape(base)}"


def _write_patterns(
    layout: "Layout", names: Sequence[str], settings: dict[str, object]
) -> tuple[dict[str, list[str]], bool]:
    """Return the patterns of each role, and whether they are exact rather than general."""
    evidence = layout.description["roles"]
    if isinstance(evidence, Mapping) and all("patterns" in entry for entry in evidence.values()):
        return {role: list(entry["patterns"]) for role, entry in evidence.items()}, True
    join = str(layout.description["join"])
    members = {role: column.tolist() for role, column in layout.members.items()}
    pictures = {
        names[index]: names[picture]
        for role, indexes in members.items()
        if role != "fg_bg"
        for index, picture in zip(indexes, members["fg_bg"], strict=True)
    }
    for first, others in layout.united.items():
        members["mask"] += others
        pictures |= {names[index]: pictures[names[first]] for index in others}
    backgrounds = _background_patterns(names, layout.background_members.tolist())
    if join not in ("rows of a map", *BY_FOLDER) and settings["rule"] != "name":
        slot = str(settings.get("number", ""))
        exact = {
            role: _distinct_patterns(
                names, indexes, lambda name: _numbered_pattern(name, join, slot)
            )
            for role, indexes in members.items()
        }
        complete = {role: patterns for role, patterns in exact.items() if patterns}
        if len(complete) == len(exact) and _are_numbers_enough(names, members["fg_bg"], join):
            if slot.isdigit():
                settings["number"] = f"n{slot}"
            return complete | backgrounds, True
    general = {
        role: _distinct_patterns(
            names, indexes, lambda name: _general_pattern(name, join, settings, pictures.get(name))
        )
        or [f".*\\.{names[indexes[0]].rpartition('.')[2]}"]
        for role, indexes in members.items()
    }
    return general | backgrounds, False


def _distinct_patterns(
    names: Sequence[str], indexes: Sequence[int], write: Callable[[str], str]
) -> list[str] | None:
    """Return the patterns of all names; None if there are too many."""
    by_outline: dict[str, str] = {}
    for index in indexes:
        outline = _DIGITS.sub("0", names[index])
        if outline not in by_outline:
            by_outline[outline] = write(names[index])
            if len(set(by_outline.values())) > _MAX_PATTERNS:
                return None
    return sorted(set(by_outline.values()))


def _background_patterns(names: Sequence[str], indexes: Sequence[int]) -> dict[str, list[str]]:
    if not indexes:
        return {}

    def general(name: str) -> str:
        path, _, extension = _split_name(name)
        return f"{_escape(path)}(?P<bg>[^/]+){extension}"

    def numbered(name: str) -> str:
        path, stem, extension = _split_name(name)
        numbers = list(_DIGITS.finditer(stem))
        if not numbers:
            return general(name)
        return f"{_escape(path)}{_escape(stem, {numbers[-1].span(): 'bg'})}{extension}"

    patterns = _distinct_patterns(names, indexes, numbered)
    if patterns is None or any("[^/]+" in pattern for pattern in patterns):
        patterns = _distinct_patterns(names, indexes, general)
    return {"bg": patterns or [".*/(?P<bg>[^/]+)\\.[a-z]+"]}


def _numbered_pattern(name: str, join: str, slot: str) -> str:
    """Return a pattern in which every number that joins files is a group."""
    path, stem, extension = _split_name(name)
    shape = filenames.parse_stem(stem.lower())
    stated = shape.background if slot == "bg" else None
    spans = _digit_spans(stem, shape.pieces)
    # Spans in the stem without role words, as those of the shape.
    stripped_spans = [match.span() for match in _DIGITS.finditer(filenames.strip_words(stem))]
    groups: dict[tuple[int, int], str] = {}
    for place, span in enumerate(spans):
        joins = join != "same last number" or place == len(spans) - 1
        if not joins and slot not in ("bg", str(place + 1)):
            continue
        start = stripped_spans[place][0] if place < len(stripped_spans) else -1
        if stated and start == stated.start:
            groups[span] = "bg"
        elif shape.foreground and start == shape.foreground.start and slot != str(place + 1):
            groups[span] = "fg"
        else:
            groups[span] = f"n{place + 1}"
    folders = _folder_pattern(path, join, slot, stated is not None)
    return f"{folders}{_escape(stem, groups)}{extension}"


def _folder_pattern(path: str, join: str, slot: str, stated: bool) -> str:
    """Return the folders' part of a pattern, with a group for each number that joins files."""
    patterns: list[str] = []
    innermost = True
    for place, part in enumerate(reversed(path.split("/")[:-1])):
        pieces = filenames.find_pieces(part.lower())
        spans = _digit_spans(part, pieces)
        joins = join == "same path" or (join in _INNERMOST and innermost and pieces)
        groups = {span: f"d{place + 1}_{run}" for run, span in enumerate(spans, 1) if joins}
        if spans and slot == "bg" and not stated:
            if filenames.background_number(part.lower()) >= 0:
                groups[spans[-1]], stated = "bg", True
        elif spans and slot == "folder" and place == 0:
            groups[spans[-1]] = "folder"
        innermost = innermost and not pieces
        patterns.append(_escape(part, groups) + "/")
    return "".join(reversed(patterns))


def _general_pattern(
    name: str, join: str, settings: Mapping[str, object], picture: str | None = None
) -> str:
    """Return a pattern whose groups are whole texts: the name without its role words.

    ``picture`` is the composite that the file belongs to; None if it is one.
    """
    path, stem, extension = _split_name(name)
    parts = path.split("/")[:-1]
    if join in BY_FOLDER:
        return _folder_group_pattern(parts, stem, extension, join, picture)
    if join == FOLDER_AND_NUMBERS:
        numbered = _numbered_pattern(name, join, str(settings.get("number", "")))
        return "/".join([*_innermost_folder_group(parts), numbered.rpartition("/")[2]])
    folders = ""
    for place, part in enumerate(parts):
        if not filenames.strip_words(part):
            folders += f"{re.escape(part)}/"
        elif join == "same path":
            folders += f"(?P<d{len(parts) - place}>[^/]+)/"
        else:
            folders += "[^/]+/"
    shape = filenames.parse_stem(stem.lower())
    if picture and (end := end_after(picture, name)):
        head = re.escape(stem[: shape.pieces[0].start])
        tail = _escape(stem[len(stem) - len(end) :])
        return f"{folders}{head}(?P<name>[^/]+?){tail}{extension}"
    if not shape.pieces:
        return f"{folders}{re.escape(stem)}{extension}"
    group = "(?P<name>[^/]+)"
    if settings["rule"] == "name":
        group = "(?P<bg>[^/]+)[-_ .](?P<name>[^-_ ./]+)"
    elif settings.get("number") == "bg" and shape.background:
        group = f"(?P<name>{_BACKGROUND_NUMBER}[^/]*)"
    return f"{folders}{_between_words(stem, group)}{extension}"


def _between_words(text: str, group: str) -> str:
    """Return a pattern with a group in place of the text without the role words at its ends."""
    pieces = filenames.find_pieces(text.lower())
    start, stop = (pieces[0].start, pieces[-1].stop) if pieces else (0, len(text))
    return f"{re.escape(text[:start])}{group}{re.escape(text[stop:])}"


def _innermost_folder_group(parts: Sequence[str]) -> list[str]:
    """Return patterns of folders; the innermost with more than role words is a group."""
    has_text = [bool(filenames.strip_words(part)) for part in parts]
    patterns = [
        "[^/]+" if text else re.escape(part) for part, text in zip(parts, has_text, strict=True)
    ]
    if any(has_text):
        innermost = max(place for place, text in enumerate(has_text) if text)
        patterns[innermost] = _between_words(parts[innermost], "(?P<folder>[^/]+)")
    return patterns


def _folder_group_pattern(
    parts: Sequence[str], stem: str, extension: str, join: str, picture: str | None
) -> str:
    """Return a pattern whose group is the folder that tells the picture of a file."""
    texts = [filenames.strip_words(part) for part in parts]
    places = [place for place, text in enumerate(texts) if text]
    patterns = [_escape(part) for part in parts]
    if join == BY_FOLDER[0]:
        for number, place in enumerate(places, 1):
            patterns[place] = f"(?P<d{number}>[^/]+)"
        return "/".join([*patterns, f"[^/]+{extension}"])
    if picture and places:
        last = places[-1]
        picture_stem = filenames.strip_words(_split_name(picture)[1])
        bare = FILE_EXTENSION.sub("", texts[last])
        if bare == picture_stem:
            # The folder may be named as the picture with its extension.
            end = len(texts[last]) - len(bare)
            patterns[last] = f"(?P<name>[^/]+){re.escape(parts[last][-end:]) if end else ''}"
            return "/".join([*patterns, f"[^/]+{extension}"])
    return "/".join([*patterns, _between_words(stem, "(?P<name>[^/]+)") + extension])


def _are_numbers_enough(names: Sequence[str], indexes: Sequence[int], join: str) -> bool:
    """Whether numbers alone tell all samples apart."""
    if len({_text_without_numbers(names[index], join) for index in indexes}) == 1:
        return True
    keys = set()
    for index in indexes:
        path, stem, _ = _split_name(names[index])
        parts = [text for text in map(filenames.strip_words, path.split("/")) if text]
        parts = parts if join == "same path" else parts[-1:] if join in _INNERMOST else []
        texts = (*parts, filenames.strip_words(stem))
        keys.add(tuple(tuple(filenames.numbers(text)) for text in texts))
    return len(keys) == len(indexes)


def _text_without_numbers(name: str, join: str) -> str:
    """Return the text that joins a file with others, with every number as 0."""
    path, stem, _ = _split_name(name)
    folders = path if join in ("same path", *_INNERMOST) else ""
    return _DIGITS.sub("0", f"{folders}{stem}")


def _digit_spans(text: str, pieces: Sequence[slice]) -> list[tuple[int, int]]:
    return [
        match.span()
        for piece in pieces
        for match in _DIGITS.finditer(text, piece.start, piece.stop)
    ]


def _escape(text: str, groups: Mapping[tuple[int, int], str] | None = None) -> str:
    """Return ``text`` as a pattern: numbers become groups or match any number."""
    pattern, end = "", 0
    for match in _DIGITS.finditer(text):
        group = (groups or {}).get(match.span())
        number = f"(?P<{group}>\\d+)" if group else "\\d+"
        pattern += re.escape(text[end : match.start()]) + number
        end = match.end()
    return pattern + re.escape(text[end:])


def _split_name(name: str) -> tuple[str, str, str]:
    """Return the folders with the last slash, the stem, and the extension as a pattern."""
    path, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".")
    return path + slash, stem, f"\\.{re.escape(extension)}"


def _toml_lines(table: Mapping[str, object]) -> list[str]:
    return [f"{name} = {_toml_value(value)}" for name, value in table.items()]


def _toml_value(value: object) -> str:
    """Return a TOML value; strings are literal if possible: patterns contain backslashes."""
    if not isinstance(value, str):
        return json.dumps(value)
    if "'" not in value and value.isprintable():
        return f"'{value}'"
    plain = value.replace("\\", "\\\\").replace('"', '\\"')
    # TOML cannot hold a lone surrogate: write the pattern for any character instead.
    safe = ("." if 0xD800 <= ord(c) <= 0xDFFF else f"\\U{ord(c):08X}" for c in plain)
    escaped = (c if c.isprintable() else other for c, other in zip(plain, safe, strict=True))
    return f'"{"".join(escaped)}"'
