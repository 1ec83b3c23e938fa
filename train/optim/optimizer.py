"""When the resolution changes, how the weights move, and how large each step is.

Pure bookkeeping: stages and rates are numbers made from numbers; optimisers are torch's own, set up
as the settings say. No file, no model, no device.
"""

from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.config import Optim
from train.errors import ConfigError

__all__ = [
    "LearningRate",
    "load_optimizer",
    "make_optimizer",
    "rate",
]

RISE = 0.3
"""Share of a one-cycle run in which its rate rises."""

START, END = 1 / 25, 1 / 250_000
"""Where a one-cycle rate begins and ends. Shares of its peak."""


def make_optimizer(parameters: list[Tensor], optim: Optim) -> Optimizer:
    """The optimiser that the settings describe, all of a step in one pass over the weights."""
    options: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": True}
    if optim.optimizer == "adamw":
        return AdamW(parameters, **options)
    return SGD(parameters, momentum=optim.momentum, **options)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Go on as the optimiser that gave ``state``.

    A file keeps no memory format, and torch's fused steps walk weights and momenta in memory
    order: every momentum is laid out as its weight is.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def rate(schedule: str, step: int, *, total: int, warmup: int) -> float:
    """The rate of one step, as a share of the highest.

    cosine falls from 1 to 0 along half a cosine. onecycle rises from 1/25 to 1 and falls to
    1/250,000, both along half a cosine; it is the whole rate that cycles: momentum stays.

    Args:
        schedule: plateau, constant, cosine or onecycle; of the first two, only the warm-up.
        step: From 0.
        total: Steps of the whole run; after them, the last one's rate stays.
        warmup: Steps in which the rate rises, in a straight line; onecycle: 0 means 30 % of them.

    Source: Loshchilov and Hutter 2017, SGDR; Smith and Topin 2018, Super-Convergence.
    """
    if schedule == "onecycle":
        rise = warmup or max(1, round(RISE * total))
        if step < rise:
            return START + (1 - START) * _eased(step / rise)
        return 1 - (1 - END) * _eased(min(1.0, (step - rise) / max(1, total - 1 - rise)))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return 1 - _eased(min(1.0, (step - warmup) / max(1, total - warmup)))
    return 1.0


class LearningRate:
    """The learning rate over a run.

    ``plateau`` multiplies it by ``factor`` after ``patience`` epochs without a lower loss. Losses
    at two resolutions do not compare, so a new stage forgets the best one and keeps the rate.
    Every rank must pass the same loss, or their rates part. The other schedules are functions of
    the step alone: a run that goes on needs no state of theirs.
    """

    def __init__(self, optimizer: Optimizer, optim: Optim) -> None:
        self._optimizer = optimizer
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
        """The rate of the last step; before the first, the one that was asked for."""
        return float(self._optimizer.param_groups[0]["lr"])

    def over(self, total: int) -> int:
        """Say how many steps the whole run has.

        Returns:
            The number that it had before, where the rates to come are others for it; else 0.

        Raises:
            ConfigError: The warm-up takes all of them.
        """
        if self._schedule not in ("cosine", "onecycle"):
            return 0
        if self._warmup >= total:
            raise ConfigError(
                f"--warmup {self._warmup}: the run has {total} steps; expected fewer of warm-up"
            )
        before, self._total = self._total, total
        return before if before != total else 0

    def before_step(self, step: int) -> None:
        """Set the rate of optimiser step ``step``, counted over the whole run from 0."""
        share = rate(self._schedule, step, total=self._total, warmup=self._warmup)
        self._set(self._base * share)

    def after_epoch(self, loss: float) -> None:
        """Account for an epoch that ended with ``loss`` on the watched split."""
        if self._plateau is not None:
            self._set(self._base)
            self._plateau.step(loss)
            self._base = self.value

    def new_stage(self) -> None:
        """Forget losses of another resolution."""
        if self._plateau is not None:
            self._plateau.best = self._plateau.mode_worse
            self._plateau.num_bad_epochs = 0
            self._plateau.cooldown_counter = 0

    def state_dict(self) -> dict[str, Any]:
        """What decides the rates to come; numbers and lists."""
        if self._plateau is not None:
            return {**self._plateau.state_dict(), "base": self._base}
        return {"total": self._total} if self._total else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the schedule that gave ``state``, the optimiser loaded before."""
        if self._plateau is not None:
            state = dict(state)
            # A state without it is of a time without warm-up.
            self._base = state.pop("base", self.value)
            self._plateau.load_state_dict(state)
        self._total = state.get("total", 0)

    def _set(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value


def _eased(share: float) -> float:
    """From 0 to 1 as ``share`` does, along half a cosine."""
    return (1 - cos(pi * share)) / 2
