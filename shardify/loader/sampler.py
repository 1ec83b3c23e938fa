"""Which sample comes when: an epoch's order, and each rank's share of each step.

Pure functions on numbers: the seed is an argument, nothing is kept between calls. This module
knows no shard, no tensor and no augmentation.

An epoch is a permutation of ``range(samples)`` that depends on (kind, samples, seed, epoch) alone.
A global batch is the next ``batch_size * world_size`` places of it, cut into one contiguous slice
a rank. So a run may stop after any sample and go on with other ranks, and none is lost or repeated.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK",
    "EPOCHS",
    "KINDS",
    "SEEDS",
    "WINDOW",
    "Indexes",
    "Mixing",
    "epoch_order",
    "mixing",
    "span",
    "steps",
]

Indexes = npt.NDArray[np.int64]

KINDS = ("permuted", "block", "sequential")
SEEDS = 2**63
"""One past the last seed: NumPy gives its generator no larger one whole."""
EPOCHS = 2**32
"""One past the last epoch: the draws count them in one word."""
BLOCK = 256
"""Samples read one after the other in ``block`` order: about 3 MB of the usual 12 KB samples."""
WINDOW = 16
"""Blocks whose samples are mixed with one another in ``block`` order."""


def epoch_order(
    samples: int,
    *,
    seed: int,
    epoch: int,
    kind: str = "permuted",
    block: int = BLOCK,
    window: int = WINDOW,
) -> Indexes:
    """The samples of one epoch, in the order in which they are used.

    Args:
        samples: In the split.
        seed: 0 or more.
        epoch: 0 or more; another epoch gives another order, but for ``sequential``.
        kind: ``permuted``: any order is as likely as any other. ``block``: blocks of neighbours in
            random order, the samples of ``window`` blocks at a time mixed at random; a disk then
            sees runs of ``block`` samples. ``sequential``: as written.
        block: Consecutive samples that are read together.
        window: Blocks that are mixed together; ``block * window`` samples may be in memory at once.

    Returns:
        (samples,) int64, a permutation of ``range(samples)``.

    Raises:
        ValueError: Unknown kind, or a negative or zero number where that makes no sense.
    """
    if kind not in KINDS:
        raise ValueError(f"order: {kind!r}; expected one of {', '.join(KINDS)}")
    if samples < 0 or epoch < 0 or seed < 0 or block < 1 or window < 1:
        raise ValueError("order: samples, seed, epoch must be >= 0, block and window >= 1")
    if kind == "sequential":
        return np.arange(samples, dtype=np.int64)
    if kind == "permuted":
        return _shuffled(samples, seed, epoch, stream=0)
    starts = _shuffled(-(-samples // block), seed, epoch, stream=1) * block
    runs = [np.arange(start, min(start + block, samples), dtype=np.int64) for start in starts]
    places = _shuffled(samples, seed, epoch, stream=2)
    order = np.concatenate([np.empty(0, np.int64), *runs])
    begin = 0
    for first in range(0, len(runs), window):
        end = begin + sum(len(run) for run in runs[first : first + window])
        order[begin:end] = order[begin:end][np.argsort(places[begin:end])]
        begin = end
    return order


def steps(samples: int, *, batch_size: int, world_size: int, drop_last: bool) -> int:
    """How many steps every rank takes to use ``samples`` samples.

    Args:
        samples: Left in the epoch.
        batch_size: Samples a rank and step.
        world_size: Ranks.
        drop_last: Leave out the last global batch where it is not full.
    """
    whole = batch_size * world_size
    return samples // whole if drop_last else -(-samples // whole)


def span(
    samples: int, *, consumed: int, step: int, batch_size: int, rank: int, world_size: int
) -> tuple[int, int]:
    """The places of the epoch's order that one rank uses in one step.

    Args:
        samples: In the epoch.
        consumed: Samples that were used before step 0, by all ranks together.
        step: Counted from there.
        batch_size: Samples a rank and step.
        rank: In [0, world_size).
        world_size: Ranks.

    Returns:
        (start, stop); stop - start is batch_size, less in the last step, there perhaps 0.
    """
    start = consumed + (step * world_size + rank) * batch_size
    return min(start, samples), min(start + batch_size, samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """How well an order mixes what lies together in the shards."""

    travel: float
    """Mean distance between a sample's place in the shards and in the epoch, as a fraction of the
    epoch: 0 as written, 1/3 for a random permutation."""

    neighbours: float
    """Share of samples that are followed by their neighbour in the shards: 1 as written, about
    1/samples for a random permutation."""

    spread: float
    """Mean distance in the shards between samples that are used one after the other, as a fraction
    of the epoch: about 0 as written, 1/3 for a random permutation."""


def mixing(order: Indexes) -> Mixing:
    """Measure an order.

    Args:
        order: (N,) a permutation of ``range(N)``, N >= 2.

    Raises:
        ValueError: Fewer than two samples.
    """
    if len(order) < 2:
        raise ValueError("mixing: needs two samples or more")
    jumps = np.diff(order)
    return Mixing(
        travel=float(np.abs(order - np.arange(len(order))).mean() / len(order)),
        neighbours=float((jumps == 1).mean()),
        spread=float(np.abs(jumps).mean() / len(order)),
    )


def _shuffled(count: int, seed: int, epoch: int, *, stream: int) -> Indexes:
    """A permutation from Philox's raw words.

    NumPy promises that a bit generator's raw stream never changes, and promises nothing about
    ``Generator.permutation``: a checkpoint must mean the same order under the next release.
    """
    philox = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream])
    return np.argsort(philox.random_raw(count), kind="stable")
