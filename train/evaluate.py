"""Judging a network on a split, while it trains or afterwards.

Reads weights and checkpoints back into a network; trains nothing and writes nothing.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.blocks import Prediction
from model.losses import TARGETS, Criterion
from model.registry import check_resolution, create
from train import checkpoint
from train.batch import Batch
from train.config import Config, Loss
from train.distributed import World
from train.errors import CheckpointError, ConfigError, DataError
from train.metrics import Scores
from train.panels import ROLES, Rows
from train.settings import from_text
from train.source import Shards, Source
from train.step import EvalStep, precision_of

__all__ = [
    "MakeModel",
    "Trained",
    "common_targets",
    "criterion_of",
    "evaluate",
    "judge",
    "judge_shards",
    "load_trained",
    "pick_device",
    "place",
    "targets_of",
    "weights_metadata",
]

MakeModel = Callable[[str], nn.Module]
"""Name of an architecture → a network with fresh weights."""


class Trained(NamedTuple):
    """A network with its weights and what it needs to be used."""

    path: Path
    """File that the weights came from."""

    model: nn.Module
    """In evaluation mode, on the CPU."""

    criterion: Criterion
    """Turns raw outputs into mask and depth, and judges them."""

    res: int
    """Resolution that it was trained at last. Pixels."""

    mean: dict[str, list[float]]
    """Per channel, for ``bg`` and ``fg_bg``: normalise inputs by it."""

    std: dict[str, list[float]]
    """As ``mean``."""

    config: Config
    """Settings of its run."""

    step: int
    """Optimiser steps behind it."""

    targets: tuple[str, ...] = TARGETS
    """Of mask and depth, what it was trained to say."""

    background: bool = True
    """Whether it looks at the background; if not, it sees a mean image, whatever it is given."""


def pick_device(name: str, world: World) -> torch.device:
    """The device that a setting means for this process.

    Raises:
        ConfigError: A GPU was asked for, and torch sees none, or not that one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no GPU here; use --device cpu")
    index = name.partition(":")[2] or str(world.local_rank)
    if not index.isdecimal() or int(index) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(index))


def place(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a network to where and how it computes; returns the same object."""
    model.to(device)
    if channels_last:
        # torch's annotations lack what its documentation has.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def criterion_of(loss: Loss, targets: tuple[str, ...] = TARGETS) -> Criterion:
    """The criterion that the settings describe, for the targets that there is truth for.

    Raises:
        ConfigError: The settings give none of them a weight.
    """
    for name in targets:
        if len(targets) == 1 and not getattr(loss, f"{name}_weight"):
            raise ConfigError(f"--{name}-weight 0: the data has no other target; give it a weight")
    return Criterion(
        targets=targets,
        kind=loss.loss,
        activation=loss.activation,
        dice_weight=loss.dice_weight,
        l1_weight=loss.l1_weight,
        mask_weight=loss.mask_weight,
        depth_weight=loss.depth_weight,
    )


def evaluate(
    step: EvalStep,
    batches: Iterable[Batch],
    scores: Scores,
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


def targets_of(roles: frozenset[str]) -> tuple[str, ...]:
    """Of mask and depth, those that a data set has."""
    return tuple(target for target in TARGETS if target in roles)


def common_targets(trained: Trained, source: Source) -> tuple[str, ...]:
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


def judge(
    trained: Trained,
    source: Source,
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
        ``{name: value}`` for every name in ``train.metrics.FIGURES`` that both the network and the
        data set know, and ``samples``.

    Raises:
        DataError: The data set has no such split, or nothing to judge by.
    """
    if source.samples(split) == 0:
        raise DataError(f"split {split!r}: has no samples here; judge on another with --split")
    world = world or World()
    model = place(trained.model, device, channels_last=channels_last)
    targets = common_targets(trained, source)
    criterion = replace(trained.criterion, targets=targets)
    step = EvalStep(model.eval(), criterion, precision_of(precision, device))
    scores = Scores(device, targets)
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
    """`judge` from what stands on a command line; ``res`` None is the last it was trained at.

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
    source = Shards(shards, world=world, device=where, threads=threads, res=size)
    return judge(trained, source, split=split, res=size, batch=batch, device=where)


def weights_metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """What goes into a file of weights beside them, so that it can be used alone.

    Args:
        about: ``config`` (TOML), ``res``, ``step``, ``mean``, ``std``, ``roles``.
    """
    return {"shardline": json.dumps(dict(about))}


def load_trained(path: str | Path, *, make_model: MakeModel = create) -> Trained:
    """The network of a run, a file of weights, or a checkpoint.

    Args:
        path: A run's folder (its best weights, or else its last), or a file that it left.
        make_model: Makes the architecture that the file names.

    Raises:
        CheckpointError: Nothing there, damaged, or weights of another network.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("best.safetensors", "last.safetensors")]
        file = next((name for name in found if name.is_file()), None)
        if file is None:
            raise CheckpointError(f"{path}: no best.safetensors or last.safetensors; train first")
        path = file
    tensors, metadata = checkpoint.load(path)
    if "state" in metadata:
        state = checkpoint.read(path).state
        about, tensors = state["about"], state.get("average", state["model"])
    elif "shardline" in metadata:
        about = json.loads(metadata["shardline"])
    else:
        raise CheckpointError(f"{path}: not written by `train run`; expected weights that were")
    config = from_text(about["config"], where=str(path))
    model = make_model(config.network.model)
    _load_weights(model, tensors, path)
    roles = frozenset(about.get("roles", ROLES))
    if "bg" not in roles:
        model.register_forward_pre_hook(_without_background)
    targets = targets_of(roles)
    return Trained(
        path=path,
        model=model.eval(),
        criterion=criterion_of(config.loss, targets),
        targets=targets,
        background="bg" in roles,
        res=about["res"],
        mean=about["mean"],
        std=about["std"],
        config=config,
        step=about["step"],
    )


def _load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a network, or say that the weights are another's."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: weights do not fit the network it names; the program that wrote it had "
            f"another one ({' '.join(str(error).split())[:200]})"
        ) from error


def _without_background(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a network sees that was trained without backgrounds: zeros, the normalised mean."""
    (images,) = inputs
    fg_bg = images[:, images.shape[1] // 2 :]
    return (torch.cat((torch.zeros_like(fg_bg), fg_bg), dim=1),)


def _rows(batch: Batch, prediction: Prediction, most: int) -> Rows:
    """The first ``most`` samples, copied to the CPU."""
    inputs = Batch(*(part[:most].float().cpu() for part in batch))
    return Rows(inputs, prediction.mask[:most].cpu(), prediction.depth[:most].cpu())
