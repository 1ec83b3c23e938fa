"""Samples whose pictures are stored as they are, read and checked by the shortest way.

Most samples of most data sets are plain: three deflated entries of one file, each with the local
header that the directory promises, each a picture whose beginning was seen before. Those are found
here, with every check that ``extract`` and ``images`` make. Nothing is refused here: what is not
plain in every respect is left to them, and they say what is wrong with it.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from shardify.beginnings import Beginnings
from shardify.errors import EntryError
from shardify.images import Picture
from shardify.inflate import ERRORS, crc32, decompressobj
from shardify.pixels import is_plain, same_aspect
from shardify.ranges import Handle
from shardify.tasks import ROW, ShardTask

__all__ = ["BY_NAME", "Copied", "Copier"]

BY_NAME = {b"jpg": "jpg", b"jpeg": "jpg", b"png": "png"}
"""Kinds that a name's extension tells, where nothing is to be checked."""

_HEAD = 30
_SLACK = 64
_unpack = struct.Struct("<4s2x2H8x2L2H").unpack_from

_Entry = tuple[bytes, int, int, int, int, int, int, int]
"""Name, and the columns of ``tasks.ROW``; in place of the limit how many bytes to read."""


class Copied(NamedTuple):
    """One sample as it lies in the zip."""

    pictures: tuple[Picture, ...]
    """What each role's is; the same object for samples that are alike, one after another."""
    data: list[bytes]
    """Payload of each role."""


class Copier:
    """Reads the plain samples of one task.

    Args:
        task: Whose samples.
        handles: Its sources, open.
    """

    def __init__(self, task: ShardTask, handles: Sequence[Handle]) -> None:
        self._files = [each for each in handles if isinstance(each, int)]
        able = (
            len(self._files) == len(handles)
            and len(task.variants) == 1
            and task.variants[0].unchanged
            and task.verify != "decode"
            and task.meaning.mask == "threshold"
        )
        self._meaning = task.meaning
        self._samples = _samples(task) if able else []
        self._seen = [(role, Beginnings()) for role in task.roles]
        self._trust = {end: Picture(kind, 0, 0, 0, 0) for end, kind in BY_NAME.items()}
        self._trusted = task.verify == "none"
        self._last: tuple[Picture, ...] = ()

    def copy(self, number: int, *, trust: bool = True) -> Copied | None:
        """One sample; None where it is not plain.

        Args:
            number: Of the sample in the task.
            trust: Whether names may tell what pictures are, if ``--verify`` leaves it at that.

        Raises:
            OSError: The disk cannot be read.
        """
        if not self._samples:
            return None
        payloads: list[bytes] = []
        files = self._files
        entries = self._samples[number]
        for name, source, offset, length, packed, size, crc, method in entries:
            block = os.pread(files[source], length, offset)
            if len(block) < _HEAD:
                return None
            magic, flags, stated_method, stated_packed, stated_size, names, extra = _unpack(block)
            start = _HEAD + len(name) + extra
            stop = start + packed
            if (
                stated_size != size
                or stated_packed != packed
                or stated_method != method
                or flags & 1
                or names != len(name)
                or stop > len(block)
                or magic != b"PK\x03\x04"
                or not block.startswith(name, _HEAD)
            ):
                return None
            data = block[start:stop]
            if method:
                inflater = decompressobj(-15)
                try:
                    # As in ``extract``: a longer payload shows without being unpacked.
                    data = inflater.decompress(data, size + 1)
                except ERRORS:
                    return None
                if not inflater.eof or inflater.unused_data:
                    return None
            if len(data) != size or crc32(data) != crc:
                return None
            payloads.append(data)
        trust = trust and self._trusted
        pictures = self._told(entries) if trust else self._parsed(payloads)
        if pictures is None:
            return None
        # Nearly always those of the sample before, which were found good.
        if pictures != self._last:
            if not (trust or self._fit(pictures)):
                return None
            self._last = pictures
        return Copied(self._last, payloads)

    def _told(self, entries: Sequence[_Entry]) -> tuple[Picture, ...] | None:
        """What names say of the pictures."""
        trust = self._trust.get
        found = [trust(name[name.rfind(b".") + 1 :].lower()) for name, *_ in entries]
        told = tuple([picture for picture in found if picture is not None])
        return told if len(told) == len(found) else None

    def _parsed(self, payloads: Sequence[bytes]) -> tuple[Picture, ...] | None:
        try:
            return tuple(
                [seen.parse(data) for (_, seen), data in zip(self._seen, payloads, strict=True)]
            )
        except EntryError:
            return None

    def _fit(self, pictures: tuple[Picture, ...]) -> bool:
        """Whether these may stand for their roles as they are, in one sample."""
        return all(
            is_plain(picture, role, self._meaning) and same_aspect(picture, pictures[0])
            for (role, _), picture in zip(self._seen, pictures, strict=True)
        )


def _samples(task: ShardTask) -> list[tuple[_Entry, ...]]:
    """The entries of each sample, one a role."""
    names = [name for sample in task.names for name in sample]
    rows = task.rows.ravel()
    column = {name: rows[name] for name in ROW.names or ()}
    most = np.fromiter(map(len, names), np.int64, len(names)) + column["packed"] + _HEAD + _SLACK
    column["limit"] = np.minimum(most, column["limit"] - column["offset"])
    columns = [column[name].tolist() for name in ROW.names or ()]
    entries: Iterator[Any] = zip(names, *columns, strict=True)
    # The same iterator several times: so many of its items make one sample.
    return list(zip(*[entries] * len(task.roles), strict=True))
