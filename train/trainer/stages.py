"""A run's stages, one after the other: which one it is in, its loaders, the steps still to come.

Opens and closes loaders; it takes no batch from them and moves no weight.
"""

from typing import Any

from train.config import Config
from train.data import Source, StageLoaders
from train.distributed import World
from train.optim.memory import release
from train.optim.optimizer import Stage, plan, stage_of, steps_left
from train.tracking.console import Screen
from train.trainer.state import State

__all__ = ["Stages"]


class Stages:
    """The stages of one run, on one process."""

    def __init__(
        self, config: Config, source: Source, state: State, *, world: World, screen: Screen
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
