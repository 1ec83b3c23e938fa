"""Where, in all names of one outline, what companions share stands, and what the numbers mean.

Studies one name and says at which places of any name alike something is to be cut out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shardify.layout import filenames

__all__ = [
    "ALL_FOLDERS",
    "LAST_FOLDER",
    "NO_FOLDER",
    "Numbers",
    "Recipe",
    "numbers_of",
    "recipe_of",
]

NO_FOLDER, LAST_FOLDER, ALL_FOLDERS = range(3)
"""What of its folders belongs to a name's key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to make a key of a name."""

    pieces: tuple[slice, ...]
    joints: tuple[str, ...]
    """What stands between the pieces."""
    lower: bool
    """Whether names of this outline must be turned to lower case first."""
    lead: str = ""
    """What stands before the first piece."""

    def apply(self, names: Sequence[str]) -> list[str]:
        """The keys of names that all have the outline."""
        if self.lower:
            names = [name.lower() for name in names]
        lead, pieces = self.lead, self.pieces
        first = pieces[0]
        if len(pieces) == 1:
            return [lead + name[first] for name in names]
        if len(pieces) == 2:
            second, joint = pieces[1], self.joints[0]
            return [lead + name[first] + joint + name[second] for name in names]
        rest = list(zip(self.joints, pieces[1:], strict=True))
        return [
            lead + name[first] + "".join([joint + name[piece] for joint, piece in rest])
            for name in names
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """Where in a name its numbers stand; None where it has no such number."""

    background: slice | None
    """After a word for background: in the stem, else in the innermost folder that has one."""
    foreground: slice | None
    folder: slice | None
    """The last run of digits of the innermost folder."""


def recipe_of(name: str, shared: int, folders: int) -> Recipe | None:
    """The recipe for all names of this one's outline; None where it is not so simple.

    Args:
        name: Any of them.
        shared: How many leading folders to pass over.
        folders: ``NO_FOLDER``, ``LAST_FOLDER`` or ``ALL_FOLDERS``.
    """
    lower = name.lower()
    if len(lower) != len(name):
        return None
    path, _, base = lower.rpartition("/")
    groups = []
    for start, part in _parts(path, shared) if folders else ():
        found = [_moved(piece, start) for piece in filenames.shape_of(part).pieces]
        if found:
            groups.append(found)
    if folders == LAST_FOLDER:
        groups = groups[-1:]
    stem = base.rpartition(".")[0]
    place = len(path) + 1 if path or name.startswith("/") else 0
    last = [_moved(piece, place) for piece in filenames.shape_of(stem).pieces]
    if not last:
        return None
    pieces: list[slice] = []
    joints: list[str] = []
    for group in [*groups, last]:
        for number, piece in enumerate(group):
            if pieces:
                joints.append("_" if number else "/")
            pieces.append(piece)
    lead = "/" if folders and not groups else ""
    return Recipe(pieces=tuple(pieces), joints=tuple(joints), lower=lower != name, lead=lead)


def numbers_of(name: str, shared: int) -> Numbers | None:
    """Where the numbers stand in all names of this one's outline; None as for ``recipe_of``."""
    lower = name.lower()
    if len(lower) != len(name):
        return None
    path, _, base = lower.rpartition("/")
    place = len(path) + 1 if path or name.startswith("/") else 0
    stem = base.rpartition(".")[0]
    shape = filenames.shape_of(stem)
    background = _found(shape, shape.background, place)
    foreground = _found(shape, shape.foreground, place)
    folder = None
    parts = list(_parts(path, shared))
    for number, (start, part) in enumerate(reversed(parts)):
        inner = filenames.shape_of(part)
        if number == 0:
            folder = _last_run(inner, part, start)
        if background is None:
            background = _found(inner, inner.background, start)
    return Numbers(background=background, foreground=foreground, folder=folder)


def _parts(path: str, shared: int) -> list[tuple[int, str]]:
    """The folders behind the shared ones, each with the place where it begins."""
    found = []
    start = 0
    for part in path.split("/") if path else ():
        found.append((start, part))
        start += len(part) + 1
    return found[shared:]


def _moved(piece: slice, by: int) -> slice:
    return slice(piece.start + by, piece.stop + by)


def _found(shape: filenames.Shape, inside: slice | None, start: int) -> slice | None:
    """A place in the joined pieces, as a place in the name."""
    if inside is None:
        return None
    at = 0
    for piece in shape.pieces:
        size = piece.stop - piece.start
        if at <= inside.start and inside.stop <= at + size:
            first = start + piece.start + inside.start - at
            return slice(first, first + inside.stop - inside.start)
        at += size + 1
    return None


def _last_run(shape: filenames.Shape, part: str, start: int) -> slice | None:
    """The last run of digits in the pieces."""
    for piece in reversed(shape.pieces):
        text = part[piece]
        stop = len(text)
        while stop and not text[stop - 1].isdecimal():
            stop -= 1
        first = stop
        while first and text[first - 1].isdecimal():
            first -= 1
        if stop:
            first = max(first, stop - 18)
            return slice(start + piece.start + first, start + piece.start + stop)
    return None
