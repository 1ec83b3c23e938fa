"""The state of a run: create it, gather it for a checkpoint, and restore it.

The state is the position, weights, optimiser, learning rate, loader position and the sums of the
current epoch; a restored run continues bit for bit. While a step computes gradients, only the
statistics of batch norms change. `State.snapshot` copies them before, so that
`State.snapshot_state` can return the state of the last completed step at any time.
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
from train.optim.compute import choose_precision
from train.optim.criterion import available_targets, make_criterion
from train.optim.optimizer import LearningRate, begin_momenta, load_optimizer, make_optimizer
from train.optim.step import EvalStep, TrainStep
from train.optim.wrapped_model import WrappedModel
from train.settings import from_text, to_toml
from train.tracking.image_panels import ROLES
from train.trainer.progress import Position


class State:
    """State of one run on one rank."""

    def __init__(
        self,
        config: Config,
        source: Dataset,
        *,
        world: World,
        device: torch.device,
        make_model: MakeModel,
    ) -> None:
        """Create the state at step 0; torch's global generator draws the initial weights.

        Raises:
            ConfigError: The network or the device does not support a setting.
        """
        self._config = config
        self._source = source
        self._world = world
        self.at = Position()
        self.res = config.data.res[-1]
        """Last resolution of the training. Pixels."""
        self.networks = WrappedModel(
            config,
            world=world,
            device=device,
            make_model=make_model,
            targets=available_targets(source.roles),
        )
        self.optimizer = make_optimizer(self.networks.parameters, config.optim)
        self.lr = LearningRate(self.optimizer, config.optim)
        targets = available_targets(source.roles)
        criterion = make_criterion(config.loss, targets)
        precision = choose_precision(config.compute.precision, device)
        self.train_step = TrainStep(
            self.networks.training,
            criterion,
            self.optimizer,
            precision=precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            supervision=config.loss.deep_supervision,
        )
        self.eval_step = EvalStep(self.networks.evaluated, criterion, precision)
        self.scores = Metrics(device, targets)
        """Training metrics of the current epoch, on this rank."""
        names = {name for name, _ in self.networks.model.named_buffers()}
        self._buffers = {
            name: (tensor, tensor.clone())
            for name, tensor in self.networks.model.state_dict().items()
            if name in names
        }
        self._snapshot: dict[str, Any] = {}

    def enter_stage(self, number: int) -> None:
        """Unfreeze what is trained from stage ``number`` on, counted from 1."""
        # The step must not keep the old wrapper, which is replaced.
        self.train_step.replace_model(self.networks.model)
        if self.networks.enter_stage(number):
            begin_momenta(self.optimizer)
        self.train_step.replace_model(self.networks.training)

    def about(self) -> dict[str, Any]:
        """Return the metadata that is needed to use the weights."""
        return {
            "config": to_toml(self._config),
            "res": self.res.to_json(),
            "step": self.at.step,
            "mean": self._source.mean,
            "std": self._source.std,
            "data": self._source.fingerprint,
            "roles": sorted(self._source.roles),
            "formats": {role: each._asdict() for role, each in self._source.formats.items()},
        }

    def gather(self, loader: dict[str, Any]) -> dict[str, Any]:
        """Return the whole state; a collective call of all ranks."""
        return self._assemble(asdict(self.at), loader, torch.get_rng_state(), self.summed_scores())

    def summed_scores(self) -> dict[str, Tensor]:
        """Return the sums over all ranks; a collective call."""
        return self.scores.state_dict(self._world)

    @torch.no_grad()
    def snapshot(self, loader: dict[str, Any]) -> None:
        """Copy all that changes before the weights; called between two steps."""
        for floating in (True, False):
            pairs = [p for p in self._buffers.values() if p[0].is_floating_point() == floating]
            if pairs:
                torch._foreach_copy_([copy for _, copy in pairs], [buffer for buffer, _ in pairs])
        self._snapshot = {
            "position": asdict(self.at),
            "loader": loader,
            "random": torch.get_rng_state(),
        }

    def snapshot_state(self, scores: dict[str, Tensor]) -> dict[str, Any]:
        """Return the state at the last `snapshot`, from any thread; the weights must not change.

        ``scores`` are the sums over all ranks.
        """
        copied = self._snapshot
        state = self._assemble(copied["position"], copied["loader"], copied["random"], scores)
        state["model"] = {
            name: self._buffers[name][1] if name in self._buffers else tensor
            for name, tensor in state["model"].items()
        }
        return state

    def load(self, state: dict[str, Any], where: object) -> dict[str, Any] | None:
        """Restore the state of a checkpoint.

        Returns:
            State of the training loader within its epoch; None at the beginning or end of one.

        Raises:
            DataError: The checkpoint was trained on other data.
        """
        about = state["about"]
        roles = set(about.get("roles", ROLES))
        if about["data"] != self._source.fingerprint or roles != self._source.roles:
            raise DataError(
                f"{where}: was trained on other data, or another split, than that in "
                f"{self._config.data.shards}; resume with the original data, or start a new run "
                "with another --out"
            )
        self.at = Position(**state["position"])
        self.networks.load_state_dict(state)
        load_optimizer(self.optimizer, state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        before = from_text(about["config"], where=str(where)).optim
        self.lr.load_state_dict(state["lr"], before)
        if state["loader"]["epoch"] > self.at.epoch:
            self.at.trained = (
                True  # Saved after the last batch, before the epoch was marked as trained.
            )
        if self._world.first:  # These are the sums over all ranks, so only one rank loads them.
            self.scores.load_state_dict(state["scores"])
        torch.set_rng_state(state["random"])
        # After a whole epoch, the next one may use another resolution with other shards.
        return state["loader"] if state["loader"]["consumed"] else None

    def _assemble(
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
