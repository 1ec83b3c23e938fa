"""A detected layout as a layout file: to be read, saved, edited and used with ``--layout``.

Writes what ``rules`` reads. It decides nothing: patterns are made of the names of samples that
were already joined, and the background's rule is the one that was found.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence

from shardify.layout import filenames
from shardify.layout.detect import Layout

__all__ = ["to_toml"]

_DIGITS = re.compile(r"\d+")
_BACKGROUND = r"[^/]*?(?<![a-z])(?:bg|b|back|background)[-_ ]?(?P<bg>\d+)"
_MOST_PATTERNS = 12
"""More patterns than this for one role are no help to anyone."""


def to_toml(layout: Layout, names: Sequence[str]) -> str:
    """The text of a layout file that finds the same samples.

    Args:
        layout: As ``detect`` gave it.
        names: Those that it was given.

    Returns:
        TOML. Where names are too irregular for a few patterns, those are as general as the
        folders allow and may need an editor's hand; a comment says so.
    """
    told = layout.description
    background = told.get("background")
    settings: dict[str, object] = {"rule": "none"}
    if isinstance(background, Mapping) and isinstance(background["settings"], Mapping):
        settings = dict(background["settings"])
    lines = [
        "# A layout file: files whose named groups are equal are a sample; see docs/layouts.md."
    ]
    join = "map" if told["join"] == "rows of a map" else "names"
    if "map" in (join, settings["rule"]):
        lines += [f"join = {_quote(join)}", f"map = {_quote(str(told.get('map', '')))}"]
    patterns, exact = _written(layout, names, settings)
    if not exact:
        lines.append("# The names are irregular: check these patterns.")
    lines += ["", "[roles]"]
    for role in filenames.ROLES:
        if role in patterns:
            body = "".join(f"    {_quote(each)},\n" for each in patterns[role])
            lines.append(f"{role} = [\n{body}]")
    lines += ["", "[background]", *(f"{name} = {_value(each)}" for name, each in settings.items())]
    return "\n".join(lines) + "\n"


def _written(
    layout: Layout, names: Sequence[str], settings: dict[str, object]
) -> tuple[dict[str, list[str]], bool]:
    """Patterns of each role, and whether they are exact rather than general."""
    given = layout.description["roles"]
    if isinstance(given, Mapping) and all("patterns" in each for each in given.values()):
        return {role: list(each["patterns"]) for role, each in given.items()}, True
    join = str(layout.description["join"])
    members = {role: column.tolist() for role, column in layout.members.items()}
    backs = layout.background_members.tolist()
    if join != "rows of a map" and settings["rule"] not in ("name",):
        slot = str(settings.get("number", ""))
        exact = {
            role: _distinct(names, indexes, lambda name: _numbered(name, join, slot))
            for role, indexes in members.items()
        }
        if all(exact.values()) and _numbers_suffice(names, members["fg_bg"], join):
            if settings.get("number") not in (None, "bg"):
                settings["number"] = _group_name(slot)
            found = {role: each for role, each in exact.items() if each is not None}
            return found | _backgrounds(names, backs), True
    general = {
        role: _distinct(names, indexes, lambda name: _general(name, join, settings))
        or [f".*\\.{names[indexes[0]].rpartition('.')[2]}"]
        for role, indexes in members.items()
    }
    return general | _backgrounds(names, backs), False


def _distinct(
    names: Sequence[str], indexes: Sequence[int], write: Callable[[str], str]
) -> list[str] | None:
    """The patterns of all names; None where they are too many."""
    found: dict[str, str] = {}
    for index in indexes:
        outline = _DIGITS.sub("0", names[index])
        if outline not in found:
            found[outline] = write(names[index])
            if len(set(found.values())) > _MOST_PATTERNS:
                return None
    return sorted(set(found.values()))


def _backgrounds(names: Sequence[str], indexes: Sequence[int]) -> dict[str, list[str]]:
    if not indexes:
        return {}

    def numbered(name: str) -> str:
        path, base, extension = _split(name)
        ends = [found.span() for found in _DIGITS.finditer(base)]
        start, end = ends[-1] if ends else (0, 0)
        stem = f"{_runs(base[:start])}(?P<bg>\\d+){_runs(base[end:])}" if ends else "(?P<bg>[^/]+)"
        return f"{_runs(path)}{stem}{extension}"

    def general(name: str) -> str:
        path, _, extension = _split(name)
        return f"{_runs(path)}(?P<bg>[^/]+){extension}"

    found = _distinct(names, indexes, numbered)
    if found is None or any("[^/]+" in each for each in found):
        found = _distinct(names, indexes, general)
    return {"bg": found or [".*/(?P<bg>[^/]+)\\.[a-z]+"]}


def _numbered(name: str, join: str, slot: str) -> str:
    """A pattern in which every number that joins companions is a group."""
    path, base, extension = _split(name)
    text = filenames.strip_words(base)
    shape = filenames.shape_of(base.lower())
    stated = shape.background if slot == "bg" else None
    kept = [span for piece in shape.pieces for span in _spans(base, piece)]
    inner = [found.span() for found in _DIGITS.finditer(text)]
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
    folders = _folders(path, join, slot, stated is not None)
    return f"{folders}{_runs(base, groups)}{extension}"


def _folders(path: str, join: str, slot: str, stated: bool) -> str:
    """The folders' part of a pattern, with a group for each number that counts."""
    parts = path.split("/")[:-1]
    written: list[str] = []
    innermost = True
    for place, part in enumerate(reversed(parts)):
        pieces = filenames.shape_of(part.lower()).pieces
        spans = [span for piece in pieces for span in _spans(part, piece)]
        joins = join == "same path" or (join == "same folder and name" and innermost and pieces)
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
        written.append(_runs(part, groups) + "/")
    return "".join(reversed(written))


