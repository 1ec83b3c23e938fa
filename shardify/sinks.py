"""One variant of a shard in the making: samples in, members of its tar and lines of its index out.

Appends what it is given and keeps count of it; what a sample may hold is decided before.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.codecs import Variant, cost, resized, store
from shardify.copier import Copied
from shardify.images import Picture
from shardify.tarwriter import PADS, TarWriter, headers
from shardify.tasks import Part, ShardTask

__all__ = ["Sink"]

_AT_ONCE = 250
_BLOCK = 512


class Sink:
    """One variant of a task's shard.

    Args:
        task: Whose.
        variant: Which.
        tar: Where the members go.
    """

    def __init__(self, task: ShardTask, variant: Variant, tar: TarWriter) -> None:
        self._task = task
        self._variant = variant
        self._tar = tar
        self._counts: Counter[tuple[Picture, ...]] = Counter()
        self._costs: dict[str, list[float]] = {}
        self._last: tuple[Picture, ...] = ()
        self._alike = _Alike(task, ())
        self._kinds: dict[tuple[str, ...], _Alike] = {}
        self.lines: list[str] = []
        """Of the index."""

    def add(
        self,
        key: str,
        found: list[tuple[str, bytes, Picture]],
        planes: dict[str, NDArray[Any]],
        background: int,
        measured: bool,
    ) -> None:
        """Append one sample.

        Args:
            key: Its key.
            found: Role, payload and what that is, of each member.
            planes: role -> pixels, where the variant encodes anew.
            background: Index into the manifest's backgrounds, or -1.
            measured: Whether it counts for what encoding costs.
        """
        line = []
        variant, add = self._variant, self._tar.add
        pictures = []
        for role, data, picture in found:
            if not variant.unchanged:
                plane = resized(planes[role], role, variant.res)
                data, picture = store(plane, role, picture.kind, variant)
                if measured:
                    total = self._costs.setdefault(role, [0.0, 0])
                    total[0] += cost(plane, data, picture, role)
                    total[1] += 1
            pictures.append(picture)
            extension = f"{role}.{picture.kind}"
            full = f"{key}.{extension}"
            line.append(f"{extension} {add(full.encode(), data)} {len(data)} {full}")
        if background >= 0:
            full = f"{key}.bg.cls"
            line.append(f"bg.cls {add(full.encode(), b'%05d' % background)} 5 {full}")
        self._counts[tuple(pictures)] += 1
        self.lines.append(" ".join(line))

    def copy(self, number: int, copied: Copied) -> None:
        """Append a sample of the task as it lies in the zip; the same bytes as by ``add``.

        Args:
            number: Of the sample in the task.
            copied: Its payloads, of the sizes that the task states.
        """
        pictures, payloads = copied
        if pictures is not self._last:
            self._last = pictures
            kinds = tuple([each.kind for each in pictures])
            if kinds not in self._kinds:
                self._kinds[kinds] = _Alike(self._task, kinds)
            self._alike = self._kinds[kinds]
        self._counts[pictures] += 1
        *heads, last = self._alike.heads(number)
        key = self._task.keys[number]
        start = self._tar.offset
        at = start + _BLOCK
        pieces: list[bytes] = []
        told: list[int | str] = []
        for head, data in zip(heads, payloads, strict=True):
            size = len(data)
            pad = PADS[size % _BLOCK]
            pieces += (head, data, pad)
            told += (at, size, key)
            at += size + len(pad) + _BLOCK
        line = self._alike.line
        if last:
            pieces.append(last)
            told += (at, key)
            at += 2 * _BLOCK
            line += " bg.cls %d 5 %s.bg.cls"
        self._tar.extend(pieces, at - _BLOCK - start)
        self.lines.append(line % tuple(told))

    def part(self, index: bytes) -> Part:
        """End the tar, and say what it holds."""
        digest = self._tar.finish()
        pictures: dict[str, dict[str, int]] = {}
        for place, role in enumerate(self._task.roles if self._counts else ()):
            kinds: Counter[Picture] = Counter()
            for each, count in self._counts.items():
                kinds[each[place]] += count
            ranked = sorted(kinds.items())
            pictures[role] = {" ".join(map(str, each[:5])): count for each, count in ranked}
        return Part(
            bytes=self._tar.offset,
            sha256=digest,
            index_sha256=hashlib.sha256(index).hexdigest(),
            pictures=pictures,
            costs=self._costs,
        )


class _Alike:
    """What stands around the payloads of a task's samples, were all of them of these kinds."""

    def __init__(self, task: ShardTask, kinds: Sequence[str]) -> None:
        self._task = task
        self._first = 0
        self._made: list[tuple[bytes, ...]] = []
        self._extensions = [
            f"{role}.{kind}" for role, kind in zip(task.roles, kinds, strict=bool(kinds))
        ]
        self.line = " ".join([f"{each} %d %d %s.{each}" for each in self._extensions])
        """Of the index: takes offset, size and key of each member."""

    def heads(self, number: int) -> tuple[bytes, ...]:
        """The header of each member of a sample; and ``bg.cls`` whole, empty if it has none."""
        if not self._first <= number < self._first + len(self._made):
            self._first, self._made = number, self._make(slice(number, number + _AT_ONCE))
        return self._made[number - self._first]

    def _make(self, chosen: slice) -> list[tuple[bytes, ...]]:
        """Many at once, of the sizes that the directory promises."""
        task = self._task
        keys = [key.encode() for key in task.keys[chosen]]
        columns = []
        for place, extension in enumerate(self._extensions):
            end = f".{extension}".encode()
            columns.append(headers([key + end for key in keys], task.rows["size"][chosen, place]))
        ends = headers([key + b".bg.cls" for key in keys], np.full(len(keys), 5))
        columns.append(
            [
                head + b"%05d" % background + PADS[5] if background >= 0 else b""
                for head, background in zip(ends, task.background[chosen], strict=True)
            ]
        )
        return list(zip(*columns, strict=True))
