"""How good a network is on a split: one accumulator, summed on the device, read back once.

Mask: a pixel is object where its probability is above 0.5; IoU, Dice, precision and recall are of
all pixels of the split together, so a large object weighs more than a small one. Depth: MAE and
RMSE over all pixels, in units of the full range; AbsRel and δ<1.25 leave out pixels whose true
depth is 0, where a ratio to it does not exist.

Every state is a sum, so ranks join by addition and a pass can stop and go on. Nothing is logged.
"""

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import BinaryStatScores

from model.losses import TARGETS
from shardify.loader.batch import Batch
from train.distributed import World
from train.optim.step import StepResult

__all__ = ["FIGURES", "AbsoluteRelativeError", "DepthAccuracy", "Metrics", "SampleMean", "describe"]

FIGURES = {
    "loss": "total loss",
    "loss_mask": "loss of the mask, unweighted",
    "loss_depth": "loss of the depth, unweighted",
    "mask_iou": "intersection over union",
    "mask_dice": "Dice overlap (F1)",
    "mask_precision": "predicted object pixels that are object",
    "mask_recall": "object pixels that were found",
    "depth_mae": "mean absolute error",
    "depth_rmse": "root of the mean squared error",
    "depth_absrel": "mean of |error| / true depth, where that is not 0",
    "depth_delta1": "share of pixels within a factor 1.25, where the true depth is not 0",
}
"""What `Metrics.compute` returns, in the order it is shown."""


def describe(figures: Mapping[str, float]) -> str:
    """A line for every figure: its name, its value, what it is."""
    lines = [
        f"{name:16}{figures[name]:10.4f}  {what}"
        for name, what in FIGURES.items()
        if name in figures
    ]
    if "samples" in figures:
        lines.append(f"{'samples':16}{int(figures['samples']):10d}")
    return "\n".join(lines)


class AbsoluteRelativeError(Metric):
    """Mean of ``|pred - target| / target`` over pixels whose target is above 0.

    Source: Eigen et al. 2014, Depth Map Prediction from a Single Image, section 4.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: float tensors of one shape, in [0, 1]."""
        known = target > 0
        relative = (preds - target).abs() / torch.where(known, target, 1)
        self.total += torch.where(known, relative, 0).sum(dtype=torch.float64)
        self.count += known.sum()

    def compute(self) -> Tensor:
        """Float64 scalar, at least 0; NaN when no pixel has a depth."""
        return self.total / self.count


class DepthAccuracy(Metric):
    """Share of pixels with ``max(pred/target, target/pred) < threshold``, where target is above 0.

    Source: Eigen et al. 2014, Depth Map Prediction from a Single Image, section 4.
    """

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    count: Tensor

    def __init__(self, threshold: float = 1.25, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = threshold
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: float tensors of one shape, in [0, 1]."""
        # Products, not quotients: a prediction of 0 is a miss, and nothing is divided by it.
        near = (preds < self.threshold * target) & (target < self.threshold * preds)
        self.hits += (near & (target > 0)).sum()
        self.count += (target > 0).sum()

    def compute(self) -> Tensor:
        """Float scalar in [0, 1]; NaN when no pixel has a depth."""
        return self.hits / self.count


class SampleMean(Metric):
    """Mean of per-batch means, each weighted by its number of samples.

    ``torchmetrics.MeanMetric`` either looks for NaN, which waits for the device, or (release 1.9,
    ``nan_strategy="disable"``) drops the weights.
    """

    higher_is_better = None
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, samples: int) -> None:
        """Add the mean ``value`` (scalar) of ``samples`` samples."""
        self.total += value.double() * samples
        self.count += samples

    def compute(self) -> Tensor:
        """Float64 scalar; NaN without samples."""
        return self.total / self.count


class Metrics:
    """Every figure of ``FIGURES`` for one pass over a split, of what there is truth for."""

    def __init__(self, device: torch.device, targets: tuple[str, ...] = TARGETS) -> None:
        """Begin at 0.

        Args:
            device: Where the sums lie.
            targets: Of mask and depth, what is counted; the other's figures do not exist.
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
            if all(kind in targets or kind not in name for kind in TARGETS)
        }
        for metric in self._metrics.values():
            metric.set_dtype(torch.float64)
        self.reset()

    @torch.no_grad()
    def update(self, result: StepResult, batch: Batch) -> None:
        """Add a batch; one without samples adds nothing."""
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
            for name in ("depth_mae", "depth_rmse", "depth_absrel", "depth_delta1"):
                add[name](depth, truth)

    def compute(self, world: World) -> dict[str, float]:
        """All figures over all ranks; waits for the device. NaN where nothing was counted."""
        reduced = Metrics(next(iter(self._states().values())).device, self._targets)
        reduced.load_state_dict(self.state_dict(world))
        values: dict[str, float] = {}
        with warnings.catch_warnings():
            # Restored sums are as good as updated ones; torchmetrics only counts the latter.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            for name, metric in reduced._metrics.items():
                if name == "mask":
                    values |= _overlaps(metric.compute())
                else:
                    values[name] = float(metric.compute())
        return {name: values[name] for name in FIGURES if name in values}

    def reset(self) -> None:
        """Forget everything: a new pass begins."""
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """The sums over all ranks, copied; any one rank that loads them stands for all."""
        if world.size == 1:
            return {name: state.detach().clone() for name, state in self._states().items()}
        return self.unpacked(world.sum_(self.packed()))

    def packed(self) -> Tensor:
        """This rank's sums as one message: (n,) float64, which counts pixels exactly to 2^53."""
        return torch.cat([state.detach().double().reshape(-1) for state in self._states().values()])

    def unpacked(self, packed: Tensor) -> dict[str, Tensor]:
        """As `state_dict`, from such messages' sum."""
        states: dict[str, Tensor] = {}
        first = 0
        for name, state in self._states().items():
            part = packed[first : first + state.numel()]
            states[name] = part.reshape(state.shape).to(state.device, state.dtype)
            first += state.numel()
        return states

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Go on from the sums that `state_dict` gave, on whatever device they lie."""
        for name, own in self._states().items():
            metric, _, key = name.partition(".")
            setattr(self._metrics[metric], key, states[name].detach().clone().to(own.device))

    def _states(self) -> dict[str, Tensor]:
        """Every sum, by name."""
        return {
            f"{name}.{key}": cast(Tensor, state)
            for name, metric in self._metrics.items()
            for key, state in metric.metric_state.items()
        }


def _overlaps(counts: Tensor) -> dict[str, float]:
    """IoU, Dice, precision and recall from true and false positives and negatives."""
    hit, false, _, missed, _ = counts.flatten().tolist()
    return {
        "mask_iou": _ratio(hit, hit + false + missed),
        "mask_dice": _ratio(2 * hit, 2 * hit + false + missed),
        "mask_precision": _ratio(hit, hit + false),
        "mask_recall": _ratio(hit, hit + missed),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
