"""Proof by pixels: outside its mask, a composite *is* its background.

Scores candidates by a few samples, whose pictures ``likeness`` compares. It never proposes a rule
of its own, and says so when no candidate, or more than one, fits.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from shardify.layout.likeness import IntArray, Likeness, Read

__all__ = ["Score", "Scores", "drained", "score", "scoring"]

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
    steps = scoring(
        candidates, composites=composites, masks=masks, files=files, read=read, samples=samples
    )
    return drained(steps)


def drained(steps: Generator[None, None, T]) -> T:
    """What work in small steps comes to, all of them taken at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)


def scoring(
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
    view = Likeness(composites, masks, files, read)
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
    left = _supported(table, _weed(table, left, view), view)
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


def _weed(table: Sequence[IntArray], left: list[int], view: Likeness) -> list[int]:
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


def _supported(table: Sequence[IntArray], left: list[int], view: Likeness) -> list[int]:
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
