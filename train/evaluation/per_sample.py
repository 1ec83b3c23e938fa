"""Compute the metrics of every sample of a split; keep the images of the worst ones."""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import torch

from train.checkpoint.trained_model import Trained
from train.data import Batches
from train.optim.compute import choose_precision, move_model
from train.optim.step import EvalStep
from train.tracking.image_panels import ROLES, Rows, first_rows, join_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMetrics:
    """Metrics of one sample."""

    key: str
    area: float
    """Share of object pixels, in [0, 1]."""

    hit: float
    """True positives. Pixels."""

    false: float
    """False positives. Pixels."""

    missed: float
    """False negatives. Pixels."""

    rmse: float
    """RMSE of the depth over its valid pixels, as a share of the full range, in [0, 1]; NaN if
    there are none."""

    @property
    def iou(self) -> float:
        """Intersection over union; 1 if there is no object and none was predicted."""
        union = self.hit + self.false + self.missed
        return self.hit / union if union else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeGroup:
    """Metrics of the samples with objects of similar size."""

    low: float
    """Smallest object. Share of the image."""

    high: float
    """Largest object. Share of the image."""

    samples: int
    iou: float
    """Intersection over union of all their pixels."""

    precision: float
    recall: float
    rmse: float
    """Mean of the depth RMSE of the samples that have a valid depth; NaN without any."""


def evaluate_samples(
    trained: Trained,
    loader: Batches,
    *,
    device: torch.device,
    worst: int,
    roles: frozenset[str] = ROLES,
) -> tuple[list[SampleMetrics], Rows | None, list[SampleMetrics]]:
    """Compute the metrics of every sample in one pass of a loader.

    Args:
        trained: The network.
        loader: A split without augmentation, opened for a single rank.
        device: Device of the network.
        worst: Number of samples to keep for a panel: those with the lowest IoU, and among equals
            the largest depth error.
        roles: Roles of the data set; a target that it or the network lacks counts as correct.

    Returns:
        The metrics of all samples in the order of the loader; the worst samples for a panel, worst
        first; and their metrics.
    """
    model = move_model(trained.model, device, channels_last=True).eval()
    targets = [target for target in trained.targets if target in roles]
    step = EvalStep(model, trained.criterion, choose_precision("auto", device))
    results: list[SampleMetrics] = []
    # The heap's root is the best of the worst samples: the next one to be replaced.
    heap: list[tuple[tuple[float, float], int, SampleMetrics, Rows]] = []
    epoch = loader.state_dict()["epoch"]
    count = itertools.count()
    for number, batch in enumerate(loader):
        if batch.mask.shape[0] == 0:
            continue
        mask, depth = (part.float() for part in step(batch).prediction[::-1])
        mask = mask if "mask" in targets else torch.zeros_like(mask)
        depth = depth if "depth" in targets else batch.depth.float()
        predicted, true = mask > 0.5, batch.mask > 0.5
        sums = [
            plane.flatten(1).double().mean(1)
            for plane in (true, predicted & true, predicted & ~true, ~predicted & true)
        ]
        valid = batch.valid.get("depth", torch.ones_like(batch.depth, dtype=torch.bool))
        squares = torch.where(valid, depth - batch.depth, 0).square().flatten(1).double().sum(1)
        sums.append((squares / valid.flatten(1).sum(1)).sqrt())
        pixels = mask[0].numel()
        keys = loader.keys(loader.samples_of(epoch, number))
        for row, (key, values) in enumerate(
            zip(keys, zip(*_to_cpu(sums), strict=True), strict=True)
        ):
            area, hit, false, missed, rmse = values
            metrics = SampleMetrics(
                key=key,
                area=area,
                hit=hit * pixels,
                false=false * pixels,
                missed=missed * pixels,
                rmse=rmse,
            )
            results.append(metrics)
            # NaN has no order.
            badness = (-metrics.iou, 0.0 if isnan(metrics.rmse) else metrics.rmse)
            if len(heap) < worst or (heap and badness > heap[0][0]):
                rows = first_rows(batch, mask, depth, 1, first=row)
                push = heapq.heappush if len(heap) < worst else heapq.heapreplace
                push(heap, (badness, next(count), metrics, rows))
    kept = sorted(heap, reverse=True)
    panel = join_rows([rows for *_, rows in kept], roles & {"bg", "fg_bg", *targets})
    return results, panel, [metrics for _, _, metrics, _ in kept]


def _to_cpu(sums: Sequence[torch.Tensor]) -> list[list[float]]:
    """Copy all sums of a batch to the CPU in one transfer."""
    values: list[list[float]] = torch.stack(list(sums)).tolist()
    return values


def group_by_size(metrics: Sequence[SampleMetrics]) -> list[SizeGroup]:
    """Group samples by object size into four groups of equal number, smallest objects first.

    Samples without an object are left out.
    """
    ordered = sorted((one for one in metrics if one.area > 0), key=lambda one: one.area)
    groups = [ordered[len(ordered) * i // 4 : len(ordered) * (i + 1) // 4] for i in range(4)]
    return [_size_group(group) for group in groups if group]


def _size_group(group: Sequence[SampleMetrics]) -> SizeGroup:
    rmses = [one.rmse for one in group if not isnan(one.rmse)]
    hit, false, missed = (
        sum(getattr(one, name) for one in group) for name in ("hit", "false", "missed")
    )
    return SizeGroup(
        low=group[0].area,
        high=group[-1].area,
        samples=len(group),
        iou=hit / (hit + false + missed),
        precision=hit / (hit + false) if hit + false else 0.0,
        recall=hit / (hit + missed),
        rmse=sum(rmses) / len(rmses) if rmses else nan,
    )
