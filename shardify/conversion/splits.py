"""Split samples into training and validation without leaks, and plan the shards of each split.

Pure functions of numbers and a seed: the result is the same on every machine and for any number of
workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]

_SPLIT_STREAM, _ORDER_STREAM = 1, 2
"""Random streams: draws for one purpose do not change the draws for another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One planned shard."""

    name: str
    """Without extension, for example ``train-00000``."""
    split: str
    samples: IntArray
    """(n,) sample numbers in writing order."""


def shuffled(count: int, *, seed: int, stream: int) -> NDArray[np.int64]:
    """Return a permutation of ``range(count)`` from the raw 64-bit stream of Philox.

    It sorts raw random numbers instead of calling NumPy's shuffle: NumPy guarantees that the raw
    stream stays the same between versions, but not the result of shuffle.
    """
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    return np.argsort(generator.random_raw(count), kind="stable")


def hold_back(groups: IntArray | None, count: int, *, val: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation samples, whole groups at a time.

    Args:
        groups: (count,) group of each sample, such as its background; None draws samples
            independently.
        count: Number of samples.
        val: Target fraction, in [0, 1). Groups are taken in random order as long as each brings
            the fraction closer to the target. At least one group is taken and one is left; with
            a single group, none is taken.
        seed: Seed of the draw.

    Returns:
        (count,) bool: True for validation. No group has samples on both sides.
    """
    chosen = np.zeros(count, bool)
    if val == 0 or count < 2:
        return chosen
    if groups is None:
        order = shuffled(count, seed=seed, stream=_SPLIT_STREAM)
        chosen[order[: min(count - 1, max(1, round(count * val)))]] = True
        return chosen
    unique_groups, group_index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    target = count * val
    held = 0
    chosen_groups = np.zeros(len(unique_groups), bool)
    order = shuffled(len(unique_groups), seed=seed, stream=_SPLIT_STREAM)
    for group in order[:-1].tolist():
        size = int(sizes[group])
        if not held or abs(held + size - target) < abs(held - target):
            chosen_groups[group] = True
            held += size
        if held >= target:
            break
    return chosen_groups[group_index]


def plan_shards(
    held: NDArray[np.bool_], *, shard_samples: int | None, seed: int
) -> dict[str, list[ShardPlan]]:
    """Shuffle each split and cut it into shards of nearly equal size.

    Args:
        held: (N,) bool, True for validation.
        shard_samples: Maximum samples per shard; None chooses from N (100 to 1000, so that 16 or
            more shards keep several workers and readers busy).
        seed: Seed of the order.

    Returns:
        Shards of ``train`` and ``val``. Every sample is in exactly one shard; no shard is empty.
    """
    count = len(held)
    max_samples = shard_samples or min(1000, max(100, -(-count // 16)))
    order = shuffled(count, seed=seed, stream=_ORDER_STREAM).astype(np.int32)
    plans: dict[str, list[ShardPlan]] = {}
    for split, rows in (("train", order[~held[order]]), ("val", order[held[order]])):
        parts = np.array_split(rows, -(-len(rows) // max_samples)) if len(rows) else []
        plans[split] = [
            ShardPlan(name=f"{split}-{number:05d}", split=split, samples=part)
            for number, part in enumerate(parts)
        ]
    return plans


def empty_validation_warning(
    shards: Mapping[str, Sequence[ShardPlan]], *, by: str | None, written: int | None
) -> str:
    """Return a warning if the validation split is empty, else an empty string.

    Args:
        shards: Planned shards, for a positive validation fraction.
        by: ``bg``, ``fg`` or ``none``: the group that must not appear in both splits.
        written: Validation samples written to shards; None before they are written.
    """
    train, val = (sum(len(each.samples) for each in shards[name]) for name in ("train", "val"))
    if val and written != 0:
        return ""
    if val:
        why = f"all {val} samples chosen for it were rejected; use another --seed or larger --val"
    elif train == 1:
        why = "there is only 1 sample; add more samples"
    elif train:
        group = "background" if by == "bg" else "foreground"
        why = f"all {train} samples have the same {group}; pass --group-by none to split them"
    else:
        return ""
    return f"no validation split: {why}"
