"""Run one step of training or of evaluation.

Nothing is copied from the device here, so the CPU never waits for the GPU.
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


class StepResult(NamedTuple):
    """Loss and prediction of a batch; tensors on the device, detached."""

    parts: LossParts
    """Loss of the batch: float32 scalars."""

    prediction: Prediction
    """Mask and depth (B, 1, H, W) in [0, 1], float32."""


class EvalStep:
    """Compute prediction and loss without gradients."""

    def __init__(self, model: nn.Module, criterion: Criterion, precision: torch.dtype) -> None:
        self._model = model
        self._criterion = criterion
        self._precision = precision
        self._largest: dict[tuple[int, ...], int] = {}
        """Resolution → largest batch size so far."""

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> StepResult:
        """Evaluate a batch of at least one sample; the network must be in evaluation mode."""
        count, res = batch.mask.shape[0], batch.mask.shape[2:]
        largest = self._largest[res] = max(count, self._largest.get(res, 0))
        # For the one short batch of a split, the algorithm search takes longer than computing it.
        with _without_search() if count < largest else nullcontext():
            raw = _forward(self._model, batch, self._precision)
        assert not isinstance(raw, Scales)  # Auxiliary heads exist in training only.
        parts = self._criterion(raw, batch.mask, batch.depth, batch.valid)
        return StepResult(parts, self._criterion.activate(raw))


class TrainStep:
    """Compute loss and gradients, clip them, and make one optimiser step."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        optimizer: Optimizer,
        *,
        precision: torch.dtype,
        clip: float,
        clip_by: str,
        supervision: float = 0.0,
    ) -> None:
        """Create the step.

        ``model`` takes (B, 6, H, W) and returns raw outputs, at one or several scales. ``clip`` is
        the largest norm or value (``clip_by``) of the gradient; 0: no clipping. ``supervision`` is
        the weight of the losses at coarser scales. fp16 uses loss scaling.
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
            self._parameters[0].device.type, enabled=precision == torch.float16
        )

    def __call__(self, batches: Sequence[Batch]) -> list[StepResult]:
        """Make one optimiser step; the network must be in training mode.

        ``batches`` have equal sizes; their gradients are averaged.

        Returns:
            One result per batch.
        """
        results = self.gradients(batches)
        self.update_weights()
        return results

    def gradients(self, batches: Sequence[Batch]) -> list[StepResult]:
        """Compute the gradients of a step; only the statistics of batch norms change.

        ``batches`` have equal sizes; their gradients are averaged.

        Returns:
            One result per batch.
        """
        self._optimizer.zero_grad(set_to_none=True)
        results = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            # Ranks exchange gradients once per step, with the last batch.
            no_sync = None if last else getattr(self._model, "no_sync", None)
            with no_sync() if no_sync else nullcontext():
                results.append(self.gradient(batch, share=1 / len(batches)))
        return results

    def update_weights(self) -> None:
        """Clip the gradients and update the weights."""
        if self._clip:
            self.scaler.unscale_(self._optimizer)
            if self._clip_by == "norm":
                nn.utils.clip_grad_norm_(self._parameters, self._clip)
            else:
                nn.utils.clip_grad_value_(self._parameters, self._clip)
        self.scaler.step(self._optimizer)
        self.scaler.update()

    def gradient(self, batch: Batch, *, share: float = 1.0) -> StepResult:
        """Add the gradient of ``share`` times the loss of a batch."""
        raw = _forward(self._model, batch, self._precision)
        coarse: list[Prediction] = []
        if isinstance(raw, Scales):
            raw, coarse = raw
        parts = self._criterion(raw, batch.mask, batch.depth, batch.valid)
        loss = parts.total
        if coarse:
            targets = batch.mask, batch.depth, batch.valid
            auxiliary = coarse_loss(self._criterion, coarse, *targets)
            loss = loss + self._supervision * auxiliary
        loss = loss if share == 1 else loss * share
        torch.autograd.backward(self.scaler.scale(loss))
        with torch.no_grad():
            prediction = self._criterion.activate(Prediction(*(each.detach() for each in raw)))
        return StepResult(LossParts(*(part.detach() for part in parts)), prediction)

    def replace_model(self, model: nn.Module) -> None:
        """Train ``model`` from now on, another wrapper of the same parameters."""
        self._model = model

    def clear_gradients(self) -> None:
        """Free the memory of all gradients."""
        self._optimizer.zero_grad(set_to_none=True)


@contextmanager
def _without_search() -> Iterator[None]:
    """Let cuDNN choose algorithms by heuristics, without a search."""
    search = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = search


def _forward(model: nn.Module, batch: Batch, precision: torch.dtype) -> Prediction | Scales:
    """Return raw outputs for both images of each sample, concatenated to (B, 6, H, W)."""
    images: Tensor = torch.cat((batch.bg, batch.fg_bg), dim=1)
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        return cast(Prediction | Scales, model(images))
