"""A plan is a partition without leaks, the same for everybody."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.conversion.splits import hold_back, plan_shards, shuffled

SEEDS = st.integers(0, 2**63 - 1)


@given(st.integers(0, 400), SEEDS, st.integers(1, 9))
def test_a_shuffle_is_a_permutation(count: int, seed: int, stream: int) -> None:
    assert sorted(shuffled(count, seed=seed, stream=stream).tolist()) == list(range(count))


def test_a_shuffle_stays_what_it_was() -> None:
    # Written down once: a change would reorder every data set in the world.
    assert shuffled(10, seed=0, stream=1).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
    assert shuffled(10, seed=1, stream=1).tolist() != shuffled(10, seed=0, stream=1).tolist()
    assert shuffled(10, seed=0, stream=2).tolist() != shuffled(10, seed=0, stream=1).tolist()


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=300).filter(lambda g: len(set(g)) > 1),
    st.floats(0.01, 0.99),
    SEEDS,
)
def test_no_group_stands_on_both_sides_and_neither_is_empty(
    groups: list[int], val: float, seed: int
) -> None:
    of_sample = np.array(groups, np.int32)
    held = hold_back(of_sample, len(groups), val=val, seed=seed)
    assert not set(of_sample[held].tolist()) & set(of_sample[~held].tolist())
    assert held.any()
    assert not held.all()


@given(st.integers(2, 500), st.floats(0.01, 0.99), SEEDS)
def test_ungrouped_samples_are_held_back_by_count(count: int, val: float, seed: int) -> None:
    held = hold_back(None, count, val=val, seed=seed)
    assert held.sum() == min(count - 1, max(1, round(count * val)))


def test_the_share_held_back_is_near_what_was_asked() -> None:
    groups = np.repeat(np.arange(100, dtype=np.int32), 40)
    for seed in range(20):
        assert hold_back(groups, 4000, val=0.05, seed=seed).mean() == pytest.approx(0.05)


def test_nothing_is_held_back_when_nothing_is_asked_for() -> None:
    assert not hold_back(np.zeros(9, np.int32), 9, val=0, seed=0).any()
    assert not hold_back(None, 9, val=0, seed=0).any()


def test_nothing_is_held_back_of_one_group() -> None:
    assert not hold_back(np.zeros(9, np.int32), 9, val=0.9, seed=0).any()
    assert not hold_back(np.zeros(1, np.int32), 1, val=0.9, seed=0).any()
    assert not hold_back(None, 1, val=0.9, seed=0).any()
    assert not hold_back(None, 0, val=0.9, seed=0).any()


@given(
    st.lists(st.booleans(), min_size=1, max_size=500),
    st.one_of(st.none(), st.integers(1, 60)),
    SEEDS,
)
def test_every_sample_stands_in_exactly_one_shard(
    held: list[bool], most: int | None, seed: int
) -> None:
    of_sample = np.array(held)
    plans = plan_shards(of_sample, shard_samples=most, seed=seed)
    seen = []
    for split, shards in plans.items():
        sizes = [len(shard.samples) for shard in shards]
        assert all(sizes)
        assert not sizes or max(sizes) - min(sizes) <= 1
        assert max(sizes, default=0) <= (most or 1000)
        for number, shard in enumerate(shards):
            assert shard.name == f"{split}-{number:05d}"
            assert shard.split == split
            assert (of_sample[shard.samples] == (split == "val")).all()
            seen += shard.samples.tolist()
    assert sorted(seen) == list(range(len(held)))


def test_samples_are_mixed_within_and_across_shards() -> None:
    plans = plan_shards(np.zeros(4000, bool), shard_samples=None, seed=0)["train"]
    assert len(plans) >= 16
    for shard in plans:
        # Uniform over 4000: the mean of 250 lies within 4 standard errors of the middle.
        assert abs(shard.samples.mean() - 2000) < 4 * 1155 / len(shard.samples) ** 0.5
