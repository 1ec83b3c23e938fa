"""Files that appear whole or not at all: written beside their place, then renamed.

Knows nothing of what is in them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from train.errors import RunError

__all__ = ["TEMPORARY", "draft", "writable", "write_text"]

TEMPORARY = ".tmp"
"""End of the name of a file that is being written; whoever finds one after a kill may delete it."""


@contextmanager
def draft(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside ``path`` for the block to write at; what is there at its end takes its place.

    After an error or an interrupt nothing is left of it, and what stood at ``path`` stands still.

    Args:
        path: The file.
        durable: Have it on the disk before it takes its place: then not even a loss of power
            leaves an empty one.

    Raises:
        OSError: No room, no permission.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """What the block fails to write there becomes one line.

    Raises:
        RunError: No room, no permission, or it is no folder.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error}); choose another --out") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, durably.

    Raises:
        OSError: No room, no permission.
    """
    with draft(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
