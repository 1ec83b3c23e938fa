import hashlib
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.loader.sampler import BLOCK, KINDS, Indexes, epoch_order, span, steps


class Mixing(NamedTuple):
    """How well an order mixes samples that are neighbours in the shards."""

    travel: float
    """Mean distance between a sample's positions in the shards and in the epoch, as a fraction of
    the epoch: 0 as written, 1/3 for a random permutation."""

    neighbours: float
    """Share of samples followed by their neighbour in the shards."""

    spread: float
    """Mean distance in the shards between samples used one after the other, as a fraction."""


def mixing(order: Indexes) -> Mixing:
    jumps = np.diff(order)
    return Mixing(
        travel=float(np.abs(order - np.arange(len(order))).mean() / len(order)),
        neighbours=float((jumps == 1).mean()),
        spread=float(np.abs(jumps).mean() / len(order)),
    )


@given(
    samples=st.integers(0, 3000),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    block=st.integers(1, 400),
    window=st.integers(1, 9),
)
def test_an_epoch_is_a_permutation(samples, seed, epoch, kind, block, window) -> None:
    order = epoch_order(samples, seed=seed, epoch=epoch, kind=kind, block=block, window=window)
    assert np.array_equal(np.sort(order), np.arange(samples))


@pytest.mark.parametrize("kind", ["permuted", "block"])
def test_order_differs_between_epochs_and_seeds_but_not_between_calls(kind) -> None:
    first = epoch_order(500, seed=3, epoch=1, kind=kind)
    assert np.array_equal(first, epoch_order(500, seed=3, epoch=1, kind=kind))
    assert (first != epoch_order(500, seed=3, epoch=2, kind=kind)).mean() > 0.9
    assert (first != epoch_order(500, seed=4, epoch=1, kind=kind)).mean() > 0.9


def test_order_is_the_one_that_older_checkpoints_mean() -> None:
    order = epoch_order(1000, seed=7, epoch=3)
    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert (order[:5].tolist(), digest[:16]) == ([702, 703, 148, 932, 542], "5dd4a4a3c0ab66a3")


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 16])
@pytest.mark.parametrize("samples", [1, 15, 16, 17, 103])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_without_loss_or_repeat(
    samples, batch_size, world_size, drop_last
) -> None:
    count = steps(samples, batch_size=batch_size, world_size=world_size, drop_last=drop_last)
    places: list[int] = []
    for step in range(count):
        for rank in range(world_size):
            start, stop = span(
                samples,
                consumed=0,
                step=step,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
            )
            assert stop - start == batch_size or (not drop_last and step == count - 1)
            places += range(start, stop)
    whole = batch_size * world_size
    assert places == list(range(samples // whole * whole if drop_last else samples))


@given(
    samples=st.integers(50, 400),
    worlds=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 3)), max_size=6),
)
def test_an_epoch_goes_on_with_another_number_of_ranks(samples, worlds) -> None:
    consumed, places = 0, []
    for world_size, batch_size, taken in [*worlds, (1, 1, 10**9)]:
        left = steps(
            samples - consumed, batch_size=batch_size, world_size=world_size, drop_last=True
        )
        for step in range(min(taken, left)):
            for rank in range(world_size):
                places += range(
                    *span(
                        samples,
                        consumed=consumed,
                        step=step,
                        batch_size=batch_size,
                        rank=rank,
                        world_size=world_size,
                    )
                )
        consumed = len(places)
    assert places == list(range(samples))


def test_samples_dropped_at_the_end_differ_from_epoch_to_epoch() -> None:
    dropped = [set(epoch_order(103, seed=0, epoch=epoch)[96:].tolist()) for epoch in range(20)]
    assert len(set().union(*dropped)) > 60


def test_a_permutation_mixes_as_chance_does() -> None:
    found = mixing(epoch_order(20_000, seed=0, epoch=0))
    assert found.travel == pytest.approx(1 / 3, abs=0.01)
    assert found.spread == pytest.approx(1 / 3, abs=0.01)
    assert found.neighbours < 0.001


def test_as_written_mixes_nothing() -> None:
    found = mixing(epoch_order(1000, seed=0, epoch=0, kind="sequential"))
    assert (found.travel, found.neighbours, found.spread) == (0.0, 1.0, 0.001)


def test_blocks_mix_far_but_keep_a_few_neighbours() -> None:
    order = epoch_order(40_000, seed=0, epoch=0, kind="block")
    found = mixing(order)
    assert found.travel == pytest.approx(1 / 3, abs=0.05)
    assert found.spread == pytest.approx(1 / 3, abs=0.05)
    assert 0 < found.neighbours < 0.001


def test_block_order_reads_whole_blocks_of_one_window_at_a_time() -> None:
    order = epoch_order(10 * BLOCK, seed=0, epoch=0, kind="block", window=2)
    for first in range(0, len(order), 2 * BLOCK):
        blocks, counts = np.unique(order[first : first + 2 * BLOCK] // BLOCK, return_counts=True)
        assert (len(blocks), set(counts.tolist())) == (2, {BLOCK})
