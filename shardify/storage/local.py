"""Which files of what a user names lie on this machine."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from shardify.storage.paths import Place

__all__ = ["files_at", "size_of"]

_FILES = 64
"""So many of a folder's files are looked at: it may hold pictures by the million."""


def files_at(paths: Sequence[Place]) -> list[Path]:
    """Files on this machine that are named, or lie in a folder that is; of a folder's the first."""
    found: list[Path] = []
    for path in paths:
        # What cannot be looked at, the survey will name.
        with suppress(OSError):
            if isinstance(path, Path):
                inside = islice(path.iterdir(), _FILES) if path.is_dir() else [path]
                found += [each for each in inside if each.is_file()]
    return found


def size_of(files: Sequence[Path]) -> int:
    """Bytes; of what cannot be looked at, none."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return total
