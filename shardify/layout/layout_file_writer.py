"""Write a detected layout as a layout file, to be edited and used with ``--layout``.

Patterns are built from the names of the detected samples. ``layout_file`` reads the result.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence

from shardify.images.depth import DepthEncoding
from shardify.layout import filenames
from shardify.layout.detect import Layout
from shardify.layout.mask_parts import FILE_EXTENSION, end_after
from shardify.layout.sample_table import BY_FOLDER, FOLDER_AND_NUMBERS
from shardify.layout.starter_layout import toml_string

_DIGITS = re.compile(r"\d+")
_BACKGROUND_NUMBER = r"[^/]*?(?<![a-z])(?:bg|b|back|background)[-_ ]?(?P<bg>\d+)"
_MAX_PATTERNS = 12
"""Largest number of patterns for one role: more would not be readable."""
_INNERMOST = ("same folder and name", FOLDER_AND_NUMBERS)
"""Rules that compare the innermost folder that has more than words for roles."""


def to_toml(
    layout: Layout,
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
    if isinstance(background, Mapping) and isinstance(background["settings"], Mapping):
        settings = dict(background["settings"])
    lines = [
        "# Layout file: files whose named groups are equal are one sample; see docs/layouts.md."
    ]
    join = "map" if description["join"] == "rows of a map" else "names"
    if "map" in (join, settings["rule"]):
        lines += [
            f"join = {toml_string(join)}",
            f"map = {toml_string(str(description.get('map', '')))}",
        ]
    if exif:
        lines.append(f"exif = {toml_string(exif)}")
    patterns, exact = _write_patterns(layout, names, settings)
    if not exact:
        lines.append("# The names are irregular: check these patterns.")
    lines += ["", "[roles]"]
    for role in filenames.ROLES:
        if role in patterns:
            body = "".join(f"    {toml_string(each)},\n" for each in patterns[role])
            lines.append(f"{role} = [\n{body}]")
    lines += [
        "",
        "[background]",
        *(f"{name} = {_toml_value(each)}" for name, each in settings.items()),
    ]
    if depth:
        given = {
            "scale": depth.scale, "unit": depth.unit, "max": depth.maximum,
            "invalid": False if depth.has_holes is None else list(depth.invalid),
        }  # fmt: skip
        lines += ["", "[depth]"]
        lines += [
            f"{name} = {_toml_value(each)}" for name, each in given.items() if each or each is False
        ]
    if mask_rule or layout.united:
        lines += ["", "[mask]"]
    if mask_rule:
        word, *level = mask_rule.split()
        lines.append(f"object = {level[0] if level else toml_string(word)}")
    if layout.united:
        lines.append("several = 'union'")
    return "\n".join(lines) + "\n"


def _write_patterns(
    layout: Layout, names: Sequence[str], settings: dict[str, object]
) -> tuple[dict[str, list[str]], bool]:
    """Return the patterns of each role, and whether they are exact rather than general."""
    evidence = layout.description["roles"]
    if isinstance(evidence, Mapping) and all("patterns" in each for each in evidence.values()):
        return {role: list(each["patterns"]) for role, each in evidence.items()}, True
    join = str(layout.description["join"])
    members = {role: column.tolist() for role, column in layout.members.items()}
    pictures = dict(zip(members.get("mask", ()), members["fg_bg"], strict=False))
    for first, more in layout.united.items():
        members["mask"] += more
        pictures |= dict.fromkeys(more, pictures[first])
    for role in set(members) - {"fg_bg", "mask"}:
        pictures |= dict(zip(members[role], members["fg_bg"], strict=True))
    backs = layout.background_members.tolist()
    if join not in ("rows of a map", *BY_FOLDER) and settings["rule"] not in ("name",):
        slot = str(settings.get("number", ""))
        exact = {
            role: _distinct_patterns(
                names, indexes, lambda name: _numbered_pattern(name, join, slot)
            )
            for role, indexes in members.items()
        }
        if all(exact.values()) and _are_numbers_enough(names, members["fg_bg"], join):
            if settings.get("number") not in (None, "bg"):
                settings["number"] = _group_name(slot)
            complete = {role: each for role, each in exact.items() if each is not None}
            return complete | _background_patterns(names, backs), True
    picture_of = {names[index]: names[front] for index, front in pictures.items()}
    general = {
        role: _distinct_patterns(
            names,
            indexes,
            lambda name: _general_pattern(name, join, settings, picture_of.get(name)),
        )
        or [f".*\\.{names[indexes[0]].rpartition('.')[2]}"]
        for role, indexes in members.items()
    }
    return general | _background_patterns(names, backs), False


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

    def numbered(name: str) -> str:
        path, base, extension = _split_name(name)
        ends = [match.span() for match in _DIGITS.finditer(base)]
        start, end = ends[-1] if ends else (0, 0)
        stem = (
            f"{_escape(base[:start])}(?P<bg>\\d+){_escape(base[end:])}" if ends else "(?P<bg>[^/]+)"
        )
        return f"{_escape(path)}{stem}{extension}"

    def general(name: str) -> str:
        path, _, extension = _split_name(name)
        return f"{_escape(path)}(?P<bg>[^/]+){extension}"

    patterns = _distinct_patterns(names, indexes, numbered)
    if patterns is None or any("[^/]+" in each for each in patterns):
        patterns = _distinct_patterns(names, indexes, general)
    return {"bg": patterns or [".*/(?P<bg>[^/]+)\\.[a-z]+"]}


def _numbered_pattern(name: str, join: str, slot: str) -> str:
    """Return a pattern in which every number that joins files is a group."""
    path, base, extension = _split_name(name)
    text = filenames.strip_words(base)
    shape = filenames.parse_stem(base.lower())
    stated = shape.background if slot == "bg" else None
    kept = [span for piece in shape.pieces for span in _digit_spans(base, piece)]
    inner = [match.span() for match in _DIGITS.finditer(text)]
    groups: dict[tuple[int, int], str] = {}
    for place, span in enumerate(kept):
        counts = join != "same last number" or place == len(kept) - 1
        if not counts and slot not in ("bg", str(place + 1)):
            continue
        start = inner[place][0] if place < len(inner) else -1
        if stated and start == stated.start:
            groups[span] = "bg"
        elif shape.foreground and start == shape.foreground.start and slot != str(place + 1):
            groups[span] = "fg"
        else:
            groups[span] = f"n{place + 1}"
    folders = _folder_pattern(path, join, slot, stated is not None)
    return f"{folders}{_escape(base, groups)}{extension}"


def _folder_pattern(path: str, join: str, slot: str, stated: bool) -> str:
    """Return the folders' part of a pattern, with a group for each number that joins files."""
    parts = path.split("/")[:-1]
    written: list[str] = []
    innermost = True
    for place, part in enumerate(reversed(parts)):
        pieces = filenames.parse_stem(part.lower()).pieces
        spans = [span for piece in pieces for span in _digit_spans(part, piece)]
        joins = join == "same path" or (join in _INNERMOST and innermost and pieces)
        groups: dict[tuple[int, int], str] = {}
        for run, span in enumerate(spans):
            last = run == len(spans) - 1
            if (
                slot == "bg"
                and not stated
                and filenames.background_number(part.lower()) >= 0
                and last
            ):
                groups[span], stated = "bg", True
            elif slot == "folder" and place == 0 and last:
                groups[span] = "folder"
            elif joins:
                groups[span] = f"d{place + 1}_{run + 1}"
        innermost = innermost and not pieces
        written.append(_escape(part, groups) + "/")
    return "".join(reversed(written))


