"""Which samples are measured: as the backgrounds share the training set, and spread over it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.conversion.task_list import _choose_measured


@given(st.lists(st.integers(-1, 6), max_size=900))
def test_each_background_has_its_share_of_what_is_measured(background: list[int]) -> None:
    of = np.array(background, np.int64)
    chosen = _choose_measured(of)
    several = len(set(background)) > 1
    wanted = min(len(of), 200 if several else 400)
    assert chosen.sum() == wanted
    for each in set(background):
        share = wanted * (of == each).sum() / len(of)
        assert abs((chosen & (of == each)).sum() - share) <= 1


@pytest.mark.parametrize("backgrounds", [1, 7, 100])
def test_no_shard_has_much_more_to_measure_than_others(backgrounds: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=1))
    of = generator.integers(0, backgrounds, 40_000)
    a_shard = _choose_measured(of).reshape(40, 1000).sum(axis=1)
    assert 1 <= a_shard.min() and a_shard.max() <= 4 * a_shard.mean()
