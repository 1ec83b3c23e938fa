"""Score candidate rules by pixels: outside its mask, a composite equals its background.

Compares thumbnails of a few samples with thumbnails of the backgrounds. A sample is decisive if at
least one background fits it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.layout.thumbnails import GRID, open_mask, open_small, shrink

if TYPE_CHECKING:
    from PIL import Image

IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

_MAX_ERROR = 12.0
"""Largest mean difference, in 1/255, between a composite and a background that fits it."""

_MIN_UNMASKED_SHARE = 0.12
"""Share of the picture that must lie outside the mask of a usable sample."""


class PixelComparer:
    """Compares thumbnails of samples with those of backgrounds; keeps the errors."""

    def __init__(
        self,
        composites: IntArray,
        masks: IntArray,
        files: Sequence[int],
        read: Read,
        united: Mapping[int, Sequence[int]],
    ) -> None:
        self._united = united
        self._composites, self._masks, self._files, self._read = composites, masks, files, read
        self._thumbnails: dict[int, npt.NDArray[np.int16] | None] = {}
        self._pool: list[int] = []
        self._known: list[int] = []
        self._stack = np.empty((0, 3, 0), np.int16)
        self.errors: dict[int, dict[int, tuple[float, float]]] = {}
        """row -> background -> errors of the background resized to a square, and cropped to one."""
        self.covered = 0
        """Number of samples whose mask leaves too little to compare."""

    def measure(self, row: int, pool: Sequence[int]) -> None:
        """Compute the errors of one sample with every background of the pool."""
        front = self._thumbnail(int(self._composites[row]), "RGB")
        first = int(self._masks[row])
        parts = [self._thumbnail(each, "mask") for each in (first, *self._united.get(first, ()))]
        masks = [part for part in parts if part is not None]
        if front is None or len(masks) < len(parts):
            return
        mask = np.maximum.reduce(masks)
        # A mask of 0 and 1 is as good as one of 0 and 255.
        free = np.flatnonzero(mask.astype(np.int32) * 255 < 5 * max(1, int(mask.max())))
        if free.size < _MIN_UNMASKED_SHARE * mask.size:
            self.covered += 1
            return
        self._load_backgrounds(pool)
        if not self._known:
            return
        # (free, 3, 2 * backgrounds): fast because the last axis is long and contiguous.
        differing = self._stack[free]
        differing -= front.reshape(-1, 3)[free][:, :, None]
        np.abs(differing, out=differing)
        errors = differing.sum(axis=(0, 1), dtype=np.int64) / (3 * free.size)
        squashed, cut = errors.reshape(2, -1).tolist()
        self.errors[row] = dict(zip(self._known, zip(squashed, cut, strict=True), strict=True))

    def _load_backgrounds(self, pool: Sequence[int]) -> None:
        """Stack the pool as (GRID * GRID, 3, 2 * backgrounds): resized ones, then cropped ones."""
        if list(pool) == self._pool:
            return
        for number in pool:
            if number not in self._thumbnails:
                self._thumbnails[number] = self._background_thumbnails(self._files[number])
        self._pool = list(pool)
        self._known = [number for number in pool if self._thumbnails[number] is not None]
        both = [back for number in pool if (back := self._thumbnails[number]) is not None]
        stack = np.empty((2, len(both), GRID * GRID, 3), np.int16)
        for place, back in enumerate(both):
            stack[:, place] = back.reshape(2, -1, 3)
        self._stack = np.ascontiguousarray(
            stack.transpose(2, 3, 0, 1).reshape(GRID * GRID, 3, 2 * len(both))
        )

    def _thumbnail(self, index: int, mode: str) -> npt.NDArray[np.int16] | None:
        picture = self._open(index, mode)
        return None if picture is None else shrink(picture)

    def _background_thumbnails(self, index: int) -> npt.NDArray[np.int16] | None:
        """Return (2, GRID, GRID, 3): the background resized to a square, and cropped to one."""
        picture = self._open(index, "RGB")
        if picture is None:
            return None
        width, height = picture.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        middle = picture.crop((left, top, left + side, top + side))
        return np.stack([shrink(picture), shrink(middle)])

    def _open(self, index: int, mode: str) -> "Image.Image | None":
        try:
            data = self._read(index)
        except ShardifyError:
            return None
        if mode == "mask":
            return open_mask(data, 2 * GRID)
        return open_small(data, mode, 2 * GRID)

    def decisive_rows(self) -> list[int]:
        """Return the rows that at least one background fits."""
        mode_index = self._fit_mode()
        return [
            row
            for row, errors in self.errors.items()
            if min(each[mode_index] for each in errors.values()) <= _MAX_ERROR
        ]

    def agreement(self, candidates: Sequence[IntArray], rows: Sequence[int]) -> list[float]:
        """Return the share of ``rows`` on which each candidate's background fits best, or nearly.

        Only decisive rows count to which the candidate gives a background.
        """
        mode_index, wanted = self._fit_mode(), set(rows)
        decisive_rows = [row for row in self.decisive_rows() if row in wanted]
        hits, covered = np.zeros(len(candidates)), np.zeros(len(candidates))
        for row in decisive_rows:
            errors = self.errors[row]
            limit = 1.4 * min(each[mode_index] for each in errors.values()) + 1.0
            for number, each in enumerate(candidates):
                claimed = errors.get(int(each[row]))
                hits[number] += claimed is not None and claimed[mode_index] <= limit
                covered[number] += each[row] >= 0
        return [float(each) for each in hits / np.maximum(1, covered)]

    def error(self, candidate: IntArray, rows: Sequence[int]) -> float:
        """Return the median error of one candidate; a background not compared counts as 255."""
        mode_index = self._fit_mode()
        errors = [
            self.errors[row].get(int(candidate[row]), (255.0, 255.0))[mode_index]
            for row in rows
            if candidate[row] >= 0
        ]
        return float(np.median(errors)) if errors else 255.0

    def _fit_mode(self) -> int:
        """Return 0 if resized backgrounds fit more samples, or better; 1 if cropped ones do."""
        best = np.array([
            [min(each[mode_index] for each in errors.values()) for mode_index in (0, 1)]
            for errors in self.errors.values()
        ])  # fmt: skip
        if not best.size:
            return 0
        fits = (best <= _MAX_ERROR).sum(axis=0)
        if fits[0] != fits[1]:
            return int(fits[1] > fits[0])
        return int(np.median(best[:, 1]) < np.median(best[:, 0]))


T = TypeVar("T")

_MIN_AGREEMENT = 0.9
"""Share of the decisive samples that the right rule must fit."""

_MIN_DECISIVE_SAMPLES = 6
"""Fewest decisive samples for a decision, in a source with at least that many samples."""

_MAX_BACKGROUNDS = 400
"""Number of backgrounds that a sample is compared with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Fit of one candidate."""

    error: float
    """Median of the mean difference outside the mask, in 1/255: over the decisive samples, or over
    all that were compared if none is decisive."""

    agreement: float
    """Share of the decisive samples on which no other background fits clearly better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of all candidates, and the winner."""

    scores: list[Score]
    """One for each candidate."""

    samples: int
    """Number of decisive samples."""

    examined: int
    """Number of samples that were read."""

    decoded: int
    """Number of these whose composite and mask can be decoded."""

    covered: int
    """Number of those whose mask leaves too little to compare."""

    winner: int | None
    """Index of the only candidate that fits; None if none fits, or several that differ do."""

    margin: float
    """Error of the best other candidate divided by the winner's, on samples where they differ; 0 if
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
        candidates: (N,) int32 each, index into ``files``; -1 for a sample without a background.
        composites: (N,) int32, index of each sample's composite, for ``read``.
        masks: (N,) int32, likewise.
        files: Indexes of the backgrounds, for ``read``.
        read: Returns a file's bytes; a file for which it raises ``ShardifyError`` is skipped.
        samples: Number of samples to compare first. While candidates that fit differ, samples on
            which they differ are added.
    """
    steps = score_steps(
        candidates, composites=composites, masks=masks, files=files, read=read, samples=samples
    )
    return run_all(steps)


def run_all(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end and return its result."""
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
    united: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> Generator[None, None, Scores]:
    """Run ``score`` in small steps, so that the caller can do other work between them.

    ``united`` maps a mask's index to those of further masks of its sample.
    """
    comparer = PixelComparer(composites, masks, files, read, united)
    rows = _pick_evenly(np.arange(len(composites)), samples)
    examined: list[int] = []
    remaining = list(range(len(candidates)))
    for _ in range(8):
        pool = _backgrounds_to_compare(candidates, rows, len(files))
        for row in rows.tolist():
            comparer.measure(row, pool)
            yield
        examined += rows.tolist()
        agrees = comparer.agreement(candidates, examined)
        remaining = [number for number in remaining if agrees[number] >= _MIN_AGREEMENT]
        differ = np.zeros(len(composites), np.bool_)
        for number in remaining[1:]:
            differ |= candidates[number] != candidates[remaining[0]]
        rows = _pick_evenly(np.setdiff1d(np.flatnonzero(differ), examined), 48)
        if not rows.size:
            break
    remaining = _resolve_extensions(
        candidates, _drop_contradicted(candidates, remaining, comparer), comparer
    )
    decisive_rows = comparer.decisive_rows()
    errors = [comparer.error(each, decisive_rows or list(comparer.errors)) for each in candidates]
    winner = (
        remaining[0]
        if len(remaining) == 1 and len(decisive_rows) >= min(_MIN_DECISIVE_SAMPLES, len(composites))
        else None
    )
    margin = 0.0
    if winner is not None:
        for number, other in enumerate(candidates):
            mine = candidates[winner]
            both = (mine >= 0) & (other >= 0)
            differing = [row for row in decisive_rows if both[row] and other[row] != mine[row]]
            if number != winner and differing:
                ratio = comparer.error(other, differing) / max(
                    comparer.error(candidates[winner], differing), 0.5
                )
                margin = min(margin, ratio) if margin else ratio
    return Scores(
        scores=[
            Score(error=error, agreement=share)
            for error, share in zip(errors, comparer.agreement(candidates, examined), strict=True)
        ],
        samples=len(decisive_rows),
        examined=len(examined),
        decoded=len(comparer.errors) + comparer.covered,
        covered=comparer.covered,
        winner=winner,
        margin=margin,
    )


