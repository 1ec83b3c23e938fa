import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.config import Optim
from train.errors import ConfigError
from train.optim.optimizer import LearningRate, rate
from train.trainer.stages import plan, stage_at


@given(st.lists(st.tuples(st.integers(16, 512), st.integers(1, 9)), min_size=1, max_size=5))
def test_every_epoch_belongs_to_exactly_one_stage(pairs: list[tuple[int, int]]) -> None:
    res, epochs = zip(*pairs, strict=True)
    stages = plan(res, epochs)
    seen = [stage_at(stages, epoch) for epoch in range(sum(epochs))]
    assert [stage.res.width for stage in seen if stage] == [
        size for size, count in pairs for _ in range(count)
    ]
    assert stage_at(stages, sum(epochs)) is None


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


def rates(schedule: str, total: int, warmup: int) -> list[float]:
    return [rate(schedule, step, total=total, warmup=warmup) for step in range(total)]


@given(total=st.integers(2, 500), warmup=st.integers(0, 100))
def test_a_cosine_rises_in_a_line_and_falls_towards_nothing(total: int, warmup: int) -> None:
    warmup = min(warmup, total - 1)
    found = rates("cosine", total, warmup)
    assert found[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    down = found[warmup:]
    assert down[0] == 1 and down == sorted(down, reverse=True) and down[-1] > 0
    assert rate("cosine", total + 9, total=total, warmup=warmup) < 1e-9  # Past its end.


@pytest.mark.parametrize(("total", "warmup"), [(1000, 0), (1000, 100), (7, 0), (2, 1)])
def test_one_cycle_is_the_curve_that_torch_draws(total: int, warmup: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    rise = warmup or max(1, round(0.3 * total))
    share = (rise + 1) / total  # torch counts from the peak's own step.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=share, cycle_momentum=False
    )
    expected = []
    for step in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.zeros(1)
        optimizer.step()
        if step < total - 1:
            theirs.step()
    assert rates("onecycle", total, warmup) == pytest.approx(expected)


def test_a_warm_up_leads_to_the_plateaus_rate_and_leaves_its_falls_alone() -> None:
    optimizer, lr = make(warmup=4)
    seen = []
    for step in range(6):
        lr.before_step(step)
        seen.append(lr.value)
        if step == 1:
            lr.after_epoch(1.0)  # Within the warm-up: it knows the rate that is meant.
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    for _ in range(2):
        lr.after_epoch(1.0)
    lr.before_step(6)
    assert lr.value == 0.5
    again, second = make(warmup=4)
    again.load_state_dict(optimizer.state_dict())
    second.load_state_dict(lr.state_dict())
    second.before_step(7)
    assert second.value == 0.5


def test_a_run_of_another_length_is_noticed() -> None:
    _, lr = make_plain(schedule="cosine")
    assert lr.set_total_steps(10) == 0
    assert lr.set_total_steps(10) == 0
    assert lr.set_total_steps(12) == 10
    with pytest.raises(ConfigError, match="--warmup 0"):
        lr.set_total_steps(0)


def make_plain(**options: object) -> tuple[torch.optim.Optimizer, LearningRate]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, LearningRate(optimizer, Optim(lr=1.0, **options))
