"""Samples whose pictures are stored as they are, by the compiled way from zip to tar.

Most samples of most data sets are plain: deflated entries of one file, each with the local header
that the directory promises, each a picture whose beginning was seen before. In a process that has
the compiled part (``machine``) that copies those, many at a time. Nothing is refused here: what is
not plain in every respect, and everything in other processes, goes the careful way of ``writer``,
which gives the same bytes (and refuses some crafted streams that libdeflate unpacks to what the
zip promises).
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardify.beginnings import beginning
from shardify.handover import CHECKED, LEFT, TRUSTED, Copying, Known, Plan, Room
from shardify.images import Picture
from shardify.pixels import is_plain, same_aspect
from shardify.ranges import Handle
from shardify.tarwriter import NAMELESS, TarWriter
from shardify.tasks import ROW, ShardTask

__all__ = ["BY_NAME", "Copied", "Copier", "use"]

BY_NAME = {b"jpg": "jpg", b"jpeg": "jpg", b"png": "png"}
"""Kinds that a name's extension tells, where nothing is to be checked."""

_KINDS = ("jpg", "png")
_NUMBERS = {end: _KINDS.index(kind) for end, kind in BY_NAME.items()}
_LONGEST = 1 + max(map(len, BY_NAME))

_HEAD = 30
_SLACK = 64
_BLOCK = 1 << 20
"""Small enough to stay in a processor's cache from unpacking over digesting to writing. What is
larger goes the careful way. Bytes."""
_TEXT = 1 << 18
_KNOWN, _SORTS = 96, 96
_PATIENCE = 63
"""So many samples are left alone at most, before the next try."""

_machine: Copying | None = None


def use(machine: Copying) -> None:
    """Copy by this from now on, in this process and those that it forks."""
    global _machine
    _machine = machine


class Copied(NamedTuple):
    """Samples that were appended to a tar."""

    stop: int
    """The sample stopped before."""
    text: bytes
    """Their lines in the index."""
    counts: Counter[tuple[Picture, ...]]
    """What their pictures are, one a role."""


