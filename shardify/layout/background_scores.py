"""Proof by pixels: outside its mask, a composite *is* its background.

Scores candidates by a few samples, whose pictures ``likeness`` compares. It never proposes a rule
of its own, and says so when no candidate, or more than one, fits.

How like samples are to backgrounds, outside their masks, in small pictures of both.

Reads payloads through a callable it is given. Which rule that speaks for, ``settle`` says.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.layout.thumbnails import GRID, open_mask, open_small, shrink

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IntArray",
    "PixelComparer",
    "Read",
    "Score",
    "Scores",
    "run_all",
    "score",
    "score_steps",
]


IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

_FITS = 12.0
"""Mean difference, of 255, up to which a background can be the composite's at all."""

_ROOM = 0.12
"""Share of the picture that must lie outside the mask for a sample to tell anything."""


class PixelComparer:
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


T = TypeVar("T")

_AGREES = 0.9
"""Share of the telling samples that the right rule must fit."""

_ENOUGH = 6
"""Telling samples without which nothing is decided, where there are that many samples."""

_MOST_BACKGROUNDS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well one candidate fits."""

    error: float
    """Median over telling samples of the mean difference outside the mask, in 1/255; over all that
    were measured, where none is telling."""

    agrees: float
    """Share of the telling samples on which no other background fits clearly better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the pixels say of all candidates."""

    scores: list[Score]
    """One for each candidate."""

    samples: int
    """How many samples were telling: something fitted them, outside a mask that leaves room."""

    looked: int
    """How many samples were looked at."""

    opened: int
    """How many of these have a composite and a mask that can be decoded."""

    covered: int
    """How many of those have a mask that leaves next to nothing outside it."""

    winner: int | None
    """The one candidate that fits; None where none does, or several that differ do."""

    margin: float
    """Error of the best other candidate over the winner's, on samples where they differ; 0 where
    there is no other."""


def score(
    candidates: Sequence[IntArray],
    *,
    composites: IntArray,
    masks: IntArray,
    files: Sequence[int],
    read: Read,
    samples: int = 96,
) -> Scores:
    """Compare samples with the backgrounds that each candidate gives them.

    Args:
        candidates: (N,) int32 each, index into ``files``; -1 for a sample of which it says nothing.
        composites: (N,) index that ``read`` takes, of each sample's composite.
        masks: (N,) likewise.
        files: Indexes that ``read`` takes, of the backgrounds.
        read: Gives a file's bytes; what it raises of ``ShardifyError`` passes over the file.
        samples: How many to look at first. Where candidates that fit still differ, more are
            taken from the samples on which they do.
    """
    steps = score_steps(
        candidates, composites=composites, masks=masks, files=files, read=read, samples=samples
    )
    return run_all(steps)


def run_all(steps: Generator[None, None, T]) -> T:
    """What work in small steps comes to, all of them taken at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)


def score_steps(
    candidates: Sequence[IntArray],
    *,
    composites: IntArray,
    masks: IntArray,
    files: Sequence[int],
    read: Read,
    samples: int = 96,
) -> Generator[None, None, Scores]:
    """``score`` in small steps, for who has other things to do between them."""
    table = list(candidates)
    view = PixelComparer(composites, masks, files, read)
    rows = _spread(np.arange(len(composites)), samples)
    looked: list[int] = []
    left = list(range(len(table)))
    for _ in range(8):
        pool = _pool(table, rows, len(files))
        for row in rows.tolist():
            view.look(row, pool)
            yield
        looked += rows.tolist()
        agrees = view.agreement(table, looked)
        left = [number for number in left if agrees[number] >= _AGREES]
        differ = np.zeros(len(composites), np.bool_)
        for number in left[1:]:
            differ |= table[number] != table[left[0]]
        rows = _spread(np.setdiff1d(np.flatnonzero(differ), looked), 48)
        if not rows.size:
            break
    left = _supported(table, _drop_contradicted(table, left, view), view)
    telling = view.telling()
    errors = [view.error(each, telling or list(view.errors)) for each in table]
    winner = left[0] if len(left) == 1 and len(telling) >= min(_ENOUGH, len(composites)) else None
    margin = 0.0
    if winner is not None:
        for number, other in enumerate(table):
            mine = table[winner]
            both = (mine >= 0) & (other >= 0)
            apart = [row for row in telling if both[row] and other[row] != mine[row]]
            if number != winner and apart:
                ratio = view.error(other, apart) / max(view.error(table[winner], apart), 0.5)
                margin = min(margin, ratio) if margin else ratio
    return Scores(
        scores=[
            Score(error=error, agrees=share)
            for error, share in zip(errors, view.agreement(table, looked), strict=True)
        ],
        samples=len(telling),
        looked=len(looked),
        opened=len(view.errors) + view.covered,
        covered=view.covered,
        winner=winner,
        margin=margin,
    )


def _drop_contradicted(
    table: Sequence[IntArray], left: list[int], view: PixelComparer
) -> list[int]:
    """Drop candidates that are wrong where those that are left differ."""
    telling = view.telling()
    for number in list(left):
        others = [table[each] for each in left if each != number]
        mine = table[number]
        apart = [
            row
            for row in telling
            if mine[row] >= 0 and any(each[row] != mine[row] for each in others)
        ]
        if apart and view.agreement([table[number]], apart)[0] < _AGREES:
            left = [each for each in left if each != number]
    return left


def _supported(table: Sequence[IntArray], left: list[int], view: PixelComparer) -> list[int]:
    """Of two that differ in that one says more, keep that one if pixels bear the rest out.

    They do where as many of those samples are telling, or half as many, as of all.
    """
    telling = view.telling()
    for number in list(left):
        for other in list(left):
            said, more = table[number] >= 0, table[other] >= 0
            extra = more & ~said
            if not extra.any() or (table[number] != table[other])[said].any():
                continue
            opened = [row for row in view.errors if extra[row]]
            told = [row for row in telling if extra[row]]
            borne = (
                told
                and 2 * len(told) * len(view.errors) >= len(opened) * len(telling)
                and view.agreement([table[other]], told)[0] >= _AGREES
            )
            left = [each for each in left if each != (number if borne else other)]
    return left


def _pool(table: Sequence[IntArray], rows: npt.NDArray[np.int64], files: int) -> list[int]:
    """Backgrounds to compare with: all, or those that are claimed where that is many fewer."""
    if files <= _MOST_BACKGROUNDS and len(table) > 1:
        return list(range(files))
    claimed: set[int] = set()
    for each in table:
        claimed.update(each[rows].tolist())
    claimed.discard(-1)
    return sorted(claimed)[:_MOST_BACKGROUNDS]


def _spread(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
