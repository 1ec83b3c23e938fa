"""When the resolution changes, how the weights move, and when the learning rate falls.

Pure bookkeeping: stages are numbers made from numbers; optimisers and ``LearningRate`` are torch's
own, set up as the settings say. No file, no model, no device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.config import Optim

__all__ = ["LearningRate", "Stage", "load_optimizer", "make_optimizer", "plan", "stage_of"]


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


class LearningRate:
    """The learning rate over a run.

    ``plateau`` multiplies it by ``factor`` after ``patience`` epochs without a lower loss. Losses
    at two resolutions do not compare, so a new stage forgets the best one and keeps the rate.
    Every rank must pass the same loss, or their rates part.
    """

    def __init__(self, optimizer: Optimizer, optim: Optim) -> None:
        self._optimizer = optimizer
        self._plateau = (
            ReduceLROnPlateau(optimizer, factor=optim.factor, patience=optim.patience)
            if optim.schedule == "plateau"
            else None
        )

    @property
    def value(self) -> float:
        """The rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def after_epoch(self, loss: float) -> None:
        """Account for an epoch that ended with ``loss`` on the watched split."""
        if self._plateau is not None:
            self._plateau.step(loss)

    def new_stage(self) -> None:
        """Forget losses of another resolution."""
        if self._plateau is not None:
            self._plateau.best = self._plateau.mode_worse
            self._plateau.num_bad_epochs = 0
            self._plateau.cooldown_counter = 0

    def state_dict(self) -> dict[str, Any]:
        """What decides when the rate falls next; numbers and lists."""
        return {} if self._plateau is None else dict(self._plateau.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the schedule that gave ``state``."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)