def _drop_contradicted(
    candidates: Sequence[IntArray], remaining: list[int], comparer: PixelComparer
) -> list[int]:
    """Drop candidates that do not fit the samples on which the remaining ones differ."""
    decisive_rows = comparer.decisive_rows()
    for number in list(remaining):
        others = [candidates[each] for each in remaining if each != number]
        mine = candidates[number]
        differing = [
            row
            for row in decisive_rows
            if mine[row] >= 0 and any(each[row] != mine[row] for each in others)
        ]
        if differing and comparer.agreement([candidates[number]], differing)[0] < _MIN_AGREEMENT:
            remaining = [each for each in remaining if each != number]
    return remaining


def _resolve_extensions(
    candidates: Sequence[IntArray], remaining: list[int], comparer: PixelComparer
) -> list[int]:
    """Drop one of each two candidates of which one only adds samples to the other.

    The longer one is kept if the added samples confirm it: it fits them, and the share of decisive
    samples among them is at least half of that among all.
    """
    decisive_rows = comparer.decisive_rows()
    for number in list(remaining):
        for other in list(remaining):
            covered, more = candidates[number] >= 0, candidates[other] >= 0
            extra = more & ~covered
            if not extra.any() or (candidates[number] != candidates[other])[covered].any():
                continue
            decoded = [row for row in comparer.errors if extra[row]]
            decisive = [row for row in decisive_rows if extra[row]]
            confirmed = (
                decisive
                and 2 * len(decisive) * len(comparer.errors) >= len(decoded) * len(decisive_rows)
                and comparer.agreement([candidates[other]], decisive)[0] >= _MIN_AGREEMENT
            )
            remaining = [each for each in remaining if each != (number if confirmed else other)]
    return remaining


def _backgrounds_to_compare(
    candidates: Sequence[IntArray], rows: npt.NDArray[np.int64], files: int
) -> list[int]:
    """Return the backgrounds to compare: all, or only those that candidates give the rows."""
    if files <= _MAX_BACKGROUNDS and len(candidates) > 1:
        return list(range(files))
    claimed: set[int] = set()
    for each in candidates:
        claimed.update(each[rows].tolist())
    claimed.discard(-1)
    return sorted(claimed)[:_MAX_BACKGROUNDS]


def _pick_evenly(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return at most ``count`` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
