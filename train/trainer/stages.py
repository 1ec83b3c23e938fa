"""A run's stages, one after the other: which one it is in, its loaders, the steps still to come.

Opens and closes loaders; it takes no batch from them and moves no weight.
"""

from dataclasses import dataclass
from typing import Any

from shardify.loader.batch import Batch
from train.config import Config
from train.data import Batches, Dataset
from train.distributed import World
from train.optim.memory import release
from train.tracking.console import Screen
from train.trainer.progress import Position
from train.trainer.state import State

__all__ = ["Stage", "StageLoaders", "Stages", "plan", "stage_of", "steps_left"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of epochs at one resolution."""

    index: int
    """Number of the stage, from 0."""

    res: int
    """Height and width of every image. Pixels."""

    first: int
    """Its first epoch, counted over the whole run from 0."""

    epochs: int
    """How many epochs it lasts."""

    @property
    def end(self) -> int:
        """The epoch that is no longer its own."""
        return self.first + self.epochs


def plan(res: tuple[int, ...], epochs: tuple[int, ...]) -> tuple[Stage, ...]:
    """The stages of a run.

    Args:
        res: One resolution a stage. Pixels.
        epochs: Epochs a stage; a single number serves for all.
    """
    if len(epochs) == 1:
        epochs = epochs * len(res)
    stages = []
    first = 0
    for index, (size, count) in enumerate(zip(res, epochs, strict=True)):
        stages.append(Stage(index=index, res=size, first=first, epochs=count))
        first += count
    return tuple(stages)


def stage_of(stages: tuple[Stage, ...], epoch: int) -> Stage | None:
    """The stage that ``epoch`` belongs to; None after the last."""
    return next((stage for stage in stages if stage.first <= epoch < stage.end), None)


def steps_left(
    stages: tuple[Stage, ...], at: Position, *, batches: int, used: int, accum: int
) -> int:
    """Optimiser steps from here to the end of the last stage.

    Args:
        stages: From `plan`.
        at: Where the run is.
        batches: Of a whole epoch.
        used: Batches of the epoch at work that are done.
        accum: Batches a step; an epoch's last step may have fewer.
    """
    now = 0 if at.trained else -(-(batches - used) // accum)
    return now + (stages[-1].end - at.epoch - 1) * -(-batches // accum)


class StageLoaders:
    """The loaders of one stage: to train on, to judge by, and samples to show."""

    def __init__(
        self,
        source: Dataset,
        *,
        res: int,
        batch: int,
        augment: bool,
        seed: int,
        epoch: int,
        state: dict[str, Any] | None,
    ) -> None:
        """Open them.

        Args:
            source: The data set.
            res: Resolution of the stage. Pixels.
            batch: Samples a step on this rank.
            augment: Whether training samples are augmented.
            seed: Decides order and augmentation.
            epoch: The one to begin with, counted over all stages: order and draws depend on it.
            state: Where the training loader was within that epoch; None at its beginning.

        Raises:
            DataError: A split cannot be read, or ``state`` is of other data.
        """
        self.train = source.open("train", res=res, batch=batch, augment=augment, seed=seed)
        begin = {**self.train.state_dict(), "epoch": epoch, "consumed": 0}
        self.train.load_state_dict(begin if state is None else state)
        self.val: Batches | None = None
        self.shown: Batch | None = None
        """A batch of training samples as they are, where there is no validation split."""
        if source.samples("val"):
            self.val = source.open("val", res=res, batch=batch, augment=False, seed=seed)
        else:
            still = source.open("train", res=res, batch=batch, augment=False, seed=seed)
            self.shown = next(iter(still), None)
            still.close()

    def close(self) -> None:
        """Free threads and memory."""
        self.train.close()
        if self.val is not None:
            self.val.close()


class Stages:
    """The stages of one run, on one process."""

    def __init__(
        self, config: Config, source: Dataset, state: State, *, world: World, screen: Screen
    ) -> None:
        """Plan them; nothing is opened yet.

        Args:
            config: What is asked for.
            source: The data.
            state: Says how far the run is.
            world: Place among other processes.
            screen: Where it is told that the rates to come are others.
        """
        self._config = config
        self._source = source
        self._state = state
        self._world = world
        self._screen = screen
        self._plan = plan(config.data.res, config.data.epochs)
        self._stage: Stage | None = None
        self._loaders: StageLoaders | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def now(self) -> Stage | None:
        """The stage of the epoch at work; None after the last."""
        return stage_of(self._plan, self._state.at.epoch)

    def resume(self, loader: dict[str, Any] | None) -> None:
        """Begin within an epoch: the training loader's state there; None at its beginning."""
        self._resumed = loader

    def enter(self, stage: Stage) -> StageLoaders:
        """The loaders of a stage, opened if it is another than the last.

        Raises:
            DataError: A split cannot be read, or the loader's state is of other data.
            ConfigError: The warm-up takes the whole run.
        """
        if self._stage == stage and self._loaders is not None:
            return self._loaders
        self.close()
        resumed, self._resumed = self._resumed, None
        at, data = self._state.at, self._config.data
        self._loaders = StageLoaders(
            self._source,
            res=stage.res,
            batch=data.batch,
            augment=data.augment,
            seed=self._config.run.seed,
            epoch=at.epoch + at.trained,
            state=resumed,
        )
        self._stage = stage
        self._state.res = stage.res
        total = at.step + steps_left(
            self._plan,
            at,
            batches=len(self._loaders.train),
            used=self._loaders.train.state_dict()["consumed"] // (data.batch * self._world.size),
            accum=self._config.optim.grad_accum,
        )
        most = self._config.run.max_steps
        before = self._state.lr.over(min(total, most) if most else total)
        if before:
            self._screen.say(
                f"{self._config.run.out}: the learning rate now goes by another length of the run "
                f"than the {before} steps it went by before"
            )
        return self._loaders

    def close(self) -> None:
        """Free the loaders' threads and memory."""
        if self._loaders is not None:
            self._loaders.close()
            self._loaders = None
            release()  # The next loaders cannot use what torch keeps at hand.
