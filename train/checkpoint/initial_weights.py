"""Start a network from the weights of another run (``train run --init``).

Only weights and batch norm statistics are taken over. Output heads may begin anew; any other
difference between the networks is refused.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.registry import MakeModel
from train.checkpoint.trained_model import Weights, read_weights, weights_file
from train.config import Config
from train.errors import CheckpointError, ConfigError
from train.optim.wrapped_model import unused_parameters


def locate(config: Config) -> Config:
    """Return the settings with the absolute path and the digest of the weights of ``--init``.

    Raises:
        CheckpointError: There are no weights, or their digest is not the one of the settings.
    """
    network = config.network
    if not network.init:
        return config
    path = weights_file(Path(network.init)).absolute()
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"--init {path}: cannot be read ({error.strerror}); expected a run or its weights"
        ) from error
    if network.init_sha256 not in ("", digest):
        raise CheckpointError(
            f"--init {path}: its SHA-256 digest is {digest}, but --init-sha256 says "
            f"{network.init_sha256}; restore the file, or remove --init-sha256"
        )
    return replace(config, network=replace(network, init=str(path), init_sha256=digest))


class InitialWeights:
    """Creates networks that start from the weights of ``--init``."""

    def __init__(self, config: Config, make_model: MakeModel, targets: tuple[str, ...]) -> None:
        """Read the weights.

        ``config`` is that of the new run, from `locate`; ``targets`` are those of its data.

        Raises:
            CheckpointError: The weights cannot be read.
            ConfigError: They are of another architecture.
        """
        self._make_model = make_model
        self._partial = config.network.init_partial
        self._targets = targets
        self._weights: Weights = read_weights(Path(config.network.init))
        self.begun: list[str] = []
        """Heads of the last network that began anew."""
        before, now = self._weights.config.network.model, config.network.model
        if before != now:
            raise ConfigError(
                f"--init {self._weights.path}: has the weights of a {before}, but this run trains "
                f"a {now}; use --model {before}"
            )

    def make(self, name: str) -> nn.Module:
        """Create a network; tensors that are not taken over keep new values.

        Raises:
            ConfigError: The weights do not fit.
        """
        model, path = self._make_model(name), self._weights.path
        own = model.state_dict()
        taken = {
            key: value
            for key, value in self._weights.tensors.items()
            if key in own and own[key].shape == value.shape
        }
        misfits = (own.keys() | self._weights.tensors.keys()) - taken.keys()
        others = sorted(key for key in misfits if not _head(key))
        if others:
            raise ConfigError(
                f"--init {path}: {others[0]} does not fit this network; "
                "expected weights of the same architecture, from the same version"
            )
        missing = [each for each in self._targets if each not in self._weights.targets]
        untrained = unused_parameters(model, self._weights.targets) if missing else []
        heads = sorted({_head(key) or key.split(".")[0] for key in (*misfits, *untrained)})
        problems = [f"{each} was not trained" for each in missing]
        problems += [f"{_head(key)} does not fit" for key in sorted(misfits)]
        if problems and not self._partial:
            names = f" ({', '.join(heads)})" if heads else ""
            raise ConfigError(
                f"--init {path}: {', '.join(dict.fromkeys(problems))}{names}; "
                "--init-partial begins it anew"
            )
        self.begun = heads
        _copy(own, {key: value for key, value in taken.items() if key not in untrained})
        return model


@torch.no_grad()
def _copy(own: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for key, value in values.items():
        own[key].copy_(value)


def _head(key: str) -> str:
    """Return the name of the output head that a tensor belongs to; empty if it is of none."""
    parts = key.split(".")
    ends = [i for i, part in enumerate(parts) if part.endswith("head")]
    return ".".join(parts[: ends[0] + 1]) if ends else ""
