"""Accumulate the metrics of a split on the device.

Mask: a pixel is object if its probability is above 0.5. IoU, Dice, precision and recall are
computed over all pixels of the split, so large objects weigh more than small ones. Depth: MAE and
RMSE over all pixels, in units of the full range; AbsRel and δ<1.25 leave out pixels whose true
depth is 0, because they divide by it. All four leave out pixels without a valid depth.

All states are sums, so ranks are combined by addition and a pass can be resumed.
"""

import warnings
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import BinaryStatScores

from model.losses import TARGETS
from shardify.loader.batch import Batch
from train.distributed import World
from train.optim.step import StepResult

FIGURES = {
    "loss": "total loss",
    "loss_mask": "mask loss, unweighted",
    "loss_depth": "depth loss, unweighted",
    "mask_iou": "intersection over union",
    "mask_dice": "Dice overlap (F1)",
    "mask_precision": "share of predicted object pixels that are object",
    "mask_recall": "share of object pixels that were predicted",
    "depth_mae": "mean absolute error",
    "depth_rmse": "root mean squared error",
    "depth_absrel": "mean of |error| / true depth, where that is not 0",
    "depth_delta1": "share of pixels within a factor 1.25, where the true depth is not 0",
}
"""Metrics of `Metrics.compute` in the order of display: name → description."""


def describe(figures: Mapping[str, float]) -> str:
    """Format one line per metric: name, value, description."""
    lines = [
        f"{name:16}{figures[name]:10.4f}  {description}"
        for name, description in FIGURES.items()
        if name in figures
    ]
    if "samples" in figures:
        lines.append(f"{'samples':16}{int(figures['samples']):10d}")
    return "\n".join(lines)


class _Mean(Metric):
    """A sum of values by a sum of weights; NaN without any."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return a float64 scalar."""
        return self.total / self.count


class AbsoluteRelativeError(_Mean):
    """Mean of ``|pred - target| / target`` over pixels whose target is above 0.

    Source: Eigen et al. 2014, Depth Map Prediction from a Single Image, section 4.
    """

    higher_is_better = False

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: float tensors of one shape, in [0, 1]."""
        known = target > 0
        relative = (preds - target).abs() / torch.where(known, target, 1)
        self.total += torch.where(known, relative, 0).sum(dtype=torch.float64)
        self.count += known.sum()


class DepthAccuracy(Metric):
    """Share of pixels with ``max(pred/target, target/pred) < threshold``, where target is above 0.

    Source: Eigen et al. 2014, Depth Map Prediction from a Single Image, section 4.
    """

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    count: Tensor

    def __init__(self, threshold: float = 1.25) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: float tensors of one shape, in [0, 1]."""
        # Products instead of quotients: a prediction of 0 is a miss, without a division by 0.
        near = (preds < self.threshold * target) & (target < self.threshold * preds)
        self.hits += (near & (target > 0)).sum()
        self.count += (target > 0).sum()

    def compute(self) -> Tensor:
        """Return a float scalar in [0, 1]; NaN if no pixel has a depth."""
        return self.hits / self.count


class SampleMean(_Mean):
    """Mean of per-batch means, each weighted by its number of samples.

    ``torchmetrics.MeanMetric`` either checks for NaN, which waits for the device, or (release 1.9,
    ``nan_strategy="disable"``) ignores the weights.
    """

    higher_is_better = None

    def update(self, value: Tensor, samples: int) -> None:
        """Add the mean ``value`` (scalar) of ``samples`` samples."""
        self.total += value.double() * samples
        self.count += samples


