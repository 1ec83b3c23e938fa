"""One variant of a shard in the making: samples in, members of its tar and lines of its index out.

Appends what it is given and keeps count of it; what a sample may hold is decided before.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

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
        self._run = 0
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
            self._count()
            self._last = pictures
            kinds = tuple([each.kind for each in pictures])
            if kinds not in self._kinds:
                self._kinds[kinds] = _Alike(self._task, kinds)
            self._alike = self._kinds[kinds]
        self._run += 1
        line, told, around, size = self._alike.around(number)
        start = self._tar.offset
        said = list(told)
        said[::3] = [start + offset for offset in told[::3]]
        pieces = list(around)
        pieces[1::3] = payloads
        self._tar.extend(pieces, size)
        self.lines.append(line % tuple(said))

    def _count(self) -> None:
        """Count the samples that were alike, one after another."""
        if self._run:
            self._counts[self._last] += self._run
            self._run = 0

    def part(self, index: bytes) -> Part:
        """End the tar, and say what it holds."""
        digest = self._tar.finish()
        self._count()
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


class _Around(NamedTuple):
    """All of a sample but its payloads and where it will begin."""

    line: str
    """Of the index; takes what is told."""
    told: tuple[Any, ...]
    """Offset, size and key of each member; of ``bg.cls`` no size. Offsets count from the sample's
    beginning, in bytes."""
    pieces: tuple[bytes, ...]
    """Header, payload and padding of each member, payloads left empty; and ``bg.cls`` whole, empty
    if it has none."""
    size: int
    """Of all that, in bytes."""


class _Alike:
    """What stands around the payloads of a task's samples, were all of them of these kinds."""

    def __init__(self, task: ShardTask, kinds: Sequence[str]) -> None:
        self._task = task
        self._first = 0
        self._made: list[_Around] = []
        self._extensions = [
            f"{role}.{kind}" for role, kind in zip(task.roles, kinds, strict=bool(kinds))
        ]

    def around(self, number: int) -> _Around:
        """What stands around the payloads of one sample."""
        if not self._first <= number < self._first + len(self._made):
            self._first, self._made = number, self._make(slice(number, number + _AT_ONCE))
        return self._made[number - self._first]

    def _make(self, chosen: slice) -> list[_Around]:
        """Many at once, of the sizes that the directory promises."""
        task = self._task
        keys = task.keys[chosen]
        names = [key.encode() for key in keys]
        sizes = task.rows["size"][chosen]
        ends = np.cumsum(_BLOCK + sizes + -sizes % _BLOCK, axis=1)
        starts = np.insert(ends, 0, 0, axis=1) + _BLOCK
        told: list[Sequence[object]] = []
        pieces: list[Sequence[bytes]] = []
        for place, extension in enumerate(self._extensions):
            column = sizes[:, place]
            told += (starts[:, place].tolist(), column.tolist(), keys)
            end = f".{extension}".encode()
            pieces += (
                headers([name + end for name in names], column),
                [b""] * len(keys),
                [PADS[rest] for rest in (column % _BLOCK).tolist()],
            )
        told += (starts[:, -1].tolist(), keys)
        heads = headers([name + b".bg.cls" for name in names], np.full(len(keys), 5))
        line = " ".join([f"{each} %d %d %s.{each}" for each in self._extensions])
        whole = line + " bg.cls %d 5 %s.bg.cls"
        made = []
        for head, background, said, parts, end in zip(
            heads,
            task.background[chosen],
            zip(*told, strict=True),
            zip(*pieces, strict=True),
            ends[:, -1].tolist(),
            strict=True,
        ):
            if background >= 0:
                last = head + b"%05d" % background + PADS[5]
                made.append(_Around(whole, said, (*parts, last), end + 2 * _BLOCK))
            else:
                made.append(_Around(line, said[:-2], (*parts, b""), end))
        return made
