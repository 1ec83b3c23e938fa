"""Write a layout file to begin with, for a source whose roles were not found."""

import re
from collections.abc import Sequence

from shardify.layout import filenames
from shardify.layout.pixel_kinds import KINDS
from shardify.layout.role_candidates import FileClass

_MAX_PATTERNS = 12


def starter_layout(classes: Sequence[FileClass], roles: Sequence[str | None]) -> str:
    """Return TOML with a pattern for each class, under its role if it has one.

    Args:
        classes: Classes of files.
        roles: Role of each class; None without one.
    """
    lines = ["# A layout file to begin with: give each role its files; see docs/layouts.md.", ""]
    listed: dict[str | None, list[str]] = {}
    for each, role in zip(classes, roles, strict=True):
        kinds = ", ".join(KINDS[kind] for kind, _ in each.kinds.most_common(2))
        shown = f"{each.files} files" + (f", {kinds}" if kinds else "")
        listed.setdefault(role, []).append(f"{_pattern(each.name, role)},  # {shown}")
    lines.append("[roles]")
    for role in filenames.ROLES:
        if role in listed:
            lines += [f"{role} = [", *(f"    {each}" for each in listed[role][:_MAX_PATTERNS]), "]"]
        else:
            lines.append(f"# {role} = []  # none was found")
    if None in listed:
        lines += ["# Files without a role:"]
        lines += [f"#     {each}" for each in listed[None][:_MAX_PATTERNS]]
    return "\n".join(lines) + "\n"


def _pattern(name: str, role: str | None) -> str:
    """Return the pattern of a class, from its name (``a_#/*.png``), as a TOML string."""
    folder, _, base = name.rpartition("*")
    group = "bg" if role == "bg" else "name"
    start = ".*" if folder else "(?:.*/)?"
    body = re.escape(folder).replace(r"\#", r"\d+")
    return toml_string(f"{start}{body}(?P<{group}>[^/]+){re.escape(base)}")


def toml_string(text: str) -> str:
    """Return a TOML string: literal if possible, because patterns contain backslashes."""
    if "'" not in text and text.isprintable():
        return f"'{text}'"
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    # TOML cannot hold a lone surrogate: write the pattern for any character instead.
    safe = ("." if 0xD800 <= ord(c) <= 0xDFFF else f"\\U{ord(c):08X}" for c in plain)
    escaped = (c if c.isprintable() else other for c, other in zip(plain, safe, strict=True))
    return f'"{"".join(escaped)}"'
