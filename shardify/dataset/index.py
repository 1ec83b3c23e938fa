"""DALI index files: where each member's bytes lie inside one tar shard.

Text in, text out; this module opens no file and knows nothing of zips.
Format: version v1.2 of DALI's ``wds2idx``: ``v1.2 SAMPLES``, then a line a sample with
``EXTENSION OFFSET SIZE NAME`` for each member. DALI believes an index blindly, so ``parse``
is strict.

The index beside a shard: where each sample's members lie, and what each sample is called.

Text in, arrays out, and every number checked, for what reads by them believes them. The format is
that of DALI's ``wds2idx``, version v1.2. This module opens no shard.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Shard
from shardify.errors import DataError, VerifyError

__all__ = ["BLOCK", "Member", "format_index", "head_of", "line_of", "parse_index", "read_index"]


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


BLOCK = 512
"""A tar's unit: a member's header, and what its payload is filled up to. Bytes."""


def read_index(
    path: Path, shard: Shard, length: int, members: tuple[str, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
    """Read the index of one shard of n samples.

    Args:
        path: Of the index.
        shard: As the manifest has it.
        length: Of the shard. Bytes.
        members: The k roles that every sample has, in their order.

    Returns:
        Offsets (n, k) and sizes (n, k) of the members' payloads in bytes; keys (n,) in ASCII.

    Raises:
        DataError: It cannot be read, is no index of that shard, or points where no members can be.
    """
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); every shard needs its index; "
            "build the data set again"
        ) from error
    remedy = f"run `shardify verify {path.parent}`, then build it again"
    if head.split() != [b"v1.2", str(shard.samples).encode()]:
        raise DataError(f"{path}: begins {head[:32]!r}; expected 'v1.2 {shard.samples}'; {remedy}")
    tokens = body.split()
    width = 4 * len(members)
    if len(tokens) != width * shard.samples:
        raise DataError(
            f"{path}: {len(tokens)} words; expected {width} for each of {shard.samples} samples; "
            f"{remedy}"
        )
    table = np.array(tokens).reshape(shard.samples, len(members), 4)
    names = table[:, 0, 3]
    keys = np.strings.partition(names, np.bytes_(b"."))[0]
    try:
        offsets, sizes = table[:, :, 1].astype(np.int64), table[:, :, 2].astype(np.int64)
    except ValueError as error:
        raise DataError(f"{path}: holds {error}; expected whole numbers; {remedy}") from None

    roles = np.array([role.encode() for role in members])
    wrong = (np.strings.partition(table[:, :, 0], np.bytes_(b"."))[0] != roles).any(axis=1)
    stems = np.strings.partition(table[:, :, 3], np.bytes_(b"."))[0]
    wrong |= (stems != keys[:, None]).any(axis=1)
    places = np.stack([offsets, offsets + sizes], axis=2).reshape(-1)
    backward = np.flatnonzero(np.diff(places, prepend=BLOCK) < 0)
    wrong[backward // (2 * len(members))] = True
    wrong |= (offsets % BLOCK != 0).any(axis=1) | (sizes < 1).any(axis=1)
    wrong |= (offsets + sizes > length).any(axis=1)
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: line {line + 2}, {keys[line].decode('ascii', 'replace')}: its members are "
            f"not {', '.join(members)}, one after the other within {shard.bytes} bytes; {remedy}"
        )
    return offsets, sizes, keys