def _general(name: str, join: str, settings: Mapping[str, object]) -> str:
    """A pattern that takes whole words for groups: what is left of a name without role words."""
    path, base, extension = _split(name)
    parts = path.split("/")[:-1]
    written = []
    for place, part in enumerate(parts):
        depth = len(parts) - place
        if not filenames.strip_words(part):
            written.append(re.escape(part) + "/")
        elif join == "same path":
            written.append(f"(?P<d{depth}>[^/]+)/")
        else:
            written.append("[^/]+/")
    pieces = filenames.shape_of(base.lower()).pieces
    head, tail = (base[: pieces[0].start], base[pieces[-1].stop :]) if pieces else (base, "")
    stated = settings.get("number") == "bg"
    word = "(?P<name>[^/]+)"
    if stated and filenames.shape_of(base.lower()).background:
        word = f"(?P<name>{_BACKGROUND}[^/]*)"
    stem = f"{re.escape(head)}{word}{re.escape(tail)}" if pieces else re.escape(base)
    if settings["rule"] == "name" and pieces:
        stem = f"{re.escape(head)}(?P<bg>[^/]+)[-_ .](?P<name>[^-_ ./]+){re.escape(tail)}"
    return "".join(written) + stem + extension


def _numbers_suffice(names: Sequence[str], indexes: Sequence[int], join: str) -> bool:
    """Whether no two samples differ in words alone."""
    if len({_words(names[index], join) for index in indexes}) == 1:
        return True
    seen = set()
    for index in indexes:
        path, base, _ = _split(names[index])
        parts = [text for text in map(filenames.strip_words, path.split("/")) if text]
        parts = {"same path": parts, "same folder and name": parts[-1:]}.get(join, [])
        seen.add(
            tuple(tuple(filenames.numbers(part)) for part in (*parts, filenames.strip_words(base)))
        )
    return len(seen) == len(indexes)


def _words(name: str, join: str) -> str:
    """What else than numbers joins a file with its companions."""
    path, base, _ = _split(name)
    parts = path if join in ("same path", "same folder and name") else ""
    return _DIGITS.sub("0", f"{parts}{base}")


def _spans(text: str, piece: slice) -> list[tuple[int, int]]:
    return [found.span() for found in _DIGITS.finditer(text, piece.start, piece.stop)]


def _runs(text: str, groups: Mapping[tuple[int, int], str] | None = None) -> str:
    """``text`` as a pattern: numbers become groups, or any number; all else stands for itself."""
    written, end = [], 0
    for found in _DIGITS.finditer(text):
        group = (groups or {}).get(found.span())
        written += [re.escape(text[end : found.start()]), f"(?P<{group}>\\d+)" if group else "\\d+"]
        end = found.end()
    return "".join(written) + re.escape(text[end:])


def _group_name(slot: str) -> str:
    return f"n{slot}" if slot.isdigit() else slot


def _split(name: str) -> tuple[str, str, str]:
    """Folders with the last slash, the stem, and the extension as a pattern."""
    path, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".")
    return path + slash, stem, f"\\.{re.escape(extension)}"


def _quote(text: str) -> str:
    """A TOML string: literal where it can be, for a pattern's sake."""
    if "'" not in text and text.isprintable():
        return f"'{text}'"
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    # A lone surrogate, which no TOML can hold, becomes the pattern for any character.
    safe = ("." if 0xD800 <= ord(c) <= 0xDFFF else f"\\U{ord(c):08X}" for c in plain)
    marks = (c if c.isprintable() else other for c, other in zip(plain, safe, strict=True))
    return f'"{"".join(marks)}"'


def _value(value: object) -> str:
    return _quote(value) if isinstance(value, str) else json.dumps(value)
