"""Evaluate a network on a split, during training or afterwards."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from model.blocks import Prediction
from model.registry import check_resolution
from shardify.errors import DataError
from shardify.loader.batch import Batch
from train.checkpoint.trained_model import Trained, load_trained
from train.data import Dataset, ShardDataset
from train.distributed import World
from train.errors import ConfigError
from train.evaluation.metrics import Metrics
from train.optim.compute import choose_precision, move_model, pick_device
from train.optim.step import EvalStep
from train.tracking.image_panels import ROLES, Rows


def evaluate(
    step: EvalStep,
    batches: Iterable[Batch],
    scores: Metrics,
    *,
    rows: int = 0,
    roles: frozenset[str] = ROLES,
    stop: Callable[[], bool] = lambda: False,
) -> Rows | None:
    """Evaluate every batch and add the results to ``scores``.

    Args:
        step: Evaluates a batch; its network must be in evaluation mode.
        batches: One pass over a split.
        scores: Accumulates the metrics.
        rows: Number of samples to keep for a panel.
        roles: Roles of the data set.
        stop: Called before each batch; True ends the pass early.

    Returns:
        The first ``rows`` samples and their predictions, on the CPU; None if there are none.
    """
    kept: list[Rows] = []
    wanted = rows
    for batch in batches:
        if stop():
            break
        if batch.mask.shape[0] == 0:
            continue
        result = step(batch)
        scores.update(result, batch)
        if wanted > 0:
            kept.append(_first_rows(batch, result.prediction, wanted))
            wanted -= kept[-1].mask.shape[0]
    if not kept:
        return None
    return Rows(
        Batch(*(torch.cat(parts) for parts in zip(*(row.batch for row in kept), strict=True))),
        torch.cat([row.mask for row in kept]),
        torch.cat([row.depth for row in kept]),
        roles,
    )


def common_targets(trained: Trained, source: Dataset) -> tuple[str, ...]:
    """Return the targets that the network predicts and the data set has.

    Raises:
        DataError: There are none.
    """
    common = tuple(target for target in trained.targets if target in source.roles)
    if not common:
        raise DataError(
            f"{trained.path}: was trained for {' and '.join(trained.targets)}, which this data set "
            "lacks; use a data set that has it"
        )
    return common


def evaluate_split(
    trained: Trained,
    source: Dataset,
    *,
    split: str,
    res: int,
    batch: int,
    device: torch.device,
    precision: str = "auto",
    channels_last: bool = True,
    world: World | None = None,
) -> dict[str, float]:
    """Compute all metrics of a trained network on a split.

    Args:
        trained: From `load_trained`.
        source: The data set.
        split: train or val; both without augmentation.
        res: Resolution. Pixels.
        batch: Batch size. Samples.
        device: Device of the network.
        precision: Setting ``precision``.
        channels_last: Setting ``channels_last``.
        world: Rank of this process.

    Returns:
        ``{name: value}`` for each metric of ``train.evaluation.metrics.FIGURES`` whose target both
        the network and the data set have, and ``samples``.

    Raises:
        DataError: The split has no samples, or there is no common target.
    """
    if source.samples(split) == 0:
        raise DataError(f"split {split!r}: has no samples; choose another --split")
    world = world or World()
    model = move_model(trained.model, device, channels_last=channels_last)
    targets = common_targets(trained, source)
    criterion = replace(trained.criterion, targets=targets)
    step = EvalStep(model.eval(), criterion, choose_precision(precision, device))
    scores = Metrics(device, targets)
    loader = source.open(split, res=res, batch=batch, augment=False, seed=0)
    try:
        evaluate(step, loader, scores)
    finally:
        loader.close()
    return {**scores.compute(world), "samples": source.samples(split)}


def evaluate_shards(
    path: Path,
    *,
    shards: str,
    res: int | None,
    split: str,
    batch: int,
    device: str,
    threads: int,
) -> dict[str, float]:
    """Load a network and a data set, and call `evaluate_split`.

    ``res`` None: the last resolution of the training. Pixels.

    Raises:
        TrainError: The network, the resolution or the device cannot be used.
        ShardifyError: The data set or the split cannot be used.
    """
    trained = load_trained(path)
    size = res or trained.res
    try:
        check_resolution(size)
    except ValueError as error:
        raise ConfigError(f"--res {size}: {error}") from error
    world = World()
    chosen = pick_device(device, world)
    source = ShardDataset(shards, world=world, device=chosen, threads=threads, res=size)
    return evaluate_split(trained, source, split=split, res=size, batch=batch, device=chosen)


def _first_rows(batch: Batch, prediction: Prediction, count: int) -> Rows:
    """Copy the first ``count`` samples to the CPU."""
    inputs = Batch(*(part[:count].float().cpu() for part in batch))
    return Rows(inputs, prediction.mask[:count].cpu(), prediction.depth[:count].cpu())
