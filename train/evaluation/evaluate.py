"""Judging a network on a split, while it trains or afterwards.

Trains nothing, reads no file but a network's and writes none.
"""

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
from train.optim.compute import move_model, pick_device, precision_of
from train.optim.step import EvalStep
from train.tracking.image_panels import ROLES, Rows

__all__ = [
    "common_targets",
    "evaluate",
    "evaluate_split",
    "judge_shards",
    "load_trained",
    "pick_device",
]


def evaluate(
    step: EvalStep,
    batches: Iterable[Batch],
    scores: Metrics,
    *,
    rows: int = 0,
    roles: frozenset[str] = ROLES,
    stop: Callable[[], bool] = lambda: False,
) -> Rows | None:
    """Add every batch to ``scores``.

    Args:
        step: The network, in evaluation mode.
        batches: One pass over a split.
        scores: Where figures are summed.
        rows: How many of the first samples to keep for a panel.
        roles: What the data set has.
        stop: Asked before each batch; True ends the pass early.

    Returns:
        The first ``rows`` samples and their predictions, on the CPU; None if there are none.
    """
    kept: list[Rows] = []
    missing = rows
    for batch in batches:
        if stop():
            break
        if batch.mask.shape[0] == 0:
            continue
        result = step(batch)
        scores.update(result, batch)
        if missing > 0:
            kept.append(_rows(batch, result.prediction, missing))
            missing -= kept[-1].mask.shape[0]
    if not kept:
        return None
    return Rows(
        Batch(*(torch.cat(parts) for parts in zip(*(row.batch for row in kept), strict=True))),
        torch.cat([row.mask for row in kept]),
        torch.cat([row.depth for row in kept]),
        roles,
    )


def common_targets(trained: Trained, source: Dataset) -> tuple[str, ...]:
    """What a network can be judged by: what it was trained to say, and the data set has.

    Raises:
        DataError: There is nothing.
    """
    both = tuple(target for target in trained.targets if target in source.roles)
    if not both:
        raise DataError(
            f"{trained.path}: was trained for {' and '.join(trained.targets)}, which this data set "
            "lacks; judge it on one that has it"
        )
    return both


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
    """All figures of a trained network on a split.

    Args:
        trained: From `load_trained`.
        source: The data set.
        split: train or val; neither is augmented.
        res: Resolution. Pixels.
        batch: Samples a step.
        device: Where to compute.
        precision: As in the settings.
        channels_last: As in the settings.
        world: Place among other processes.

    Returns:
        ``{name: value}`` for every name in ``train.evaluation.metrics.FIGURES`` that both the
        network and the data set know, and ``samples``.

    Raises:
        DataError: The data set has no such split, or nothing to judge by.
    """
    if source.samples(split) == 0:
        raise DataError(f"split {split!r}: has no samples here; judge on another with --split")
    world = world or World()
    model = move_model(trained.model, device, channels_last=channels_last)
    targets = common_targets(trained, source)
    criterion = replace(trained.criterion, targets=targets)
    step = EvalStep(model.eval(), criterion, precision_of(precision, device))
    scores = Metrics(device, targets)
    loader = source.open(split, res=res, batch=batch, augment=False, seed=0)
    try:
        evaluate(step, loader, scores)
    finally:
        loader.close()
    return {**scores.compute(world), "samples": source.samples(split)}


def judge_shards(
    path: Path,
    *,
    shards: str,
    res: int | None,
    split: str,
    batch: int,
    device: str,
    threads: int,
) -> dict[str, float]:
    """Call `evaluate_split` as a command line says; ``res`` None is the last it was trained at.

    Raises:
        TrainError: The network, the data set, the split or the device is not what is needed.
    """
    trained = load_trained(path)
    size = res or trained.res
    try:
        check_resolution(size)
    except ValueError as error:
        raise ConfigError(f"--res {size}: {error}") from error
    world = World()
    where = pick_device(device, world)
    source = ShardDataset(shards, world=world, device=where, threads=threads, res=size)
    return evaluate_split(trained, source, split=split, res=size, batch=batch, device=where)


def _rows(batch: Batch, prediction: Prediction, most: int) -> Rows:
    """The first ``most`` samples, copied to the CPU."""
    inputs = Batch(*(part[:most].float().cpu() for part in batch))
    return Rows(inputs, prediction.mask[:most].cpu(), prediction.depth[:most].cpu())
