"""Create the optimiser and compute the learning rate of each step."""

from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.config import Optim
from train.errors import ConfigError

ONECYCLE_WARMUP = 0.3
"""Default length of the rise in a one-cycle schedule. Share of the run."""

ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 250_000
"""First and last rate of a one-cycle schedule. Shares of the highest."""


def make_optimizer(parameters: list[Tensor], optim: Optim) -> Optimizer:
    """Create the optimiser of the settings, with fused steps."""
    options: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": True}
    if optim.optimizer == "adamw":
        return AdamW(parameters, **options)
    return SGD(parameters, momentum=optim.momentum, **options)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore the state of an optimiser.

    Checkpoints do not keep memory formats, but torch's fused steps need the same one for weights
    and momenta: each momentum is converted to that of its weight.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def begin_momenta(optimizer: Optimizer) -> None:
    """Give parameters of SGD that were frozen a momentum of zero, the value before a first step.

    torch's fused step needs the momenta of all parameters or of none.
    """
    if not isinstance(optimizer, SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def rate(schedule: str, step: int, *, total: int, warmup: int) -> float:
    """Return the learning rate of one step as a share of the highest.

    cosine falls from 1 to 0 along half a cosine. onecycle rises from 1/25 to 1 and falls to
    1/250,000, both along half a cosine; momentum is constant.

    Args:
        schedule: plateau, constant, cosine or onecycle; for the first two, only the warm-up.
        step: Optimiser step, from 0.
        total: Steps of the whole run; later steps have the rate of the last one.
        warmup: Steps in which the rate rises linearly; onecycle: along half a cosine, and 0 means
            30 % of the run.

    Source: Loshchilov and Hutter 2017, SGDR; Smith and Topin 2018, Super-Convergence.
    """
    if schedule == "onecycle":
        rise = warmup or max(1, round(ONECYCLE_WARMUP * total))
        if step < rise:
            return ONECYCLE_START + (1 - ONECYCLE_START) * _half_cosine(step / rise)
        return 1 - (1 - ONECYCLE_END) * _half_cosine(
            min(1.0, (step - rise) / max(1, total - 1 - rise))
        )
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return 1 - _half_cosine(min(1.0, (step - warmup) / max(1, total - warmup)))
    return 1.0


class LearningRate:
    """Sets the learning rate of an optimiser over a run.

    ``plateau`` multiplies the rate by ``factor`` after ``patience`` epochs without a lower loss.
    Losses of different resolutions cannot be compared, so a new stage keeps the rate and resets
    the best loss. Every rank must pass the same loss, else their rates differ. The other schedules
    depend on the step only.
    """

    def __init__(self, optimizer: Optimizer, optim: Optim) -> None:
        self._optimizer = optimizer
        self._optim = optim
        self._schedule = optim.schedule
        self._warmup = optim.warmup
        self._base = optim.lr
        self._total = 0
        self._plateau = (
            ReduceLROnPlateau(optimizer, factor=optim.factor, patience=optim.patience)
            if optim.schedule == "plateau"
            else None
        )

    @property
    def value(self) -> float:
        """Rate of the last step; before the first step, the rate of the settings."""
        return float(self._optimizer.param_groups[0]["lr"])

    def set_total_steps(self, total: int, *, shortened: bool = False) -> int:
        """Set the number of steps of the whole run; ``shortened`` if early stopping reduced it.

        Returns:
            The previous number if it differs and the schedule depends on it; else 0.

        Raises:
            ConfigError: The warm-up takes the whole run, which is not ``shortened``.
        """
        if self._schedule not in ("cosine", "onecycle"):
            return 0
        if self._warmup >= total and not shortened:
            raise ConfigError(
                f"--warmup {self._warmup}: the run has {total} steps; expected a shorter warm-up"
            )
        before, self._total = self._total, total
        return before if before != total else 0

    def before_step(self, step: int) -> None:
        """Set the rate of optimiser step ``step``, counted over the whole run from 0."""
        share = rate(self._schedule, step, total=self._total, warmup=self._warmup)
        self._set(self._base * share)

    def after_epoch(self, loss: float) -> None:
        """Update the plateau schedule with the ``loss`` of an epoch."""
        if self._plateau is not None:
            self._set(self._base)
            self._plateau.step(loss)
            self._base = self.value

    def new_stage(self) -> None:
        """Reset the best loss: losses of another resolution cannot be compared."""
        if self._plateau is not None:
            self._plateau.best = self._plateau.mode_worse
            self._plateau.num_bad_epochs = 0
            self._plateau.cooldown_counter = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state that determines later rates; numbers and lists."""
        if self._plateau is not None:
            return {**self._plateau.state_dict(), "base": self._base}
        return {"total": self._total} if self._total else {}

    def load_state_dict(self, state: dict[str, Any], before: Optim | None = None) -> None:
        """Restore the state; the optimiser must be restored first.

        ``before`` are the settings of the state, if they may differ: a new ``lr`` replaces the
        current rate, and a new schedule starts without a state, at the same step.
        """
        optim = self._optim
        before = before or optim
        if before.schedule != optim.schedule:
            return
        if self._plateau is not None:
            state = dict(state)
            # Checkpoints from before the warm-up setting have no "base".
            base = state.pop("base", self.value)
            self._base = base if before.lr == optim.lr else optim.lr
            self._plateau.load_state_dict(state)
            self._plateau.factor, self._plateau.patience = optim.factor, optim.patience
        self._total = state.get("total", 0)

    def _set(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value


def _half_cosine(share: float) -> float:
    """Map ``share`` in [0, 1] to [0, 1] along half a cosine."""
    return (1 - cos(pi * share)) / 2
