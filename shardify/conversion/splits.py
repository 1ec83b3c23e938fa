"""Which sample goes where: splits without leaks, and the order and shards of each split.

Pure functions of numbers and a seed: the same answer on every machine, for any number of workers
and any order of the source's entries. No I/O, no clock, no global random state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ShardPlan", "hold_back", "plan_shards", "shuffled", "why_unheld"]

IntArray = NDArray[np.int32]

_SPLITTING, _ORDER = 1, 2
"""Streams of the generator: what is drawn for one use never moves what is drawn for another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard to be."""

    name: str
    """``train-00000``: without extension."""
    split: str
    samples: IntArray
    """Sample numbers, in the order in which they are written."""


def shuffled(count: int, *, seed: int, stream: int) -> NDArray[np.int64]:
    """A permutation of ``range(count)``, from Philox's raw 64-bit stream.

    Raw numbers are sorted rather than shuffled with: NumPy keeps the stream the same for good,
    but not what its shuffle makes of it.
    """
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(generator.random_raw(count), kind="stable")


def hold_back(groups: IntArray | None, count: int, *, val: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation samples, whole groups at a time.

    Args:
        groups: (count,) group of each sample, such as its background; or None to draw each
            sample for itself.
        count: Samples.
        val: Share to hold back, in [0, 1). Groups are taken in a drawn order as long as each
            brings the share nearer to this; at least one is taken, and one is left.
            Where that cannot be, because there is one alone, none is taken.
        seed: Of the draw.

    Returns:
        (count,) bool: True for validation. No group has samples on both sides.
    """
    chosen = np.zeros(count, bool)
    if val == 0 or count < 2:
        return chosen
    if groups is None:
        order = shuffled(count, seed=seed, stream=_SPLITTING)
        chosen[order[: min(count - 1, max(1, round(count * val)))]] = True
        return chosen
    kinds, of_sample, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    target = count * val
    held = 0
    take = np.zeros(len(kinds), bool)
    order = shuffled(len(kinds), seed=seed, stream=_SPLITTING)
    for group in order[:-1].tolist():
        size = int(sizes[group])
        if not held or abs(held + size - target) < abs(held - target):
            take[group] = True
            held += size
        if held >= target:
            break
    return take[of_sample]


def plan_shards(
    held: NDArray[np.bool_], *, shard_samples: int | None, seed: int
) -> dict[str, list[ShardPlan]]:
    """Shuffle each split and cut it into shards of nearly equal size.

    Args:
        held: (N,) bool, True for validation.
        shard_samples: Most samples in a shard; None chooses from N (100 to 1000, so that some
            sixteen or more shards keep several workers and readers busy).
        seed: Of the order.

    Returns:
        ``train`` and ``val``; every sample stands in exactly one shard, and no shard is empty.
    """
    count = len(held)
    most = shard_samples or min(1000, max(100, -(-count // 16)))
    order = shuffled(count, seed=seed, stream=_ORDER).astype(np.int32)
    plans: dict[str, list[ShardPlan]] = {}
    for split, rows in (("train", order[~held[order]]), ("val", order[held[order]])):
        pieces = np.array_split(rows, -(-len(rows) // most)) if len(rows) else []
        plans[split] = [
            ShardPlan(name=f"{split}-{number:05d}", split=split, samples=piece)
            for number, piece in enumerate(pieces)
        ]
    return plans


def why_unheld(
    shards: Mapping[str, Sequence[ShardPlan]], *, by: str | None, written: int | None
) -> str:
    """The warning that nothing is held back for validation; empty where something is.

    Args:
        shards: As planned, of a positive share.
        by: ``bg``, ``fg`` or ``none``: what was not to stand in both splits.
        written: Samples of validation that stand in shards; None before they are written.
    """
    train, val = (sum(len(each.samples) for each in shards[name]) for name in ("train", "val"))
    if val and written != 0:
        return ""
    if val:
        why = f"all {val} samples chosen for it are left out; pass another --seed or a larger --val"
    elif train == 1:
        why = "there is only 1 sample; add others to have some held back"
    elif train:
        on = "stand on one background" if by == "bg" else "show one foreground"
        why = f"all {train} samples {on}; pass --group-by none to hold back samples of it"
    else:
        return ""
    return f"nothing is held back for validation: {why}"
