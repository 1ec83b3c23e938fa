"""Everything that decides how a run goes on: made, gathered for a checkpoint, and taken up again.

A run is its position, the weights, the optimiser, the learning rate, the loader's place and the
sums of the epoch so far; one that is rebuilt from them goes on bit for bit. While a step computes
gradients, nothing of it moves but batch norm's statistics: `mark` notes them before, so that
`rescued` can tell the state as of the last whole step at any moment. This module trains nothing and
writes nothing.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from model.registry import MakeModel
from shardify.errors import DataError
from train.config import Config
from train.data import Dataset
from train.distributed import World
from train.evaluation.metrics import Metrics
from train.optim.compute import precision_of
from train.optim.criterion import criterion_of, targets_of
from train.optim.optimizer import LearningRate, load_optimizer, make_optimizer
from train.optim.step import EvalStep, TrainStep
from train.optim.wrapped_model import WrappedModel
from train.settings import to_toml
from train.tracking.image_panels import ROLES
from train.trainer.progress import Position

__all__ = ["State"]


class State:
    """One run's state, on one process."""

    def __init__(
        self,
        config: Config,
        source: Dataset,
        *,
        world: World,
        device: torch.device,
        make_model: MakeModel,
    ) -> None:
        """Begin at step 0, with weights drawn from torch's global generator.

        Args:
            config: What is asked for.
            source: The data.
            world: Place among other processes, which are connected already.
            device: Where to compute.
            make_model: Makes the network that the settings name.

        Raises:
            ConfigError: The network or the device cannot do what is asked for.
        """
        self._config = config
        self._source = source
        self._world = world
        self.at = Position()
        self.res = config.data.res[-1]
        """Resolution that the weights were trained at last. Pixels."""
        self.networks = WrappedModel(
            config,
            world=world,
            device=device,
            make_model=make_model,
            targets=targets_of(source.roles),
        )
        self.optimizer = make_optimizer(self.networks.parameters, config.optim)
        self.lr = LearningRate(self.optimizer, config.optim)
        targets = targets_of(source.roles)
        criterion = criterion_of(config.loss, targets)
        precision = precision_of(config.compute.precision, device)
        self.train_step = TrainStep(
            self.networks.training,
            criterion,
            self.optimizer,
            precision=precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            supervision=config.loss.deep_supervision,
        )
        self.eval_step = EvalStep(self.networks.judged, criterion, precision)
        self.scores = Metrics(device, targets)
        """Sums of the epoch's training so far, of this rank."""
        names = {name for name, _ in self.networks.model.named_buffers()}
        self._moving = {
            name: (tensor, tensor.clone())
            for name, tensor in self.networks.model.state_dict().items()
            if name in names
        }
        self._marked: dict[str, Any] = {}

    def about(self) -> dict[str, Any]:
        """What somebody who uses the weights must know."""
        return {
            "config": to_toml(self._config),
            "res": self.res,
            "step": self.at.step,
            "mean": self._source.mean,
            "std": self._source.std,
            "data": self._source.fingerprint,
            "roles": sorted(self._source.roles),
        }

    def gather(self, loader: dict[str, Any]) -> dict[str, Any]:
        """The whole state; all ranks take part.

        Args:
            loader: State of the training loader.
        """
        return self._whole(asdict(self.at), loader, torch.get_rng_state(), self.scores_of_all())

    def scores_of_all(self) -> dict[str, Tensor]:
        """The sums over all ranks; all take part."""
        return self.scores.state_dict(self._world)

    @torch.no_grad()
    def snapshot(self, loader: dict[str, Any]) -> None:
        """Note what moves before the weights do: called when a step is whole, before the next."""
        for kind in (True, False):
            pairs = [p for p in self._moving.values() if p[0].is_floating_point() == kind]
            if pairs:
                torch._foreach_copy_([kept for _, kept in pairs], [moving for moving, _ in pairs])
        self._marked = {
            "position": asdict(self.at),
            "loader": loader,
            "random": torch.get_rng_state(),
        }

    def snapshot_state(self, scores: dict[str, Tensor]) -> dict[str, Any]:
        """The whole state as of the last `mark`, while no weight moves; any thread may ask.

        Args:
            scores: The sums over all ranks.
        """
        marked = self._marked
        state = self._whole(marked["position"], marked["loader"], marked["random"], scores)
        state["model"] = {
            name: self._moving[name][1] if name in self._moving else tensor
            for name, tensor in state["model"].items()
        }
        return state

    def load(self, state: dict[str, Any], where: object) -> dict[str, Any] | None:
        """Take up the run that `state` described.

        Args:
            state: From a checkpoint.
            where: The run's folder, for an error.

        Returns:
            State of the training loader within its epoch; None at an epoch's beginning or end.

        Raises:
            DataError: It was trained on other data.
        """
        about = state["about"]
        roles = set(about.get("roles", ROLES))
        if about["data"] != self._source.fingerprint or roles != self._source.roles:
            raise DataError(
                f"{where}: was trained on other data than {self._config.data.shards} holds now, or "
                "split otherwise; go on with the data it was started on, or start a new run with "
                "another --out"
            )
        self.at = Position(**state["position"])
        self.networks.load_state_dict(state)
        load_optimizer(self.optimizer, state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        self.lr.load_state_dict(state["lr"])
        if state["loader"]["epoch"] > self.at.epoch:
            self.at.trained = True  # Saved after its last batch, before that was known.
        if self._world.first:  # Sums over all ranks: one of them goes on with them.
            self.scores.load_state_dict(state["scores"])
        torch.set_rng_state(state["random"])
        # Whole epochs may have ended at another resolution, whose shards may be others.
        return state["loader"] if state["loader"]["consumed"] else None

    def _whole(
        self,
        position: dict[str, Any],
        loader: dict[str, Any],
        random: Tensor,
        scores: dict[str, Tensor],
    ) -> dict[str, Any]:
        return {
            "position": position,
            **self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
            "lr": self.lr.state_dict(),
            "loader": loader,
            "scores": scores,
            "random": random,
            "about": {**self.about(), "step": position["step"]},
        }
