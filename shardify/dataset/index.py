"""DALI index files: where each member's bytes lie inside one tar shard.

Text in, text out; this module opens no file and knows nothing of zips.
Format: version v1.2 of DALI's ``wds2idx``: ``v1.2 SAMPLES``, then a line a sample with
``EXTENSION OFFSET SIZE NAME`` for each member. DALI believes an index blindly, so ``parse``
is strict.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shardify.errors import VerifyError

__all__ = ["Member", "format_index", "head_of", "line_of", "parse_index"]


class Member(NamedTuple):
    """One file of one sample, as DALI will seek to it."""

    extension: str
    """All after the first dot of the name: ``fg_bg.jpg``."""
    offset: int
    """First payload byte, counted from the start of the tar. Bytes."""
    size: int
    name: str
    """The member's whole name in the tar."""


def format_index(samples: Sequence[Iterable[Member]]) -> str:
    """The index of one shard.

    Args:
        samples: Members of each sample, in the order of the tar.
    """
    return head_of(len(samples)) + "".join([f"{line_of(members)}\n" for members in samples])


def line_of(members: Iterable[tuple[str, int, int, str]]) -> str:
    """One sample's line, of what ``Member`` holds."""
    return " ".join([f"{each[0]} {each[1]} {each[2]} {each[3]}" for each in members])


def head_of(samples: int) -> str:
    """The first line of an index; each sample's line follows."""
    return f"v1.2 {samples}\n"


def parse_index(text: str) -> list[list[Member]]:
    """Read an index back.

    Raises:
        VerifyError: It is not a whole v1.2 index.
    """
    head, *lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    if head != f"v1.2 {len(lines)}":
        raise VerifyError(f"its first line is {head[:40]!r}; expected 'v1.2 {len(lines)}'")
    samples = []
    for number, line in enumerate(lines, 2):
        words = line.split(" ")
        try:
            if len(words) % 4:
                raise ValueError
            samples.append(
                [
                    Member(
                        words[place], int(words[place + 1]), int(words[place + 2]), words[place + 3]
                    )
                    for place in range(0, len(words), 4)
                ]
            )
        except ValueError:
            raise VerifyError(f"line {number} is no list of EXTENSION OFFSET SIZE NAME") from None
    return samples
