"""What goes into the compiled part of a build and comes out of it: arrays, told by their addresses.

Their types and shapes are checked here; what they hold is made by ``copier`` and used by
``kernel``. Nothing here is compiled or loaded.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHECKED", "LEFT", "TRUSTED", "WORDS", "Copying", "Known", "Plan", "Room", "words_of"]

TRUSTED, CHECKED, LEFT = 0, 1, 2
"""What to make of a sample's pictures: go by their names, look into them, leave all to others."""

WORDS = 4
"""An array is told by its address and up to three dimensions."""

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


class Plan(NamedTuple):
    """What a task says of its N samples in R roles."""

    files: Ints
    """Descriptors of the sources."""
    rows: Ints
    """(N, R, 7): source, offset, bytes to read, packed size, size, CRC-32, method."""
    names: Bytes
    """The entries' names, end to end."""
    name_ends: Ints
    """(N * R + 1,): where each ends, after a 0."""
    keys: Bytes
    """The samples' keys, end to end."""
    key_ends: Ints
    """(N + 1,)"""
    extensions: Bytes
    """``.fg_bg.jpg``, ``.fg_bg.png`` and so on, two a role, and ``.bg.cls``, end to end."""
    extension_ends: Ints
    """(2 * R + 2,)"""
    kinds: Ints
    """(N, R): 0 JPEG, 1 PNG, by the entry's name; -1 another."""
    background: Ints
    """(N,): its number, or -1."""
    handling: Ints
    """(N,): TRUSTED, CHECKED or LEFT."""
    nameless: Bytes
    """(512,): a tar header without name, size and sum, its sum's place all but blank."""


class Known(NamedTuple):
    """How pictures begin that were found whole and plain."""

    heads: Bytes
    """Their beginnings, end to end."""
    places: Ints
    """(K, 4): role, kind, first byte in ``heads`` and end."""
    sorts: Ints
    """(C, R): which of them may stand together in a sample, one a role."""


class Room(NamedTuple):
    """Where it works."""

    scratch: Bytes
    """For one entry as it is read."""
    block: Bytes
    """For a piece of the tar."""
    text: Bytes
    """For the lines of that piece in the index."""
    sorts: Ints
    """(N,), written: which of ``Known.sorts`` a sample is; if it was trusted, -1 less the sum of
    kind << role."""
    found: Ints
    """(R,), for itself."""
    told: Ints
    """(4,): the first sample to copy, the offset of the block in its tar (a multiple of 512), the
    address of a decompressor; written: the sample stopped before, bytes of block and of text, and
    whether it only stopped because they are full."""


_BYTES = ("names", "keys", "extensions", "nameless", "heads", "scratch", "block", "text")
_DIMENSIONS = {"rows": 3, "kinds": 2, "places": 2}


class Copying(Protocol):
    """The compiled part, ready to be called: ``machine.Machine``."""

    def copy(
        self, plan: Plan, known: Known, room: Room, first: int, offset: int
    ) -> tuple[int, int, int, bool]:
        """Lay plain samples out, from the ``first`` on."""
        ...


def words_of(plan: Plan, known: Known, room: Room) -> Ints:
    """The address and dimensions of every array, in order. Raises ValueError."""
    words = []
    records: tuple[Any, ...] = (plan, known, room)
    for record in records:
        for name, array in zip(record._fields, record, strict=True):
            dimensions = 2 if record is known and name == "sorts" else _DIMENSIONS.get(name, 1)
            wanted = np.uint8 if name in _BYTES else np.int64
            if array.dtype != wanted or array.ndim != dimensions or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name}: {array.ndim} dimensions of {array.dtype}; expected {dimensions} of "
                    f"{np.dtype(wanted)}, one after another"
                )
            words += [array.ctypes.data, *array.shape, *[0] * (WORDS - 1 - dimensions)]
    return np.array(words, np.int64)
