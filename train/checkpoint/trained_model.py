"""Load a trained network from a run, a weights file or a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.losses import TARGETS, Criterion
from model.registry import MakeModel, create
from shardify.loader.batch import ROLES, RoleStats
from shardify.resolution import Resolution, is_resolution, resolution
from train.checkpoint import checkpoint_file
from train.config import Config
from train.data import TargetFormat
from train.errors import CheckpointError
from train.optim.criterion import available_targets, make_criterion
from train.settings import from_text


class Trained(NamedTuple):
    """A trained network and all that is needed to use it."""

    path: Path
    model: nn.Module
    """The network, in evaluation mode, on the CPU."""

    criterion: Criterion
    """Activates raw outputs and computes the loss."""

    res: Resolution
    """Last resolution of the training. Pixels."""

    mean: dict[str, list[float]]
    """Mean per channel of ``bg`` and ``fg_bg``, to normalise inputs."""

    std: dict[str, list[float]]
    """Standard deviation, like ``mean``."""

    config: Config
    step: int
    targets: tuple[str, ...] = TARGETS
    """Targets of the training: mask, depth or both."""

    background: bool = True
    """Whether the background is used; if not, it is replaced by zeros (the normalised mean)."""

    formats: Mapping[str, TargetFormat] = MappingProxyType({})
    """How the training data stored ``depth``; empty if not known, as of older weights."""

    @property
    def stats(self) -> RoleStats:
        """Mean and standard deviation of ``bg`` and ``fg_bg``, as `Loader` takes them."""
        return {role: (mean, self.std[role]) for role, mean in self.mean.items()}


def weights_metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a weights file, so that the file can be used alone.

    ``about`` has ``config`` (TOML), ``res``, ``step``, ``mean``, ``std``, ``roles`` and ``formats``
    (of `TargetFormat`, as dictionaries).
    """
    return {"shardline": json.dumps(dict(about))}


def find_weights(run: Path) -> Path | None:
    """Return the best weights of a run's folder, or else the last; None if there are none."""
    files = (run / name for name in ("best.safetensors", "last.safetensors"))
    return next((file for file in files if file.is_file()), None)


class Weights(NamedTuple):
    """The weights in a file, and what is known about them."""

    path: Path
    tensors: dict[str, Tensor]
    """Averaged weights, if the run averaged them."""

    about: dict[str, Any]
    """As for `weights_metadata`."""

    config: Config

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets of the training: mask, depth or both."""
        return available_targets(frozenset(self.about.get("roles", ROLES)))


def weights_file(path: Path) -> Path:
    """Return the weights file of a run, which is the best if there is one, or ``path`` itself.

    Raises:
        CheckpointError: ``path`` cannot be read, or is a folder without weights.
    """
    try:
        file = find_weights(path) if path.is_dir() else path
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected the folder of a run, or weights"
        ) from error
    if file is None:
        raise CheckpointError(f"{path}: has no best.safetensors or last.safetensors; train first")
    return file


def read_weights(path: Path) -> Weights:
    """Read a weights file or a checkpoint.

    Raises:
        CheckpointError: Missing, damaged, or not written by ``train run``.
    """
    tensors, metadata = checkpoint_file.load(path)
    if "state" in metadata:
        state = checkpoint_file.read(path).state
        about, tensors = state["about"], state.get("average", state["model"])
    elif "shardline" in metadata:
        about = _about(metadata["shardline"], path)
    else:
        raise CheckpointError(f"{path}: not written by `train run`; expected weights of a run")
    return Weights(path, tensors, about, from_text(about["config"], where=str(path)))


def load_trained(path: str | Path, *, make_model: MakeModel = create) -> Trained:
    """Load the network of a run, a weights file, or a checkpoint.

    From the folder of a run, the best weights are loaded, or else the last.

    Raises:
        CheckpointError: Missing, damaged, or weights of another network.
    """
    path = weights_file(Path(path))
    weights = read_weights(path)
    _, tensors, about, config = weights
    model = make_model(config.network.model)
    _load_weights(model, tensors, path)
    roles = frozenset(about.get("roles", ROLES))
    if "bg" not in roles:
        model.register_forward_pre_hook(_without_background)
    targets = weights.targets
    return Trained(
        path=path,
        model=model.eval(),
        criterion=make_criterion(config.loss, targets),
        targets=targets,
        background="bg" in roles,
        res=resolution(about["res"]),
        mean=about["mean"],
        std=about["std"],
        config=config,
        step=about["step"],
        formats={role: TargetFormat(**each) for role, each in about.get("formats", {}).items()},
    )


def _about(text: str, path: Path) -> dict[str, Any]:
    """Parse the metadata of `weights_metadata`.

    Raises:
        CheckpointError: It was not written by `weights_metadata`.
    """
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    kinds = {"config": str, "step": int, "mean": dict, "std": dict}
    wrong = ["JSON object"] if not isinstance(about, dict) else []
    if not wrong:
        wrong += [name for name, kind in kinds.items() if type(about.get(name)) is not kind]
        wrong += [
            name
            for name in ("mean", "std")
            if name not in wrong
            and not all(_is_rgb(about[name].get(role)) for role in ("bg", "fg_bg"))
        ]
        wrong += [] if is_resolution(about.get("res")) else ["res"]
        roles = about.get("roles", list(ROLES))
        if not isinstance(roles, list) or not set(TARGETS) & {str(role) for role in roles}:
            wrong.append("roles")
        formats = about.get("formats", {})
        if not isinstance(formats, dict) or not all(map(_is_format, formats.values())):
            wrong.append("formats")
    if wrong:
        raise CheckpointError(
            f"{path}: the metadata has no valid {wrong[0]}; expected weights of `train run`; "
            "use another file"
        )
    return dict(about)


def _is_rgb(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
    )


def _is_format(value: object) -> bool:
    """Return whether a JSON value has the fields of `TargetFormat`."""
    if not isinstance(value, dict) or set(value) != set(TargetFormat._fields):
        return False
    numbers = (value["scale"], value["max"], value["invalid"])
    return (
        value["bits"] in (8, 16)
        and (value["unit"] is None or isinstance(value["unit"], str))
        and all(each is None or type(each) in (int, float) for each in numbers)
    )


def _load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights into ``model``.

    Raises:
        CheckpointError: They are the weights of another network.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: weights do not fit the network of this version; use the version "
            f"that wrote it ({' '.join(str(error).split())[:200]})"
        ) from error


def _without_background(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Replace the background by zeros, the normalised mean."""
    (images,) = inputs
    fg_bg = images[:, images.shape[1] // 2 :]
    return (torch.cat((torch.zeros_like(fg_bg), fg_bg), dim=1),)
