"""Score candidate rules by pixels: outside its mask, a composite equals its background.

Compares thumbnails of a few samples with thumbnails of the backgrounds. A sample is decisive if at
least one background fits it.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from shardify.errors import ShardifyError
from shardify.layout.filenames import IntArray
from shardify.layout.thumbnails import GRID, ReadFile, open_mask, open_small, shrink

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

_MAX_ERROR = 12.0
"""Largest mean difference, in 1/255, between a composite and a background that fits it."""

_MIN_UNMASKED_SHARE = 0.12
"""Share of the picture that must lie outside the mask of a usable sample."""

_MIN_AGREEMENT = 0.9
"""Share of the decisive samples that the right rule must fit."""

_MIN_DECISIVE_SAMPLES = 6
"""Fewest decisive samples for a decision, in a source with at least that many samples."""

_MAX_BACKGROUNDS = 400
"""Number of backgrounds that a sample is compared with."""

_MAX_ROUNDS = 8
"""Number of times that samples are added on which the remaining candidates differ."""

_SAMPLES_PER_ROUND = 48


class PixelComparer:
    """Compares thumbnails of samples with those of backgrounds; keeps the errors."""

    def __init__(
        self,
        composites: IntArray,
        masks: IntArray,
        files: Sequence[int],
        read: ReadFile,
        united: Mapping[int, Sequence[int]],
    ) -> None:
        self._composites, self._masks, self._files, self._read = composites, masks, files, read
        self._united = united
        self._thumbnails: dict[int, npt.NDArray[np.int16] | None] = {}
        self._pool: Sequence[int] = []
        self._decoded: list[int] = []
        self._stack = np.empty((0, 3, 0), np.int16)
        self.errors: dict[int, dict[int, tuple[float, float]]] = {}
        """row -> background -> errors of the background resized to a square, and cropped to one."""
        self.covered = 0
        """Number of samples whose mask leaves too little to compare."""

    def measure(self, row: int, pool: Sequence[int]) -> None:
        """Compute the errors of one sample with every background of the pool."""
        composite = self._open(int(self._composites[row]), "RGB")
        first = int(self._masks[row])
        masks = [self._open(index, "mask") for index in (first, *self._united.get(first, ()))]
        decoded = [shrink(mask) for mask in masks if mask is not None]
        if composite is None or len(decoded) < len(masks):
            return
        mask = np.maximum.reduce(decoded)
        # A mask of 0 and 1 is as good as one of 0 and 255.
        outside = np.flatnonzero(mask.astype(np.int32) * 255 < 5 * max(1, int(mask.max())))
        if outside.size < _MIN_UNMASKED_SHARE * mask.size:
            self.covered += 1
            return
        self._load_backgrounds(pool)
        if not self._decoded:
            return
        # (outside, 3, 2 * backgrounds): fast because the last axis is long and contiguous.
        differences = self._stack[outside]
        differences -= shrink(composite).reshape(-1, 3)[outside][:, :, None]
        np.abs(differences, out=differences)
        errors = differences.sum(axis=(0, 1), dtype=np.int64) / (3 * outside.size)
        resized, cropped = errors.reshape(2, -1).tolist()
        pairs = zip(resized, cropped, strict=True)
        self.errors[row] = dict(zip(self._decoded, pairs, strict=True))

    def _load_backgrounds(self, pool: Sequence[int]) -> None:
        """Stack the pool as (GRID * GRID, 3, 2 * backgrounds): resized ones, then cropped ones."""
        if pool == self._pool:
            return
        for number in pool:
            if number not in self._thumbnails:
                self._thumbnails[number] = self._background_thumbnails(self._files[number])
        self._pool = pool
        thumbnails = {
            number: thumbnail
            for number in pool
            if (thumbnail := self._thumbnails[number]) is not None
        }
        self._decoded = list(thumbnails)
        stack = np.empty((2, len(thumbnails), GRID * GRID, 3), np.int16)
        for place, thumbnail in enumerate(thumbnails.values()):
            stack[:, place] = thumbnail.reshape(2, -1, 3)
        self._stack = np.ascontiguousarray(
            stack.transpose(2, 3, 0, 1).reshape(GRID * GRID, 3, 2 * len(thumbnails))
        )

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
        mode = self._fit_mode()
        return [row for row in self.errors if self._least_errors(row)[mode] <= _MAX_ERROR]

    def agreement(self, candidates: Sequence[IntArray], rows: Sequence[int]) -> list[float]:
        """Return the share of ``rows`` on which each candidate's background fits best, or nearly.

        Only decisive rows count to which the candidate gives a background.
        """
        mode = self._fit_mode()
        fitting, covered = np.zeros(len(candidates)), np.zeros(len(candidates))
        for row in set(rows).intersection(self.decisive_rows()):
            limit = 1.4 * self._least_errors(row)[mode] + 1.0
            for number, candidate in enumerate(candidates):
                errors = self.errors[row].get(int(candidate[row]))
                fitting[number] += errors is not None and errors[mode] <= limit
                covered[number] += candidate[row] >= 0
        shares: list[float] = (fitting / np.maximum(1, covered)).tolist()
        return shares

    def error(self, candidate: IntArray, rows: Sequence[int]) -> float:
        """Return the median error of one candidate; a background not compared counts as 255."""
        mode = self._fit_mode()
        errors = [
            self.errors[row].get(int(candidate[row]), (255.0, 255.0))[mode]
            for row in rows
            if candidate[row] >= 0
        ]
        return float(np.median(errors)) if errors else 255.0

    def _least_errors(self, row: int) -> tuple[float, float]:
        """Return the least error of the resized backgrounds, and of the cropped ones."""
        resized, cropped = zip(*self.errors[row].values(), strict=True)
        return min(resized), min(cropped)

    def _fit_mode(self) -> int:
        """Return 0 if resized backgrounds fit more samples, or better; 1 if cropped ones do."""
        if not self.errors:
            return 0
        least = np.array([self._least_errors(row) for row in self.errors])
        fits = (least <= _MAX_ERROR).sum(axis=0)
        if fits[0] != fits[1]:
            return int(fits[1] > fits[0])
        return int(np.median(least[:, 1]) < np.median(least[:, 0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of all candidates, and the winner."""

    errors: list[float]
    """For each candidate, the median of the mean difference outside the mask, in 1/255: over the
    decisive samples, or over all that were compared if none is decisive."""

    agreement: list[float]
    """For each candidate, the share of the decisive samples on which no other background fits
    clearly better."""

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
    read: ReadFile,
    samples: int = 96,
    united: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> Generator[None, None, Scores]:
    """Compare samples with the backgrounds that each candidate gives them.

    Yields after each sample, so that the caller can do other work in between.

    Args:
        candidates: (N,) int32 each, index into ``files``; -1 for a sample without a background.
        composites: (N,) int32, index of each sample's composite, for ``read``.
        masks: (N,) int32, likewise.
        files: Indexes of the backgrounds, for ``read``.
        read: Returns a file's bytes; a file for which it raises ``ShardifyError`` is skipped.
        samples: Number of samples to compare first. While candidates that fit differ, samples on
            which they differ are added.
        united: Index of a mask -> indexes of further masks of its sample.
    """
    comparer = PixelComparer(composites, masks, files, read, united)
    rows = _pick_evenly(np.arange(len(composites)), samples)
    examined: list[int] = []
    remaining = list(range(len(candidates)))
    for _ in range(_MAX_ROUNDS):
        pool = _backgrounds_to_compare(candidates, rows, len(files))
        for row in rows.tolist():
            comparer.measure(row, pool)
            yield
        examined += rows.tolist()
        agreement = comparer.agreement(candidates, examined)
        remaining = [number for number in remaining if agreement[number] >= _MIN_AGREEMENT]
        differ = np.zeros(len(composites), np.bool_)
        for number in remaining[1:]:
            differ |= candidates[number] != candidates[remaining[0]]
        rows = _pick_evenly(np.setdiff1d(np.flatnonzero(differ), examined), _SAMPLES_PER_ROUND)
        if not rows.size:
            break
    remaining = _drop_contradicted(candidates, remaining, comparer)
    remaining = _resolve_extensions(candidates, remaining, comparer)
    decisive_rows = comparer.decisive_rows()
    compared_rows = decisive_rows or list(comparer.errors)
    winner, margin = None, 0.0
    if len(remaining) == 1 and len(decisive_rows) >= min(_MIN_DECISIVE_SAMPLES, len(composites)):
        winner = remaining[0]
        margin = _margin(candidates, candidates[winner], comparer)
    return Scores(
        errors=[comparer.error(candidate, compared_rows) for candidate in candidates],
        agreement=agreement,
        samples=len(decisive_rows),
        examined=len(examined),
        decoded=len(comparer.errors) + comparer.covered,
        covered=comparer.covered,
        winner=winner,
        margin=margin,
    )


