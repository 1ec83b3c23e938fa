"""Plan the stages of a run (resolution, epochs), and open the loaders of each stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from shardify.loader.batch import Batch
from shardify.resolution import Resolution, ResolutionLike, resolution
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
    res: Resolution
    """Height and width of every image. Pixels."""

    first: int
    """First epoch, counted over the whole run from 0."""

    epochs: int

    @property
    def end(self) -> int:
        """First epoch after the stage."""
        return self.first + self.epochs


def plan(
    res: tuple[ResolutionLike, ...],
    epochs: tuple[int, ...],
    cut: Mapping[int, int] | None = None,
) -> tuple[Stage, ...]:
    """Return the stages of a run.

    Args:
        res: Resolution of each stage. Pixels.
        epochs: Epochs of each stage; a single number applies to all stages.
        cut: Index of each stage that early stopping ended → its epochs.
    """
    if len(epochs) == 1:
        epochs = epochs * len(res)
    stages = []
    first = 0
    for index, (size, count) in enumerate(zip(res, epochs, strict=True)):
        count = min(count, (cut or {}).get(index, count))
        stages.append(Stage(index=index, res=resolution(size), first=first, epochs=count))
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


def work_left(
    stages: tuple[Stage, ...], at: Position, *, steps: int, done: int, max_steps: int
) -> tuple[float, float]:
    """Return what is left of the run: steps and validations, in units of the current stage.

    A step at another resolution counts by its number of pixels.

    Args:
        stages: From `plan`.
        at: Position of the run, before its end.
        steps: Steps of a whole epoch.
        done: Steps of the current epoch that are done.
        max_steps: Steps of the whole run at most; 0: no limit.
    """
    now = stage_at(stages, at.epoch)
    assert now is not None
    budget = max_steps - at.step if max_steps else inf
    work = validations = 0.0
    for stage in stages[now.index :]:
        whole = (stage.end - max(stage.first, at.epoch)) * steps
        count = min(whole - (done if stage is now else 0), budget)
        budget -= count
        pixels = stage.res.pixels / now.res.pixels
        work += pixels * count
        validations += pixels * ceil(count / steps)
    return work, validations


class StageLoaders:
    """Loaders of one stage: training and validation, or a preview batch."""

    def __init__(
        self,
        source: Dataset,
        config: Config,
        *,
        res: Resolution,
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
        self._stage: Stage | None = None
        self._loaders: StageLoaders | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def now(self) -> Stage | None:
        """Stage of the current epoch; None when the run has ended."""
        return None if self.ending else stage_at(self._plan, self._state.at.epoch)

    @property
    def ending(self) -> str:
        """Why the run has ended; empty before its end."""
        at, run = self._state.at, self._config.run
        if at.epoch >= self._plan[-1].end:
            early = [str(stage.end) for stage in self._plan if stage.index in at.cut]
            if early:
                return f"all stages are done (early stopping at epoch {', '.join(early)})"
            return "all epochs are done"
        if self._stale and at.epoch > self._plan[-1].first:
            return f"early stopping at epoch {at.epoch} ({self._without_improvement})"
        return f"--max-steps {run.max_steps}" if self.reached_max_steps else ""

    @property
    def reached_max_steps(self) -> bool:
        """Whether all steps of ``--max-steps`` are done."""
        max_steps = self._config.run.max_steps
        return bool(max_steps) and self._state.at.step >= max_steps

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole run, without early stopping from now on."""
        return self._plan[-1].end

    def resume(self, loader: dict[str, Any] | None) -> None:
        """Set the training loader's state to resume from; None at the beginning of an epoch."""
        self._resumed = loader
        if loader is None and not self._state.at.trained:
            self.advance()  # The command may have changed --stop-after or the stages.

    def advance(self) -> None:
        """Begin the next stage, if the epochs of the last one are done or no longer improve.

        Called between two epochs; a second call has no effect.
        """
        at = self._state.at
        stage = stage_at(self._plan, at.epoch - 1)
        if stage is None or stage.index == len(self._plan) - 1:
            return  # More epochs of the last stage may follow in a resumed run.
        if at.epoch < stage.end:
            if not self._stale:
                return
            at.cut[stage.index] = at.epoch - stage.first
            self._console.print_line(
                f"{stage.res} px: early stopping at epoch {at.epoch} "
                f"({self._without_improvement}); the next stage begins"
            )
        at.best, at.stale = None, 0  # Losses at different resolutions cannot be compared.
        self._state.lr.new_stage()

    def seconds_left(self, *, step: float, validation: float, steps: int, done: int) -> float:
        """Estimate the time that is left of the whole run. Seconds.

        ``step`` and ``validation`` are their times at the current resolution; ``steps`` and
        ``done`` are as in `work_left`.
        """
        at, max_steps = self._state.at, self._config.run.max_steps
        work, validations = work_left(self._plan, at, steps=steps, done=done, max_steps=max_steps)
        return work * step + validations * validation

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
        self._state.enter_stage(stage.index + 1)
        whole_batch = self._config.data.batch * self._world.size
        total = at.step + steps_left(
            self._plan,
            at,
            batches=len(self._loaders.train),
            used=self._loaders.train.state_dict()["consumed"] // whole_batch,
            accum=self._config.optim.grad_accum,
        )
        max_steps = self._config.run.max_steps
        before = self._state.lr.set_total_steps(
            min(total, max_steps) if max_steps else total, shortened=bool(at.cut)
        )
        if before:
            self._console.print_line(
                f"{self._config.run.out}: the length of the run was {before} steps and is now "
                "different: the learning rate schedule changes"
            )
        return self._loaders

    @property
    def _plan(self) -> tuple[Stage, ...]:
        data = self._config.data
        return plan(data.res, data.epochs, self._state.at.cut)

    @property
    def _stale(self) -> bool:
        """Whether this stage has had too many epochs without improvement."""
        return 0 < self._config.run.stop_after <= self._state.at.stale

    @property
    def _without_improvement(self) -> str:
        stale = self._state.at.stale
        return f"{stale} epoch{'s' * (stale > 1)} without improvement"

    def close(self) -> None:
        """Free the loaders' threads and memory."""
        if self._loaders is not None:
            self._loaders.close()
            self._loaders = None
            release()  # DALI cannot use the GPU memory that torch caches.
