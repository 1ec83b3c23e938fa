"""How each sample of a split fares, the worst of them, and small objects against large ones.

One pass over the split, without augmentation; figures of every sample are kept, pictures only of
the worst. It writes nothing.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shardify.loader.batch import Batch
from train.checkpoint.trained_model import Trained
from train.data import Batches
from train.optim.compute import move_model, precision_of
from train.optim.step import EvalStep
from train.tracking.image_panels import ROLES, Rows

__all__ = ["SampleMetrics", "SizeGroup", "evaluate_samples", "group_by_size"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMetrics:
    """One sample's figures."""

    key: str
    """Its name in the shards."""

    area: float
    """Share of its pixels that are object."""

    hit: float
    """Object pixels that were found. Pixels."""

    false: float
    """Other pixels that were taken for object. Pixels."""

    missed: float
    """Object pixels that were not found. Pixels."""

    rmse: float
    """Of the depth; in [0, 1] of its full range."""

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where there is no object and none was found."""
        union = self.hit + self.false + self.missed
        return self.hit / union if union else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeGroup:
    """Samples whose objects are of similar size, counted together."""

    low: float
    """Smallest object. Share of the picture."""

    high: float
    """Largest object. Share of the picture."""

    samples: int
    """How many."""

    iou: float
    """Of all their pixels together."""

    precision: float
    """Predicted object pixels that are object."""

    recall: float
    """Object pixels that were found."""

    rmse: float
    """Mean over samples of the depth's error."""


def evaluate_samples(
    trained: Trained,
    loader: Batches,
    *,
    device: torch.device,
    precision: str,
    worst: int,
    roles: frozenset[str] = ROLES,
) -> tuple[list[SampleMetrics], Rows | None, list[SampleMetrics]]:
    """Run a network over one pass of a loader.

    Args:
        trained: The network.
        loader: A split without augmentation, as one rank sees it alone.
        device: Where to compute.
        precision: As in the settings.
        worst: How many of the samples with the lowest IoU (of equals, the largest error of the
            depth) to keep whole.
        roles: What the data set has; of a target that it or the network lacks, nothing is wrong.

    Returns:
        Every sample's figures in the loader's order; the worst samples for a panel, worst first,
        and their figures.
    """
    model = move_model(trained.model, device, channels_last=True).eval()
    targets = [target for target in trained.targets if target in roles]
    step = EvalStep(model, trained.criterion, precision_of(precision, device))
    found: list[SampleMetrics] = []
    # The heap's root is the best of the worst: the one to give way.
    heap: list[tuple[tuple[float, float], int, SampleMetrics, Rows]] = []
    epoch = loader.state_dict()["epoch"]
    count = itertools.count()
    for number, batch in enumerate(loader):
        if batch.mask.shape[0] == 0:
            continue
        mask, depth = (part.float() for part in step(batch).prediction[::-1])
        mask = mask if "mask" in targets else torch.zeros_like(mask)
        depth = depth if "depth" in targets else batch.depth.float()
        said, true = mask > 0.5, batch.mask > 0.5
        sums = [
            plane.flatten(1).double().mean(1)
            for plane in (true, said & true, said & ~true, ~said & true)
        ]
        sums.append((depth - batch.depth).square().flatten(1).double().mean(1).sqrt())
        pixels = mask[0].numel()
        keys = loader.keys(loader.samples_of(epoch, number))
        for row, (key, values) in enumerate(zip(keys, zip(*_read(sums), strict=True), strict=True)):
            area, hit, false, missed, rmse = values
            one = SampleMetrics(
                key=key,
                area=area,
                hit=hit * pixels,
                false=false * pixels,
                missed=missed * pixels,
                rmse=rmse,
            )
            found.append(one)
            badness = (-one.iou, one.rmse)
            if len(heap) < worst or (heap and badness > heap[0][0]):
                inputs = Batch(*(part[row : row + 1].float().cpu() for part in batch))
                rows = Rows(inputs, mask[row : row + 1].cpu(), depth[row : row + 1].cpu())
                push = heapq.heappush if len(heap) < worst else heapq.heapreplace
                push(heap, (badness, next(count), one, rows))
    kept = sorted(heap, reverse=True)
    if not kept:
        return found, None, []
    parts = [rows for _, _, _, rows in kept]
    whole = Rows(
        Batch(*(torch.cat(each) for each in zip(*(rows.batch for rows in parts), strict=True))),
        torch.cat([rows.mask for rows in parts]),
        torch.cat([rows.depth for rows in parts]),
        roles & {"bg", "fg_bg", *targets},
    )
    return found, whole, [one for _, _, one, _ in kept]


def _read(sums: Sequence[torch.Tensor]) -> list[list[float]]:
    """Read all figures of a batch back at once."""
    read: list[list[float]] = torch.stack(list(sums)).tolist()
    return read


def group_by_size(fares: Sequence[SampleMetrics], count: int = 4) -> list[SizeGroup]:
    """Samples by the size of their objects, in ``count`` groups of equal number, smallest first.

    Samples without any object stand in no group.
    """
    ordered = sorted((one for one in fares if one.area > 0), key=lambda one: one.area)
    groups = [
        ordered[len(ordered) * i // count : len(ordered) * (i + 1) // count] for i in range(count)
    ]
    return [_band(group) for group in groups if group]


def _band(group: Sequence[SampleMetrics]) -> SizeGroup:
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
        rmse=sum(one.rmse for one in group) / len(group),
    )