def _margin(candidates: Sequence[IntArray], best: IntArray, comparer: PixelComparer) -> float:
    """Return ``Scores.margin`` of the best candidate."""
    ratios = []
    decisive_rows = comparer.decisive_rows()
    for other in candidates:
        differ = (best >= 0) & (other >= 0) & (best != other)
        if rows := [row for row in decisive_rows if differ[row]]:
            ratios.append(comparer.error(other, rows) / max(comparer.error(best, rows), 0.5))
    return min(ratios, default=0.0)


def _drop_contradicted(
    candidates: Sequence[IntArray], remaining: list[int], comparer: PixelComparer
) -> list[int]:
    """Drop candidates that do not fit the samples on which the remaining ones differ."""
    decisive_rows = comparer.decisive_rows()
    for number in list(remaining):
        candidate = candidates[number]
        others = [candidates[other] for other in remaining if other != number]
        rows = [
            row
            for row in decisive_rows
            if candidate[row] >= 0 and any(other[row] != candidate[row] for other in others)
        ]
        if rows and comparer.agreement([candidate], rows)[0] < _MIN_AGREEMENT:
            remaining = [other for other in remaining if other != number]
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
            dropped = number if confirmed else other
            remaining = [candidate for candidate in remaining if candidate != dropped]
    return remaining


def _backgrounds_to_compare(
    candidates: Sequence[IntArray], rows: npt.NDArray[np.int64], files: int
) -> list[int]:
    """Return the backgrounds to compare: all, or only those that candidates give the rows."""
    if files <= _MAX_BACKGROUNDS and len(candidates) > 1:
        return list(range(files))
    claimed = np.unique([candidate[rows] for candidate in candidates])
    return [number for number in claimed.tolist() if number >= 0][:_MAX_BACKGROUNDS]


def _pick_evenly(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return at most ``count`` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