def _general_pattern(
    name: str, join: str, settings: Mapping[str, object], picture: str | None = None
) -> str:
    """Return a pattern whose groups are whole texts: the name without its role words.

    Args:
        name: Path of a file.
        join: Rule that joined the files.
        settings: Rule of the backgrounds.
        picture: Path of the composite that the file belongs to; None if it is one.
    """
    path, base, extension = _split_name(name)
    parts = path.split("/")[:-1]
    if join in BY_FOLDER:
        return _folder_group_pattern(parts, base, extension, join, picture)
    if join == FOLDER_AND_NUMBERS:
        stem = _numbered_pattern(name, join, str(settings.get("number", ""))).rpartition("/")[2]
        return "/".join([*_innermost_folder_group(parts), stem])
    written = []
    for place, part in enumerate(parts):
        depth = len(parts) - place
        if not filenames.strip_words(part):
            written.append(re.escape(part) + "/")
        elif join == "same path":
            written.append(f"(?P<d{depth}>[^/]+)/")
        else:
            written.append("[^/]+/")
    pieces = filenames.parse_stem(base.lower()).pieces
    head, tail = (base[: pieces[0].start], base[pieces[-1].stop :]) if pieces else (base, "")
    stated = settings.get("number") == "bg"
    word = "(?P<name>[^/]+)"
    if picture and (end := end_after(picture, name)):
        word, tail = "(?P<name>[^/]+?)", ""
        tail = _escape(base[len(base) - len(end) :])
        return "".join(written) + re.escape(head) + word + tail + extension
    if stated and filenames.parse_stem(base.lower()).background:
        word = f"(?P<name>{_BACKGROUND_NUMBER}[^/]*)"
    stem = f"{re.escape(head)}{word}{re.escape(tail)}" if pieces else re.escape(base)
    if settings["rule"] == "name" and pieces:
        stem = f"{re.escape(head)}(?P<bg>[^/]+)[-_ .](?P<name>[^-_ ./]+){re.escape(tail)}"
    return "".join(written) + stem + extension