class Metrics:
    """Accumulates the metrics of ``FIGURES`` over one pass of a split."""

    def __init__(self, device: torch.device, targets: tuple[str, ...] = TARGETS) -> None:
        """Start with empty sums.

        Metrics of a target that is not in ``targets`` are left out.
        """
        self._targets = targets
        self._metrics: dict[str, Metric] = {
            name: metric.to(device)
            for name, metric in (
                ("loss", SampleMean()),
                ("loss_mask", SampleMean()),
                ("loss_depth", SampleMean()),
                ("mask", BinaryStatScores(validate_args=False)),
                ("depth_mae", MeanAbsoluteError()),
                ("depth_rmse", MeanSquaredError(squared=False)),
                ("depth_absrel", AbsoluteRelativeError()),
                ("depth_delta1", DepthAccuracy()),
            )
            if all(target in targets or target not in name for target in TARGETS)
        }
        for metric in self._metrics.values():
            metric.set_dtype(torch.float64)
        self.reset()

    @torch.no_grad()
    def update(self, result: StepResult, batch: Batch) -> None:
        """Add a batch; a batch without samples is ignored."""
        samples = batch.mask.shape[0]
        if samples == 0:
            return
        add = {name: metric.update for name, metric in self._metrics.items()}
        add["loss"](result.parts.total, samples)
        if "mask" in self._targets:
            add["loss_mask"](result.parts.mask, samples)
            add["mask"]((result.prediction.mask > 0.5).long(), (batch.mask > 0.5).long())
        if "depth" in self._targets:
            add["loss_depth"](result.parts.depth, samples)
            depth, truth = result.prediction.depth.float(), batch.depth.float()
            valid = batch.valid.get("depth")
            if valid is not None:
                # Where the depth is invalid, no error, and 0, which two of the figures leave out;
                # choosing pixels would wait for the device.
                truth = torch.where(valid, truth, 0)
                depth = torch.where(valid, depth, truth)
            for name in ("depth_mae", "depth_rmse", "depth_absrel", "depth_delta1"):
                add[name](depth, truth)
            if valid is not None:
                for name in ("depth_mae", "depth_rmse"):
                    cast(Tensor, self._metrics[name].total).sub_((~valid).sum())

    def compute(self, world: World) -> dict[str, float]:
        """Compute the metrics over all ranks (waits for the device). NaN if there are none."""
        reduced = Metrics(next(iter(self._states().values())).device, self._targets)
        reduced.load_state_dict(self.state_dict(world))
        values: dict[str, float] = {}
        with warnings.catch_warnings():
            # torchmetrics warns, because it counts updates only; these sums were restored.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            for name, metric in reduced._metrics.items():
                if name == "mask":
                    values |= _overlaps(metric.compute())
                else:
                    values[name] = float(metric.compute())
        return {name: values[name] for name in FIGURES if name in values}

    def reset(self) -> None:
        """Set all sums to 0, for a new pass."""
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """Return copies of the sums over all ranks; only one rank may load them."""
        if world.size == 1:
            return {name: state.detach().clone() for name, state in self._states().items()}
        return self.unpacked(world.sum_(self.packed()))

    def packed(self) -> Tensor:
        """Return this rank's sums as one tensor: (n,) float64, exact for counts up to 2^53."""
        return torch.cat([state.detach().double().reshape(-1) for state in self._states().values()])

    def unpacked(self, packed: Tensor) -> dict[str, Tensor]:
        """Split a sum of `packed` tensors into the form of `state_dict`."""
        states: dict[str, Tensor] = {}
        first = 0
        for name, state in self._states().items():
            part = packed[first : first + state.numel()]
            states[name] = part.reshape(state.shape).to(state.device, state.dtype)
            first += state.numel()
        return states

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Restore the sums of `state_dict`, which may be on another device."""
        for name, own in self._states().items():
            metric, _, key = name.partition(".")
            setattr(self._metrics[metric], key, states[name].detach().clone().to(own.device))

    def _states(self) -> dict[str, Tensor]:
        """Return all sums by name, ``metric.state``."""
        return {
            f"{name}.{key}": cast(Tensor, state)
            for name, metric in self._metrics.items()
            for key, state in metric.metric_state.items()
        }


def _overlaps(counts: Tensor) -> dict[str, float]:
    """Compute IoU, Dice, precision and recall from torchmetrics' confusion counts."""
    hit, false, _, missed, _ = counts.flatten().tolist()
    return {
        "mask_iou": _ratio(hit, hit + false + missed),
        "mask_dice": _ratio(2 * hit, 2 * hit + false + missed),
        "mask_precision": _ratio(hit, hit + false),
        "mask_recall": _ratio(hit, hit + missed),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
