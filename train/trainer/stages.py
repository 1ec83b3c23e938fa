"""Plan the stages of a run (resolution, epochs), and open the loaders of each stage."""

from dataclasses import dataclass
from typing import Any

from shardify.loader.batch import Batch
from train.config import Config
from train.data import Batches, Dataset
from train.distributed import World
from train.optim.memory import release
from train.tracking.console import Console
from train.trainer.progress import Position
from train.trainer.state import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Consecutive epochs at one resolution."""

    index: int
    res: int
    """Height and width of every image. Pixels."""

    first: int
    """First epoch, counted over the whole run from 0."""

    epochs: int

    @property
    def end(self) -> int:
        """First epoch after the stage."""
        return self.first + self.epochs


def plan(res: tuple[int, ...], epochs: tuple[int, ...]) -> tuple[Stage, ...]:
    """Return the stages of a run.

    Args:
        res: Resolution of each stage. Pixels.
        epochs: Epochs of each stage; a single number applies to all stages.
    """
    if len(epochs) == 1:
        epochs = epochs * len(res)
    stages = []
    first = 0
    for index, (size, count) in enumerate(zip(res, epochs, strict=True)):
        stages.append(Stage(index=index, res=size, first=first, epochs=count))
        first += count
    return tuple(stages)


def stage_at(stages: tuple[Stage, ...], epoch: int) -> Stage | None:
    """Return the stage of ``epoch``; None after the last stage."""
    return next((stage for stage in stages if stage.first <= epoch < stage.end), None)


def steps_left(
    stages: tuple[Stage, ...], at: Position, *, batches: int, used: int, accum: int
) -> int:
    """Return the number of optimiser steps from ``at`` to the end of the last stage.

    Args:
        stages: From `plan`.
        at: Position of the run.
        batches: Batches of a whole epoch.
        used: Batches of the current epoch that are done.
        accum: Batches per step; the last step of an epoch may have fewer.
    """
    current = 0 if at.trained else -(-(batches - used) // accum)
    return current + (stages[-1].end - at.epoch - 1) * -(-batches // accum)


class StageLoaders:
    """Loaders of one stage: training and validation, or a preview batch."""

    def __init__(
        self,
        source: Dataset,
        config: Config,
        *,
        res: int,
        epoch: int,
        state: dict[str, Any] | None,
    ) -> None:
        """Open the loaders.

        ``epoch`` is counted over all stages; order and augmentation depend on it. ``state`` is that
        of the training loader within the epoch; None at its beginning.

        Raises:
            DataError: A split cannot be read, or ``state`` is from other data.
        """
        batch, augment, seed = config.data.batch, config.data.augment, config.run.seed
        self.train = source.open("train", res=res, batch=batch, augment=augment, seed=seed)
        start = {**self.train.state_dict(), "epoch": epoch, "consumed": 0}
        self.train.load_state_dict(start if state is None else state)
        self.val: Batches | None = None
        self.preview: Batch | None = None
        """A batch of training samples without augmentation, if there is no validation split."""
        if source.samples("val"):
            self.val = source.open("val", res=res, batch=batch, augment=False, seed=seed)
        else:
            loader = source.open("train", res=res, batch=batch, augment=False, seed=seed)
            self.preview = next(iter(loader), None)
            loader.close()

    def close(self) -> None:
        """Free threads and memory."""
        self.train.close()
        if self.val is not None:
            self.val.close()


class Stages:
    """Stages of one run on one rank; the loaders of one stage are open at a time."""

    def __init__(
        self, config: Config, source: Dataset, state: State, *, world: World, console: Console
    ) -> None:
        """Plan the stages; nothing is opened yet."""
        self._config = config
        self._source = source
        self._state = state
        self._world = world
        self._console = console
        self._plan = plan(config.data.res, config.data.epochs)
        self._stage: Stage | None = None
        self._loaders: StageLoaders | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def now(self) -> Stage | None:
        """Stage of the current epoch; None after the last stage."""
        return stage_at(self._plan, self._state.at.epoch)

    def resume(self, loader: dict[str, Any] | None) -> None:
        """Set the training loader's state to resume from; None at the beginning of an epoch."""
        self._resumed = loader

    def enter(self, stage: Stage) -> StageLoaders:
        """Return the loaders of a stage; open them if the stage is a new one.

        Raises:
            DataError: A split cannot be read, or the loader's state is from other data.
            ConfigError: The warm-up takes the whole run.
        """
        if self._stage == stage and self._loaders is not None:
            return self._loaders
        self.close()
        resumed, self._resumed = self._resumed, None
        at = self._state.at
        self._loaders = StageLoaders(
            self._source, self._config, res=stage.res, epoch=at.epoch + at.trained, state=resumed
        )
        self._stage = stage
        self._state.res = stage.res
        whole_batch = self._config.data.batch * self._world.size
        total = at.step + steps_left(
            self._plan,
            at,
            batches=len(self._loaders.train),
            used=self._loaders.train.state_dict()["consumed"] // whole_batch,
            accum=self._config.optim.grad_accum,
        )
        max_steps = self._config.run.max_steps
        before = self._state.lr.set_total_steps(min(total, max_steps) if max_steps else total)
        if before:
            self._console.print_line(
                f"{self._config.run.out}: the length of the run was {before} steps and is now "
                "different: the learning rate schedule changes"
            )
        return self._loaders

    def close(self) -> None:
        """Free the loaders' threads and memory."""
        if self._loaders is not None:
            self._loaders.close()
            self._loaders = None
            release()  # DALI cannot use the GPU memory that torch caches.
