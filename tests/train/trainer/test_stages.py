import pytest

from shardify.resolution import Resolution
from train.trainer.progress import Position
from train.trainer.stages import Stage, plan, stage_at, work_left


def test_a_stage_that_ended_early_moves_the_later_ones_forward() -> None:
    stages = plan((64, 128, 256), (5, 4, 3), {0: 2})
    assert [(stage.first, stage.end) for stage in stages] == [(0, 2), (2, 6), (6, 9)]
    assert stage_at(stages, 2) == Stage(index=1, res=Resolution(128, 128), first=2, epochs=4)


@pytest.mark.parametrize(
    ("at", "done", "max_steps", "left"),
    [
        # 10 steps an epoch: 2 epochs at 64 px, 1 at 128 px, whose steps count 4 times.
        (Position(), 0, 0, (20 + 4 * 10, 2 + 4)),
        (Position(epoch=1, step=17), 7, 0, (3 + 4 * 10, 1 + 4)),
        (Position(epoch=2, step=26), 6, 0, (4, 1)),
        (Position(epoch=1, step=17), 7, 22, (3 + 4 * 2, 1 + 4)),
        (Position(epoch=0, step=2), 2, 6, (4, 1)),
    ],
)
def test_what_is_left_counts_all_stages_by_their_pixels(
    at: Position, done: int, max_steps: int, left: tuple[float, float]
) -> None:
    stages = plan((64, 128), (2, 1))
    assert work_left(stages, at, steps=10, done=done, max_steps=max_steps) == left