class Copier:
    """Copies the plain samples of one task.

    Args:
        task: Whose samples.
        handles: Its sources, open.
    """

    def __init__(self, task: ShardTask, handles: Sequence[Handle]) -> None:
        self._task = task
        self._handles = handles
        self.able = (
            _machine is not None
            and all(isinstance(each, int) for each in handles)
            and len(task.variants) == 1
            and task.variants[0].unchanged
            and task.verify != "decode"
            and task.meaning.mask == "threshold"
        )
        """Whether pictures that are plain will be copied: they are stored as they lie in files."""
        self._left: set[int] = set()
        self._heads: dict[tuple[int, int, bytes], Picture] = {}
        self._sorts: dict[tuple[int, ...], tuple[Picture, ...]] = {}
        self._known: Known | None = None
        self._plan: Plan | None = None
        self._room: Room | None = None
        self._wait = self._pause = 0

    def leave(self, numbers: Iterable[int]) -> None:
        """Say which samples of the task shall go the careful way."""
        self._left.update(numbers)

    def learn(self, found: Sequence[tuple[str, bytes, Picture]]) -> None:
        """See a sample that was found good, to know its likes.

        Args:
            found: Role, payload and what that is, of each member as it lies in the zip.
        """
        if not self.able or len(self._sorts) >= _SORTS:
            return
        sort = []
        pictures = tuple([picture for _, _, picture in found])
        for place, (role, data, picture) in enumerate(found):
            length = beginning(data, picture) if picture.width else 0
            if not (
                length
                and is_plain(picture, role, self._task.meaning)
                and same_aspect(picture, pictures[0])
            ):
                return
            key = (place, _KINDS.index(picture.kind), data[:length])
            if key not in self._heads:
                if len(self._heads) >= _KNOWN:
                    return
                self._heads[key] = picture
            sort.append(list(self._heads).index(key))
        if tuple(sort) not in self._sorts:
            self._sorts[tuple(sort)] = pictures
            self._known = None
            self._pause = 0

    def copy(self, first: int, tar: TarWriter) -> Copied | None:
        """Append plain samples, from the ``first`` of the task on; None if that is not plain.

        Raises:
            OSError: OUT cannot be written.
        """
        if _machine is None or not self.able or self._pause:
            self._pause = max(0, self._pause - 1)
            return None
        if self._plan is None or self._room is None:
            self._plan, self._room = self._planned(), _room(*self._task.rows.shape)
        if self._known is None:
            self._known = self._knowledge()
        room, number, more, text = self._room, first, True, b""
        while more:
            number, filled, written, full = _machine.copy(
                self._plan, self._known, room, number, tar.offset
            )
            tar.append(room.block[:filled].data)
            text += room.text[:written].tobytes()
            more = full and filled > 0
        if number == first:
            # Where nothing is recognised, it is tried less and less often.
            self._pause = self._wait = min(2 * self._wait + 1, _PATIENCE)
            return None
        self._wait = 0
        return Copied(number, text, self._counted(room.sorts[first:number]))

    def _counted(self, sorts: NDArray[np.int64]) -> Counter[tuple[Picture, ...]]:
        counts: Counter[tuple[Picture, ...]] = Counter()
        known = list(self._sorts.values())
        for sort, count in zip(*np.unique(sorts, return_counts=True), strict=True):
            bits = -1 - int(sort)
            told = [
                Picture(_KINDS[bits >> role & 1], 0, 0, 0, 0)
                for role in range(len(self._task.roles))
            ]
            counts[tuple(told) if sort < 0 else known[sort]] += int(count)
        return counts

    def _planned(self) -> Plan:
        """The task as the kernel reads it."""
        task = self._task
        lengths = np.diff(task.name_ends)
        row = {name: task.rows[name].ravel().astype(np.int64) for name in ROW.names or ()}
        row["limit"] = np.minimum(
            _HEAD + lengths + row["packed"] + _SLACK, row["limit"] - row["offset"]
        )
        usual = TRUSTED if task.verify == "none" else CHECKED
        handling = np.where(task.measured, CHECKED, usual).astype(np.int64)
        handling[np.array(sorted(self._left), np.int64)] = LEFT
        return Plan(
            np.array(self._handles, np.int64),
            np.stack(list(row.values()), axis=1).reshape(*task.rows.shape, len(row)),
            _bytes(task.names),
            task.name_ends,
            *_end_to_end([key.encode() for key in task.keys]),
            *_end_to_end(
                [f".{role}.{kind}".encode() for role in task.roles for kind in _KINDS]
                + [b".bg.cls"]
            ),
            _kinds_of(task.names, task.name_ends).reshape(task.rows.shape),
            np.array(task.background, np.int64),
            handling,
            _bytes(NAMELESS),
        )

    def _knowledge(self) -> Known:
        """What the kernel may recognise."""
        heads, ends = _end_to_end([head for _, _, head in self._heads])
        told = np.array([key[:2] for key in self._heads], np.int64).reshape(-1, 2)
        sorts = np.array(list(self._sorts), np.int64).reshape(-1, len(self._task.roles))
        return Known(heads, np.column_stack([told, ends[:-1], ends[1:]]), sorts)


def _room(samples: int, roles: int) -> Room:
    scratch, block, text = _buffers()
    return Room(
        scratch,
        block,
        text,
        np.empty(samples, np.int64),
        np.empty(roles, np.int64),
        np.empty(4, np.int64),
    )


@functools.cache
def _buffers() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Of a process, which does one task after another."""
    return np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8), np.empty(_TEXT, np.uint8)


def _end_to_end(pieces: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bytes of many in one array, and where each ends, after a 0."""
    ends = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=ends[1:])
    return _bytes(b"".join(pieces)), ends


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _kinds_of(names: bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the names' extensions tell: an index into ``_KINDS``, or -1."""
    # What stands before the first name is none of an extension.
    text = np.frombuffer(bytes(_LONGEST) + names, np.uint8)
    last = text[ends[1:, None] + np.arange(_LONGEST)]
    small = last + 32 * ((last >= ord("A")) & (last <= ord("Z")))
    kinds = np.full(len(small), -1)
    for end, number in _NUMBERS.items():
        wanted = np.frombuffer(b"." + end, np.uint8)
        kinds[(small[:, -len(wanted) :] == wanted).all(axis=1)] = number
    # A name of fewer bytes would borrow from the one before.
    kinds[np.diff(ends) < _LONGEST] = -1
    return kinds
