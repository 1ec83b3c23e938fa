"""Decide when a run writes a checkpoint and when it stops (signal, time limit, non-finite loss).

All ranks decide together. If a step takes longer than the grace period after a signal, another
thread saves the state of the last completed step (see ``train.trainer.signals``).
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
from train.tracking.console import Console
from train.tracking.run_folder import RunFolder
from train.trainer.signals import StopSignal
from train.trainer.state import State

SAVE_TIMEOUT = 8.0
"""How long the other ranks wait until the first rank has saved. Seconds."""


class CheckpointPolicy:
    """Saves and stops one run on one rank."""

    def __init__(
        self,
        state: State,
        out: RunFolder,
        run: Run,
        *,
        world: World,
        device: torch.device,
        console: Console,
        stop: StopSignal,
    ) -> None:
        """Create the policy; a collective call of all ranks."""
        self.saved = False
        """Whether a checkpoint of this run was written or queued."""
        self.stopping = False
        """Whether all ranks agreed to stop."""
        self._state = state
        self._out = out
        self._run = run
        self._world = world
        self._console = console
        self._stop = stop
        self._agreement = RankAgreement(world)
        # On a GPU, reading the sums would wait for the device after each step.
        self._shares_sums = world.size > 1 and device.type == "cpu"
        self._sums_shared = False
        self._saved_at = monotonic()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle signals that end the run for the length of the block."""
        save = self._save_from_thread if self._world.first else self._wait_for_save
        can_save = self._world.size == 1 or self._shares_sums
        with self._stop.handle_signals(
            save if can_save else None, several_ranks=self._world.size > 1
        ):
            yield
            self._agreement.settle()

    @contextmanager
    def interruptible(self, loader: Batches) -> Iterator[None]:
        """Allow another thread to save and exit during the block, which must not change weights.

        ``loader`` is the training loader, before the batches of the block are taken from it.
        """
        self._state.snapshot(loader.state_dict())
        with self._stop.interruptible():
            yield

    def agree(self) -> bool:
        """Agree with all ranks on whether to stop; return whether a checkpoint is due by time."""
        minutes = self._run.checkpoint_minutes
        overdue = bool(minutes) and monotonic() - self._saved_at > 60 * minutes
        sums = self._state.scores.packed() if self._shares_sums else None
        stop, overdue = self._agreement.ask(self._stop.requested, overdue, numbers=sums)
        self._sums_shared = self._shares_sums
        self.stopping |= stop
        return overdue

    def should_stop(self) -> bool:
        """Call `agree`; return whether to stop."""
        self.agree()
        return self.stopping

    def save(self, loader: Batches) -> None:
        """Save a checkpoint; a collective call of all ranks, the first one writes.

        Raises:
            DivergedError: A weight is not finite.
        """
        state = self._state.gather(loader.state_dict())
        self._saved_at = monotonic()
        self.saved = True
        bad = _not_finite(state["model"])
        if bad:
            raise DivergedError(self._diverged(f"weight {bad} is not finite"))
        if self._world.first:
            self._out.save_checkpoint(self._state.at.step, state)

    def next_epoch(self) -> None:
        """Reset the sums for the next epoch; called by all ranks at the same point."""
        self._state.scores.reset()
        self._sums_shared = False

    def exit_if_stopping(self) -> None:
        """End the run if all ranks agreed to stop.

        Raises:
            Interrupted: The message is empty on all ranks but the first.
        """
        if self.stopping:
            self._agreement.settle()
            first = self._world.first
            raise Interrupted(self._out.stop_message(self._state.at.step) if first else "")

    def check_finite(self, loss: float) -> float:
        """Return ``loss``.

        Raises:
            DivergedError: It is not finite.
        """
        if not isfinite(loss):
            raise DivergedError(self._diverged(f"loss is {loss}"))
        return loss

    def _save_from_thread(self) -> str | None:
        """Save the state of the last completed step while the main thread computes the next.

        Returns:
            The line to print; None if another rank is gone, which the main thread will report.
        """
        if self._sums_shared:
            try:
                scores = self._state.scores.unpacked(self._agreement.sums())
            except RuntimeError:
                return None
        else:  # A single rank, or no step of this epoch yet: there are no other sums.
            scores = self._state.scores.state_dict(World())
        state = self._state.snapshot_state(scores)
        step = int(state["position"]["step"])
        if not _not_finite(state["model"]):
            self._out.save_checkpoint(step, state)
        self._console.remove_bar()
        line = self._out.stop_message(step)
        if messages := RankMessages.connect(self._world):
            messages.post(SAVED)
        return line

    def _wait_for_save(self) -> str | None:
        """Wait until the first rank has saved.

        Returns:
            An empty line to exit; None to continue, if the first rank got no signal: then all ranks
            stop at the end of the step.
        """
        with suppress(RuntimeError):  # The first rank is gone, but may have saved.
            self._agreement.sums()
        messages = RankMessages.connect(self._world)
        return "" if messages and messages.wait(SAVED, SAVE_TIMEOUT) else None

    def _diverged(self, problem: str) -> str:
        newest = self._out.newest()
        saved = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        return (
            f"{self._out.out}: step {self._state.at.step}: {problem}; expected finite numbers; "
            f"lower --lr (now {self._state.lr.value:g}) or --clip; {saved}"
        )


def _not_finite(weights: dict[str, Tensor]) -> str:
    """Return the name of a weight that is not finite; empty if all are."""
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return ""
