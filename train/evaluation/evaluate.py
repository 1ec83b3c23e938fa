"""Evaluate a network on a split, during training or afterwards."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from model.registry import check_resolution
from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.resolution import ResolutionLike, resolution
from train.checkpoint.trained_model import Trained, load_trained
from train.data import Dataset, ShardDataset
from train.distributed import World
from train.errors import ConfigError
from train.evaluation.metrics import Metrics
from train.optim.compute import choose_precision, move_model, pick_device
from train.optim.step import EvalStep
from train.tracking.image_panels import ROLES, Rows, first_rows, join_rows


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

    The network must be in evaluation mode. ``stop`` is called before each batch; True ends the pass
    early.

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
            depth, mask = result.prediction
            kept.append(first_rows(batch, mask, depth, wanted))
            wanted -= kept[-1].mask.shape[0]
    return join_rows(kept, roles)


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
    res: ResolutionLike,
    batch: int,
    device: torch.device,
) -> dict[str, float]:
    """Compute all metrics of a trained network on a split.

    Returns:
        ``{name: value}`` for each metric of ``train.evaluation.metrics.FIGURES`` whose target both
        the network and the data set have, and ``samples``.

    Raises:
        DataError: The split has no samples, or there is no common target.
    """
    if source.samples(split) == 0:
        raise DataError(f"split {split!r}: has no samples; choose another --split")
    model = move_model(trained.model, device, channels_last=True)
    targets = common_targets(trained, source)
    criterion = replace(trained.criterion, targets=targets)
    step = EvalStep(model.eval(), criterion, choose_precision("auto", device))
    scores = Metrics(device, targets)
    loader = source.open(split, res=res, batch=batch, augment=False, seed=0)
    try:
        evaluate(step, loader, scores)
    finally:
        loader.close()
    return {**scores.compute(World()), "samples": source.samples(split)}


def _depth_difference(trained: Trained, source: Dataset) -> str:
    """Return how the depth of a data set differs from that of the training data; else empty."""
    own, other = trained.formats.get("depth"), source.formats.get("depth")
    if not (own and other and own.scale and other.scale):
        return ""
    if (own.unit, 2**own.bits / own.scale) == (other.unit, 2**other.bits / other.scale):
        return ""
    return (
        f"depth has {other.bits} bits, {other.step_text}; the network's training data had "
        f"{own.bits} bits, {own.step_text}: depth errors say little"
    )


def evaluate_shards(
    path: Path,
    *,
    shards: str,
    res: ResolutionLike | None,
    split: str,
    batch: int,
    device: str,
    threads: int,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Load a network and a data set, and call `evaluate_split`.

    ``res`` None: the last resolution of the training. Pixels. ``warn`` receives a line if the data
    set's statistics are not those that the network was trained with.

    Raises:
        TrainError: The network, the resolution or the device cannot be used.
        ShardifyError: The data set or the split cannot be used.
    """
    world = World()
    chosen = pick_device(device, world)
    trained = load_trained(path)
    size = resolution(res or trained.res)
    try:
        check_resolution(*size)
    except ValueError as error:
        raise ConfigError(f"--res {size}: {error}") from error
    source = ShardDataset(
        folder=Path(shards),
        world=world,
        device=chosen,
        threads=threads,
        res=size,
        trained=trained.stats,
    )
    if source.other_stats:
        warn(f"{shards}: {source.other_stats}")
    if difference := _depth_difference(trained, source):
        warn(f"{shards}: {difference}")
    return evaluate_split(trained, source, split=split, res=size, batch=batch, device=chosen)
