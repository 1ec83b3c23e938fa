"""How like samples are to backgrounds, outside their masks, in small pictures of both.

Reads payloads through a callable it is given. Which rule that speaks for, ``settle`` says.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.layout.thumbnails import GRID, open_mask, open_small, shrink

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IntArray", "Likeness", "Read"]

IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

_FITS = 12.0
"""Mean difference, of 255, up to which a background can be the composite's at all."""

_ROOM = 0.12
"""Share of the picture that must lie outside the mask for a sample to tell anything."""


class Likeness:
    """Small pictures of the samples looked at, and how far each is from each background."""

    def __init__(
        self, composites: IntArray, masks: IntArray, files: Sequence[int], read: Read
    ) -> None:
        self._composites, self._masks, self._files, self._read = composites, masks, files, read
        self._backs: dict[int, npt.NDArray[np.int16] | None] = {}
        self._pool: list[int] = []
        self._known: list[int] = []
        self._stack = np.empty((0, 3, 0), np.int16)
        self.errors: dict[int, dict[int, tuple[float, float]]] = {}
        """row -> background -> error, squashed to the composite's shape and cut to it."""
        self.covered = 0
        """Samples whose mask leaves no room for a comparison."""

    def look(self, row: int, pool: Sequence[int]) -> None:
        """Measure one sample against every background of the pool."""
        front = self._small(int(self._composites[row]), "RGB")
        mask = self._small(int(self._masks[row]), "mask")
        if front is None or mask is None:
            return
        # A mask of 0 and 1 is as good as one of 0 and 255.
        free = np.flatnonzero(mask.astype(np.int32) * 255 < 5 * max(1, int(mask.max())))
        if free.size < _ROOM * mask.size:
            self.covered += 1
            return
        self._gather(pool)
        if not self._known:
            return
        # (free, 3, 2 * backgrounds): the last axis is long and contiguous, so this is quick.
        apart = self._stack[free]
        apart -= front.reshape(-1, 3)[free][:, :, None]
        np.abs(apart, out=apart)
        errors = apart.sum(axis=(0, 1), dtype=np.int64) / (3 * free.size)
        squashed, cut = errors.reshape(2, -1).tolist()
        self.errors[row] = dict(zip(self._known, zip(squashed, cut, strict=True), strict=True))

    def _gather(self, pool: Sequence[int]) -> None:
        """The pool's backgrounds as (GRID * GRID, 3, 2 * backgrounds): squashed ones, cut ones."""
        if list(pool) == self._pool:
            return
        for number in pool:
            if number not in self._backs:
                self._backs[number] = self._both(self._files[number])
        self._pool = list(pool)
        self._known = [number for number in pool if self._backs[number] is not None]
        both = [back for number in pool if (back := self._backs[number]) is not None]
        stack = np.empty((2, len(both), GRID * GRID, 3), np.int16)
        for place, back in enumerate(both):
            stack[:, place] = back.reshape(2, -1, 3)
        self._stack = np.ascontiguousarray(
            stack.transpose(2, 3, 0, 1).reshape(GRID * GRID, 3, 2 * len(both))
        )

    def _small(self, index: int, mode: str) -> npt.NDArray[np.int16] | None:
        picture = self._picture(index, mode)
        return None if picture is None else shrink(picture)

    def _both(self, index: int) -> npt.NDArray[np.int16] | None:
        """(2, GRID, GRID, 3): the background squashed to a square, and cut to one."""
        picture = self._picture(index, "RGB")
        if picture is None:
            return None
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        middle = picture.crop((left, top, left + side, top + side))
        return np.stack([shrink(picture), shrink(middle)])

    def _picture(self, index: int, mode: str) -> "Image.Image | None":
        try:
            data = self._read(index)
        except ShardifyError:
            return None
        if mode == "mask":
            return open_mask(data, 2 * GRID)
        return open_small(data, mode, 2 * GRID)

    def telling(self) -> list[int]:
        """Rows that some background fits."""
        way = self._way()
        return [
            row
            for row, found in self.errors.items()
            if min(each[way] for each in found.values()) <= _FITS
        ]

    def agreement(self, table: Sequence[IntArray], rows: Sequence[int]) -> list[float]:
        """Share of the telling rows on which each candidate's background fits best, or nearly.

        Of those rows, for each, to which it gives a background.
        """
        way, wanted = self._way(), set(rows)
        telling = [row for row in self.telling() if row in wanted]
        hits, said = np.zeros(len(table)), np.zeros(len(table))
        for row in telling:
            found = self.errors[row]
            limit = 1.4 * min(each[way] for each in found.values()) + 1.0
            for number, each in enumerate(table):
                claimed = found.get(int(each[row]))
                hits[number] += claimed is not None and claimed[way] <= limit
                said[number] += each[row] >= 0
        return [float(each) for each in hits / np.maximum(1, said)]

    def error(self, candidate: IntArray, rows: Sequence[int]) -> float:
        """Median error of one candidate; 255 where what it says was never measured."""
        way = self._way()
        found = [
            self.errors[row].get(int(candidate[row]), (255.0, 255.0))[way]
            for row in rows
            if candidate[row] >= 0
        ]
        return float(np.median(found)) if found else 255.0

    def _way(self) -> int:
        """0 where squashed backgrounds fit more samples, or more closely; 1 where cut ones do."""
        best = np.array([
            [min(each[way] for each in found.values()) for way in (0, 1)]
            for found in self.errors.values()
        ])  # fmt: skip
        if not best.size:
            return 0
        fits = (best <= _FITS).sum(axis=0)
        if fits[0] != fits[1]:
            return int(fits[1] > fits[0])
        return int(np.median(best[:, 1]) < np.median(best[:, 0]))
