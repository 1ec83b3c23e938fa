"""One variant of a shard in the making: samples in, members of its tar and lines of its index out.

Appends what it is given and keeps count of it; what a sample may hold is decided before.
"""

import hashlib
from collections import Counter
from typing import Any

from numpy.typing import NDArray

from shardify.dataset.index import head_of, line_of
from shardify.images.codecs import Variant, cost, resized, store
from shardify.images.parser import Picture
from shardify.writer.fast_copy import CopyResult
from shardify.writer.tar_writer import TarWriter
from shardify.writer.tasks import Part, ShardTask

__all__ = ["Sink"]


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
        self._samples = 0
        self._text = bytearray()
        """Lines of the index."""

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
            line.append((extension, add(full.encode(), data), len(data), full))
        if background >= 0:
            full, data = f"{key}.bg.cls", b"%05d" % background
            line.append(("bg.cls", add(full.encode(), data), len(data), full))
        self._counts[tuple(pictures)] += 1
        self._text += f"{line_of(line)}\n".encode()
        self._samples += 1

    def copy(self, copied: CopyResult, samples: int) -> None:
        """Count samples that a copier has appended to the tar; the same bytes as by ``add``."""
        self._counts.update(copied.counts)
        self._text += copied.text
        self._samples += samples

    def index(self) -> bytes:
        """The index of all that was added."""
        return head_of(self._samples).encode() + self._text

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
