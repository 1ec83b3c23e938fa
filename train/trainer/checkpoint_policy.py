"""When a run saves its state, and when it leaves: asked to, out of time, or diverged.

All ranks decide together. Where a step takes longer than somebody who sent a signal waits, the
state as of the last whole step is saved from another thread (see ``train.trainer.signals``). What
the state is, ``train.trainer.state`` knows; how it is written, ``train.tracking.run_folder``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from time import monotonic

import torch
from torch import Tensor

from train.config import Run
from train.data import Batches
from train.distributed import SAVED, RankAgreement, RankMessages, World
from train.errors import DivergedError, Interrupted
from train.tracking.console import Screen
from train.tracking.run_folder import RunFolder
from train.trainer.signals import StopSignal
from train.trainer.state import State

__all__ = ["CheckpointPolicy"]

FOLLOW = 8.0
"""How long a rank waits for the first one to save. Seconds."""


class CheckpointPolicy:
    """Watches over one run's state, on one process."""

    def __init__(
        self,
        state: State,
        out: RunFolder,
        run: Run,
        *,
        world: World,
        device: torch.device,
        screen: Screen,
        stop: StopSignal,
    ) -> None:
        """All ranks together make one.

        Args:
            state: What is kept.
            out: Where; the first rank writes.
            run: Settings: how often.
            world: Place among other processes.
            device: Where the network computes.
            screen: What the user sees; its bar is removed before the process ends.
            stop: Hears signals.
        """
        self.saved = False
        """Whether a checkpoint of this run was written, or asked for."""
        self.stopping = False
        """Whether all ranks agreed that the run ends here."""
        self._state = state
        self._out = out
        self._run = run
        self._world = world
        self._screen = screen
        self._stop = stop
        self._agreement = RankAgreement(world)
        # On a GPU, the sums would have to be waited for after each step.
        self._tells_sums = world.size > 1 and device.type == "cpu"
        self._told_sums = False
        self._saved_at = monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals for the length of the block."""
        rescue = self._rescue if self._world.first else self._follow
        able = self._world.size == 1 or self._tells_sums
        with self._stop.listening(rescue if able else None, several=self._world.size > 1):
            yield
            self._agreement.settle()

    @contextmanager
    def interruptible(self, loader: Batches) -> Iterator[None]:
        """A part of the program in which no weight moves: the run may be left from it.

        Args:
            loader: The training loader, about to give what the block works on.
        """
        self._state.snapshot(loader.state_dict())
        with self._stop.interruptible():
            yield

    def ask(self) -> bool:
        """Agree with all ranks on whether to stop; returns whether a checkpoint is overdue."""
        minutes = self._run.checkpoint_minutes
        overdue = bool(minutes) and monotonic() - self._saved_at > 60 * minutes
        sums = self._state.scores.packed() if self._tells_sums else None
        stop, overdue = self._agreement.ask(self._stop.asked, overdue, numbers=sums)
        self._told_sums = self._tells_sums
        self.stopping |= stop
        return overdue

    def asked(self) -> bool:
        """As `ask`; returns whether to stop."""
        self.ask()
        return self.stopping

    def save(self, loader: Batches) -> None:
        """Have a checkpoint written; every rank takes part, the first one writes.

        Raises:
            DivergedError: A weight is no finite number.
        """
        state = self._state.gather(loader.state_dict())
        self._saved_at = monotonic()
        self.saved = True
        bad = _not_finite(state["model"])
        if bad:
            raise DivergedError(self._diverged(f"weight {bad} is no longer finite"))
        if self._world.first:
            self._out.checkpoint(self._state.at.step, state)

    def next_epoch(self) -> None:
        """Begin the next epoch's sums; all ranks do at once."""
        self._state.scores.reset()
        self._told_sums = False

    def leave_if_asked(self) -> None:
        """End the run if somebody asked for it.

        Raises:
            Interrupted: With a line of the first rank's; the others say nothing.
        """
        if self.stopping:
            self._agreement.settle()
            here = self._world.first
            raise Interrupted(self._out.farewell(self._state.at.step) if here else "")

    def finite(self, loss: float) -> float:
        """Return ``loss``.

        Raises:
            DivergedError: It is no finite number.
        """
        if not isfinite(loss):
            raise DivergedError(self._diverged(f"loss is {loss}"))
        return loss

    def _rescue(self) -> str | None:
        """Save the last whole step's state from another thread, the main one deep in the next.

        Returns:
            None where another rank is gone: the main thread will say so.
        """
        if self._told_sums:
            try:
                scores = self._state.scores.unpacked(self._agreement.sums())
            except RuntimeError:
                return None
        else:  # Alone, or before the first step of an epoch, this rank's are all there is.
            scores = self._state.scores.state_dict(World())
        state = self._state.snapshot_state(scores)
        step = int(state["position"]["step"])
        if not _not_finite(state["model"]):
            self._out.checkpoint(step, state)
        self._screen.end()
        line = self._out.farewell(step)
        if notes := RankMessages.of(self._world):
            notes.leave(SAVED)
        return line

    def _follow(self) -> str | None:
        """Leave when the first rank has saved; where nobody told it to, it asks at the step's end.

        Returns:
            None where this rank must go on.
        """
        with suppress(RuntimeError):  # The first one is gone; perhaps it saved.
            self._agreement.sums()
        notes = RankMessages.of(self._world)
        return "" if notes and notes.wait(SAVED, FOLLOW) else None

    def _diverged(self, found: str) -> str:
        newest = self._out.newest()
        stands = f"{newest} is the last good state" if newest else "no checkpoint was written yet"
        return (
            f"{self._out.out}: step {self._state.at.step}: {found}; expected finite numbers; "
            f"lower --lr (now {self._state.lr.value:g}) or --clip; {stands}"
        )


def _not_finite(weights: dict[str, Tensor]) -> str:
    """Name of a weight that is no finite number; empty if all are."""
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return ""
