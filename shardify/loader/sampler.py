"""Sample order of an epoch, and each rank's share of each step.

Pure functions on numbers; the seed is an argument.

An epoch is a permutation of ``range(samples)`` that depends on (kind, samples, seed, epoch) only.
A global batch is the next ``batch_size * world_size`` samples of it, cut into one contiguous slice
a rank. So a run can stop after any step and resume with another number of ranks, and no sample is
lost or repeated.
"""

import numpy as np
import numpy.typing as npt

Indexes = npt.NDArray[np.int64]

KINDS = ("permuted", "block", "sequential")
SEED_LIMIT = 2**63
"""One past the largest seed: NumPy's generator takes no larger key."""
EPOCH_LIMIT = 2**32
"""One past the largest epoch: the augmentation counts epochs in one 32-bit word."""
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
    """Return the samples of one epoch, in the order in which they are used.

    Args:
        samples: Number of samples in the split.
        seed: 0 or more.
        epoch: 0 or more; each epoch has its own order, except with ``sequential``.
        kind: ``permuted``: any order is as likely as any other. ``block``: blocks of neighbours in
            random order, the samples of ``window`` blocks at a time mixed at random; a disk then
            sees runs of ``block`` samples. ``sequential``: as written.
        block: Consecutive samples that are read together.
        window: Blocks that are mixed together; ``block * window`` samples may be in memory at once.

    Returns:
        (samples,) int64, a permutation of ``range(samples)``.
    """
    if kind == "sequential":
        return np.arange(samples, dtype=np.int64)
    if kind == "permuted":
        return _permutation(samples, seed, epoch, stream=0)
    starts = _permutation(-(-samples // block), seed, epoch, stream=1) * block
    runs = [np.arange(start, min(start + block, samples), dtype=np.int64) for start in starts]
    places = _permutation(samples, seed, epoch, stream=2)
    order = np.concatenate([np.empty(0, np.int64), *runs])
    begin = 0
    for first in range(0, len(runs), window):
        end = begin + sum(len(run) for run in runs[first : first + window])
        order[begin:end] = order[begin:end][np.argsort(places[begin:end])]
        begin = end
    return order


def steps(samples: int, *, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Return the number of steps in which every rank uses ``samples`` samples.

    ``drop_last`` leaves out the last global batch if it is not full.
    """
    global_batch = batch_size * world_size
    return samples // global_batch if drop_last else -(-samples // global_batch)


def span(
    samples: int, *, consumed: int, step: int, batch_size: int, rank: int, world_size: int
) -> tuple[int, int]:
    """Return the range of the epoch's order that one rank uses in one step.

    Args:
        samples: Samples in the epoch.
        consumed: Samples used before step 0, by all ranks together.
        step: Step number, counted from there.
        batch_size: Samples a rank and step.
        rank: In [0, world_size).
        world_size: Number of ranks.

    Returns:
        (start, stop); stop - start is batch_size, or less in the last step, possibly 0.
    """
    start = consumed + (step * world_size + rank) * batch_size
    return min(start, samples), min(start + batch_size, samples)


def _permutation(count: int, seed: int, epoch: int, *, stream: int) -> Indexes:
    """Return a permutation made from Philox's raw words.

    A checkpoint must mean the same order under the next NumPy release. NumPy guarantees the raw
    stream of a bit generator, but not ``Generator.permutation``.
    """
    philox = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream])
    return np.argsort(philox.random_raw(count), kind="stable")
