"""Find files that are named for a role but cannot be read: another format, or refused entries.

A role whose files are there but cannot be read is an error, never an absent role.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from shardify.layout import filenames
from shardify.layout.name_groups import Group, NameGroups, indexes_by_role, parse_group
from shardify.layout.sample_table import SampleTable
from shardify.sources import file_types

Refused = Sequence[tuple[str, str]]
"""Name and reason of each entry that the catalog refused."""

_REMEDIES = {
    "bg": "JPEG or PNG", "fg_bg": "JPEG or PNG", "mask": "PNG", "depth": "16-bit PNG or .npy",
}  # fmt: skip


def claimed_role(group: Group) -> str | None:
    """Return the role that the words of a group's folders and stems name; None without one."""
    words = {*group.stem, *(word for folder in group.folders for word in folder)}
    if words & {"other", "eye", "validity", "cutout"}:
        return None
    for role, names in (
        ("depth", {"depth"}),
        ("mask", {"mask", "trimap", "label"}),
        ("fg_bg", {"fg_bg"}),
        ("bg", {"bg"}),
        ("fg_bg", {"picture"}),
    ):
        if words & names and not (role == "fg_bg" and "fg" in words):
            return role
    return None


def unread_message(
    name_groups: NameGroups,
    refused: Refused,
    roles: Sequence[str | None] = (),
    table: SampleTable | None = None,
) -> str | None:
    """Describe the files of one role that cannot be read and that samples lack; None without any.

    Args:
        name_groups: The names in groups.
        refused: Entries that the catalog refused.
        roles: Role of each group; empty if roles cannot be assigned.
        table: The joined samples, if roles are assigned.
    """
    names = name_groups.names
    unread: dict[str, list[tuple[str, str]]] = {}
    for group, indexes in name_groups.unread.items():
        if role := claimed_role(group):
            kind = f".{group.extension}" if group.extension else "without extension"
            unread.setdefault(role, []).extend((names[index], kind) for index in indexes)
    for name, reason in refused:
        if role := _claimed_by_name(name, name_groups.shared_path):
            unread.setdefault(role, []).append((name, reason))
    files = indexes_by_role(name_groups, roles) if unread and roles else {}
    for role in ("depth", "mask", "bg", "fg_bg"):
        lost = unread.get(role, [])
        if lost and role in files:
            column = table.members.get(role) if table else None
            if column is not None and not (column == -1).any():
                continue
            # A few entries that the catalog refused are in rejected.jsonl, as are their samples.
            known = _stems(names[index] for index in files[role].tolist())
            lost = [
                (name, kind)
                for name, kind in lost
                if kind.startswith(".") and not _stems([name]) <= known
            ]
        if lost:
            kinds = Counter(kind for _, kind in lost).most_common(3)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds)
            example = min(ascii(name)[1:-1] for name, _ in lost)
            return (
                f"{len(lost)} files named as {role} cannot be read ({shown}; such as {example}); "
                f"convert them to {_REMEDIES[role]}, or leave them out, or pass --layout"
            )
    return None


def _claimed_by_name(name: str, shared_path: str) -> str | None:
    path, _, base = name.replace("\\", "/").strip("/").rpartition("/")
    stem, dot, extension = base.rpartition(".")
    if (
        file_types.is_junk(base)
        or file_types.is_junk_folder(path)
        or extension.lower() in file_types.SIDE_EXTENSIONS
    ):
        return None
    words = filenames.role_words(stem if dot else base)
    return claimed_role(parse_group(path, words, extension.lower(), shared_path))


def _stems(names: Iterable[str]) -> set[str]:
    return {filenames.strip_words(filenames.file_stem(name) or name) for name in names}
