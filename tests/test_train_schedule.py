import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.config import Optim
from train.schedule import LearningRate, plan, stage_of


@given(st.lists(st.tuples(st.integers(16, 512), st.integers(1, 9)), min_size=1, max_size=5))
def test_every_epoch_belongs_to_exactly_one_stage(pairs: list[tuple[int, int]]) -> None:
    res, epochs = zip(*pairs, strict=True)
    stages = plan(res, epochs)
    seen = [stage_of(stages, epoch) for epoch in range(sum(epochs))]
    assert [stage.res for stage in seen if stage] == [
        size for size, count in pairs for _ in range(count)
    ]
    assert stage_of(stages, sum(epochs)) is None


def test_a_single_number_of_epochs_serves_every_stage() -> None:
    assert [(s.first, s.epochs) for s in plan((64, 128, 256), (2,))] == [(0, 2), (2, 2), (4, 2)]


def make(**options: object) -> tuple[torch.optim.Optimizer, LearningRate]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, LearningRate(optimizer, Optim(lr=1.0, factor=0.5, patience=1, **options))


def test_the_rate_falls_when_the_loss_stalls_for_longer_than_patience() -> None:
    _, lr = make()
    rates = []
    for loss in (1.0, 0.9, 0.95, 0.95, 0.8):
        lr.after_epoch(loss)
        rates.append(lr.value)
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_a_constant_rate_never_falls() -> None:
    _, lr = make(schedule="constant")
    for _ in range(9):
        lr.after_epoch(1.0)
    assert lr.value == 1.0


def test_a_new_stage_forgets_the_losses_of_another_resolution_and_keeps_the_rate() -> None:
    _, lr = make()
    for loss in (0.1, 0.2, 0.2):
        lr.after_epoch(loss)
    assert lr.value == 0.5
    lr.new_stage()
    assert lr.state_dict()["best"] == math.inf
    for loss in (1.0, 0.9, 0.8, 0.7):  # All worse than before, all better than each other.
        lr.after_epoch(loss)
    assert lr.value == 0.5


def test_a_restored_schedule_lowers_the_rate_when_the_first_would_have() -> None:
    _, first = make()
    first.after_epoch(0.5)
    first.after_epoch(0.6)
    optimizer, second = make()
    second.load_state_dict(first.state_dict())
    second.after_epoch(0.6)
    assert optimizer.param_groups[0]["lr"] == 0.5
