"""One step of training or of evaluation: batches in, results out.

Nothing is read back from the device, logged or saved here, so a GPU's queue never drains.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.blocks import Prediction
from model.deep_supervision import Scales, coarse_loss
from model.losses import Criterion, LossParts
from shardify.loader.batch import Batch
from train.optim.compute import Precision

__all__ = ["EvalStep", "StepResult", "TrainStep"]


class StepResult(NamedTuple):
    """What a step found out; tensors stay on the device, without a graph."""

    parts: LossParts
    """Loss of the batch: float32 scalars."""

    prediction: Prediction
    """Mask and depth (B, 1, R, R) in [0, 1], float32."""


class EvalStep:
    """Prediction and loss without a gradient."""

    def __init__(self, model: nn.Module, criterion: Criterion, precision: Precision) -> None:
        self._model = model
        self._criterion = criterion
        self._precision = precision
        self._largest: dict[int, int] = {}
        """Of each resolution, the most samples that a batch had so far."""

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> StepResult:
        """Evaluate one batch of at least one sample, the network in evaluation mode."""
        count, res = batch.mask.shape[0], batch.mask.shape[-1]
        largest = self._largest[res] = max(count, self._largest.get(res, 0))
        # Finding a split's one short batch the fastest algorithms takes longer than computing it.
        with _without_search() if count < largest else nullcontext():
            raw = _forward(self._model, batch, self._precision)
        assert not isinstance(raw, Scales)  # Heads are for training alone.
        parts = self._criterion(raw, batch.mask, batch.depth)
        return StepResult(parts, self._criterion.activate(raw))


class TrainStep:
    """Prediction, loss, gradient, clipping and one step of the optimiser."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: Optimizer,
        *,
        precision: Precision,
        clip: float,
        clip_by: str,
        supervision: float = 0.0,
    ) -> None:
        """Hold what a step works on.

        Args:
            model: Takes (B, 6, R, R), returns raw outputs, perhaps at several scales.
            criterion: Turns raw outputs and targets into a loss.
            optimizer: Over the model's parameters.
            precision: From `precision_of`; fp16 scales the loss.
            clip: Largest norm or value of the gradient; 0 clips nothing.
            clip_by: norm or value.
            supervision: Weight of the losses at coarser scales, where the network has them.
        """
        self._model = model
        self._criterion = criterion
        self._optimizer = optimizer
        self._precision = precision
        self._clip = clip
        self._clip_by = clip_by
        self._supervision = supervision
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(
            self._parameters[0].device.type, enabled=precision.name == "fp16"
        )

    def __call__(self, batches: Sequence[Batch]) -> list[StepResult]:
        """Make one step of the optimiser, the network in training mode.

        Args:
            batches: Of equal size; the step follows the mean of their losses.

        Returns:
            A result for each batch.
        """
        results = self.gradients(batches)
        self.move()
        return results

    def gradients(self, batches: Sequence[Batch]) -> list[StepResult]:
        """The first part of a step: no weight moves, only batch norm's statistics.

        Args:
            batches: As for the whole step.

        Returns:
            A result for each batch.
        """
        self._optimizer.zero_grad(set_to_none=True)
        results = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            # Gradients travel between ranks once a step, with the last batch.
            silent = None if last else getattr(self._model, "no_sync", None)
            with silent() if silent else nullcontext():
                results.append(self.gradient(batch, share=1 / len(batches)))
        return results

    def move(self) -> None:
        """The second part of a step: clip the gradients, and follow them."""
        if self._clip:
            self.scaler.unscale_(self._optimizer)
            if self._clip_by == "norm":
                nn.utils.clip_grad_norm_(self._parameters, self._clip)
            else:
                nn.utils.clip_grad_value_(self._parameters, self._clip)
        self.scaler.step(self._optimizer)
        self.scaler.update()

    def gradient(self, batch: Batch, *, share: float = 1.0) -> StepResult:
        """Add the gradient of ``share`` times a batch's loss; the weights stay."""
        raw = _forward(self._model, batch, self._precision)
        coarse: list[Prediction] = []
        if isinstance(raw, Scales):
            raw, coarse = raw
        parts = self._criterion(raw, batch.mask, batch.depth)
        loss = parts.total
        if coarse:
            more = coarse_loss(self._criterion, coarse, batch.mask, batch.depth)
            loss = loss + self._supervision * more
        loss = loss if share == 1 else loss * share
        torch.autograd.backward(self.scaler.scale(loss))
        with torch.no_grad():
            prediction = self._criterion.activate(Prediction(*(each.detach() for each in raw)))
        return StepResult(LossParts(*(part.detach() for part in parts)), prediction)

    def forget(self) -> None:
        """Drop all gradients, and the memory they take."""
        self._optimizer.zero_grad(set_to_none=True)


@contextmanager
def _without_search() -> Iterator[None]:
    """Take the algorithms that cuDNN expects to be fast, without trying which are."""
    search = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = search


def _forward(model: nn.Module, batch: Batch, precision: Precision) -> Prediction | Scales:
    """Raw outputs; both images of a sample stacked to six channels."""
    images: Tensor = torch.cat((batch.bg, batch.fg_bg), dim=1)
    with torch.autocast(images.device.type, precision.dtype, enabled=precision.name != "fp32"):
        return cast(Prediction | Scales, model(images))
