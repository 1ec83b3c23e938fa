"""A trained network, read back from what a run left, and where it is to compute.

Reads weights and checkpoints; trains, judges and writes nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.losses import TARGETS, Criterion
from model.registry import MakeModel, create
from shardify.loader.batch import ROLES
from train.checkpoint import checkpoint_file
from train.config import Config
from train.errors import CheckpointError
from train.optim.criterion import criterion_of, targets_of
from train.settings import from_text

__all__ = [
    "Trained",
    "load_trained",
    "weights_in",
    "weights_metadata",
]


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


def weights_metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """What goes into a file of weights beside them, so that it can be used alone.

    Args:
        about: ``config`` (TOML), ``res``, ``step``, ``mean``, ``std``, ``roles``.
    """
    return {"shardline": json.dumps(dict(about))}


def weights_in(run: Path) -> Path | None:
    """The weights to use of a run's folder: its best, or else its last; None if it has none."""
    found = (run / name for name in ("best.safetensors", "last.safetensors"))
    return next((file for file in found if file.is_file()), None)


def load_trained(path: str | Path, *, make_model: MakeModel = create) -> Trained:
    """The network of a run, a file of weights, or a checkpoint.

    Args:
        path: A run's folder (its best weights, or else its last), or a file that it left.
        make_model: Makes the architecture that the file names.

    Raises:
        CheckpointError: Nothing there, damaged, or weights of another network.
    """
    path = Path(path)
    try:
        file = weights_in(path) if path.is_dir() else path
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected a run's folder or weights"
        ) from error
    if file is None:
        raise CheckpointError(f"{path}: no best.safetensors or last.safetensors; train first")
    path = file
    tensors, metadata = checkpoint_file.load(path)
    if "state" in metadata:
        state = checkpoint_file.read(path).state
        about, tensors = state["about"], state.get("average", state["model"])
    elif "shardline" in metadata:
        about = _about(metadata["shardline"], path)
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


def _about(text: str, path: Path) -> dict[str, Any]:
    """What `weights_metadata` wrote.

    Raises:
        CheckpointError: Somebody else wrote it.
    """
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    kinds = {"config": str, "res": int, "step": int, "mean": dict, "std": dict}
    wrong = ["JSON object"] if not isinstance(about, dict) else []
    if not wrong:
        wrong += [name for name, kind in kinds.items() if type(about.get(name)) is not kind]
        wrong += [
            name
            for name in ("mean", "std")
            if name not in wrong and not all(_is_rgb(about[name].get(of)) for of in ("bg", "fg_bg"))
        ]
        roles = about.get("roles", list(ROLES))
        if not isinstance(roles, list) or not set(TARGETS) & {str(role) for role in roles}:
            wrong.append("roles")
    if wrong:
        raise CheckpointError(
            f"{path}: its metadata has no {wrong[0]} as `train run` writes it; expected weights "
            "that it left, unchanged; take another file"
        )
    return dict(about)


def _is_rgb(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
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
