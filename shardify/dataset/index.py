"""Write and parse DALI index files: offset, size and name of each member of a tar shard.

Format: version v1.2 of DALI's ``wds2idx``: ``v1.2 SAMPLES``, then one line per sample with
``EXTENSION OFFSET SIZE NAME`` for each member. DALI does not check an index, so parsing is strict.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Shard
from shardify.errors import DataError, VerifyError

BLOCK = 512
"""Unit of a tar: size of a member's header, and multiple to which payloads are padded. Bytes."""


class Member(NamedTuple):
    """One file of one sample."""

    extension: str
    """Everything after the first dot of the name, for example ``fg_bg.jpg``."""
    offset: int
    """Offset of the first payload byte in the tar. Bytes."""
    size: int
    """Bytes."""
    name: str
    """Name in the tar."""


class ShardIndex(NamedTuple):
    """The index of one shard: n samples with k members each."""

    extensions: npt.NDArray[np.bytes_]
    """(n, k)"""
    offsets: npt.NDArray[np.int64]
    """(n, k) offset of each payload in the tar. Bytes."""
    sizes: npt.NDArray[np.int64]
    """(n, k) size of each payload. Bytes."""
    names: npt.NDArray[np.bytes_]
    """(n, k) names in the tar."""

    @property
    def roles(self) -> npt.NDArray[np.bytes_]:
        """(n, k) extensions up to their first dot."""
        roles: npt.NDArray[np.bytes_] = np.strings.partition(self.extensions, np.bytes_(b"."))[0]
        return roles

    def members(self, sample: int) -> list[Member]:
        """Return the members of one sample."""
        return [
            Member(extension.decode(), offset, size, name.decode())
            for extension, offset, size, name in zip(
                *(column[sample].tolist() for column in self), strict=True
            )
        ]


def index_line(members: Iterable[tuple[str, int, int, str]]) -> str:
    """Format the line of one sample, without a newline; see ``Member`` for the fields."""
    return " ".join([f"{member[0]} {member[1]} {member[2]} {member[3]}" for member in members])


def index_header(samples: int) -> str:
    """Format the first line of an index; one line per sample follows."""
    return f"v1.2 {samples}\n"


def parse_index(data: bytes) -> ShardIndex:
    """Parse an index whose samples all have the same number of members.

    Raises:
        VerifyError: It is not a complete v1.2 index, or not UTF-8.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise VerifyError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    head, _, body = data.partition(b"\n")
    lines = body.count(b"\n")
    if head != b"v1.2 %d" % lines or body[-1:] not in (b"\n", b""):
        raise VerifyError(f"its first line is {str(head[:40])[1:]}; expected 'v1.2 {lines}'")
    tokens = body.split()
    width = len(tokens) // lines if lines else 4
    if width % 4 or width * lines != len(tokens) or not width:
        raise VerifyError(
            f"{len(tokens)} words; expected EXTENSION OFFSET SIZE NAME for each member, and as "
            f"many members for each of {lines} samples"
        )
    table = np.array(tokens, np.bytes_).reshape(lines, width // 4, 4)
    try:
        offsets, sizes = table[:, :, 1].astype(np.int64), table[:, :, 2].astype(np.int64)
    except (ValueError, OverflowError) as error:
        raise VerifyError(f"holds {error}; expected whole numbers") from None
    return ShardIndex(table[:, :, 0], offsets, sizes, table[:, :, 3])


def read_index(
    path: Path, shard: Shard, length: int, members: tuple[str, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
    """Read the index of one shard of n samples, and check it against shard and manifest.

    Args:
        path: The index file.
        shard: The shard's record in the manifest.
        length: Size of the shard. Bytes.
        members: The k roles of every sample, in order.

    Returns:
        Offsets (n, k) and sizes (n, k) of the members' payloads in bytes; keys (n,) in ASCII.

    Raises:
        DataError: The index cannot be read, does not belong to this shard, or points to places
            where no members can be.
    """
    remedy = f"run `shardify verify {path.parent}`, then build it again"
    try:
        index = parse_index(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); every shard needs its index; "
            "build the data set again"
        ) from error
    except VerifyError as error:
        raise DataError(f"{path}: {error}; {remedy}") from None
    offsets, sizes = index.offsets, index.sizes
    if offsets.shape != (shard.samples, len(members)):
        raise DataError(
            f"{path}: {4 * offsets.size} words; expected {4 * len(members)} for each of "
            f"{shard.samples} samples; {remedy}"
        )
    keys = np.strings.partition(index.names, np.bytes_(b"."))[0]
    wrong = (index.roles != np.array([role.encode() for role in members])).any(axis=1)
    wrong |= (keys != keys[:, :1]).any(axis=1)
    edges = np.stack([offsets, offsets + sizes], axis=2).reshape(-1)
    backward = np.flatnonzero(np.diff(edges, prepend=BLOCK) < 0)
    wrong[backward // (2 * len(members))] = True
    wrong |= (offsets % BLOCK != 0).any(axis=1) | (sizes < 1).any(axis=1)
    wrong |= (offsets + sizes > length).any(axis=1)
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: line {line + 2}, {keys[line, 0].decode(errors='replace')}: its members are "
            f"not {', '.join(members)}, one after the other within {shard.bytes} bytes; {remedy}"
        )
    return offsets, sizes, keys[:, 0]