def _innermost_folder_group(parts: Sequence[str]) -> list[str]:
    """Return patterns of folders; the innermost with more than role words is a group."""
    written: list[str] = []
    found = False
    for part in reversed(parts):
        pieces = filenames.parse_stem(part.lower()).pieces
        if pieces and not found:
            head, tail = part[: pieces[0].start], part[pieces[-1].stop :]
            written.append(f"{re.escape(head)}(?P<folder>[^/]+){re.escape(tail)}")
            found = True
        else:
            written.append("[^/]+" if pieces else re.escape(part))
    return written[::-1]


def _folder_group_pattern(
    parts: Sequence[str], base: str, extension: str, join: str, picture: str | None
) -> str:
    """Return a pattern whose group is the folder that tells the picture of a file."""
    words = [filenames.strip_words(part) for part in parts]
    written = [_escape(part) for part in parts]
    last = max((place for place, word in enumerate(words) if word), default=-1)
    if join == BY_FOLDER[0]:
        for place, word in enumerate(words):
            if word:
                written[place] = f"(?P<d{sum(map(bool, words[: place + 1]))}>[^/]+)"
        return "/".join([*written, f"[^/]+{extension}"])
    front = filenames.strip_words(_split_name(picture)[1]) if picture else ""
    if picture and last >= 0 and FILE_EXTENSION.sub("", words[last]) == front:
        tail = FILE_EXTENSION.search(words[last])
        end = re.escape(parts[last][-len(tail[0]) :]) if tail and words[last] != front else ""
        written[last] = f"(?P<name>[^/]+){end}"
        return "/".join([*written, f"[^/]+{extension}"])
    pieces = filenames.parse_stem(base.lower()).pieces
    start, stop = (pieces[0].start, pieces[-1].stop) if pieces else (0, len(base))
    stem = f"{re.escape(base[:start])}(?P<name>[^/]+){re.escape(base[stop:])}"
    return "/".join([*written, stem + extension])


def _are_numbers_enough(names: Sequence[str], indexes: Sequence[int], join: str) -> bool:
    """Whether numbers alone tell all samples apart."""
    if len({_text_without_numbers(names[index], join) for index in indexes}) == 1:
        return True
    seen = set()
    for index in indexes:
        path, base, _ = _split_name(names[index])
        parts = [text for text in map(filenames.strip_words, path.split("/")) if text]
        parts = parts if join == "same path" else parts[-1:] if join in _INNERMOST else []
        seen.add(
            tuple(tuple(filenames.numbers(part)) for part in (*parts, filenames.strip_words(base)))
        )
    return len(seen) == len(indexes)


def _text_without_numbers(name: str, join: str) -> str:
    """Return the text that joins a file with others, with every number as 0."""
    path, base, _ = _split_name(name)
    parts = path if join in ("same path", *_INNERMOST) else ""
    return _DIGITS.sub("0", f"{parts}{base}")


def _digit_spans(text: str, piece: slice) -> list[tuple[int, int]]:
    return [match.span() for match in _DIGITS.finditer(text, piece.start, piece.stop)]


def _escape(text: str, groups: Mapping[tuple[int, int], str] | None = None) -> str:
    """Return ``text`` as a pattern: numbers become groups or match any number."""
    written, end = [], 0
    for match in _DIGITS.finditer(text):
        group = (groups or {}).get(match.span())
        written += [re.escape(text[end : match.start()]), f"(?P<{group}>\\d+)" if group else "\\d+"]
        end = match.end()
    return "".join(written) + re.escape(text[end:])


def _group_name(slot: str) -> str:
    return f"n{slot}" if slot.isdigit() else slot


def _split_name(name: str) -> tuple[str, str, str]:
    """Return the folders with the last slash, the stem, and the extension as a pattern."""
    path, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".")
    return path + slash, stem, f"\\.{re.escape(extension)}"


def _toml_value(value: object) -> str:
    return toml_string(value) if isinstance(value, str) else json.dumps(value)
