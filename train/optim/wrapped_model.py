"""The network of a run in its several shapes: as it trains, and as it is judged and kept.

``model`` holds the weights. Training may go through heads for its coarser scales, through the
exchange of gradients between ranks and through the compiler; judging may be of averaged weights.
This module computes no loss and moves no weight.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.blocks import MULTIPLE
from model.deep_supervision import Scales, Supervised
from model.losses import TARGETS
from model.registry import MakeModel
from train.config import Config
from train.distributed import World
from train.errors import ConfigError
from train.optim.compute import move_model
from train.optim.ema import WeightAverage

__all__ = ["WrappedModel", "alone", "compiling"]


COMPILERS = ("torch._dynamo", "torch._inductor")
"""Whose errors are of compiling; everything else is of computing."""


class WrappedModel:
    """One network, and what stands around it."""

    def __init__(
        self,
        config: Config,
        *,
        world: World,
        device: torch.device,
        make_model: MakeModel,
        targets: tuple[str, ...] = TARGETS,
    ) -> None:
        """Make them, with fresh weights.

        Args:
            config: The settings of the run.
            world: Place among other processes, which are connected already.
            device: Where to compute.
            make_model: Makes the network that the settings name.
            targets: Of mask and depth, what it learns; what serves the other alone rests.

        Raises:
            ConfigError: The settings ask for what this network or this device cannot do.
        """
        self._config = config
        self._world = world
        self._device = device
        self.model = make_model(config.network.model)
        whole = self.model
        self._heads: nn.ModuleList | None = None
        if config.loss.deep_supervision:
            try:
                whole = supervised = Supervised(self.model)
            except ValueError as error:
                raise ConfigError(f"--deep-supervision: {error}") from error
            self._heads = supervised.heads
        move_model(whole, device, channels_last=config.compute.channels_last)
        if set(targets) != set(TARGETS):
            _rest(whole, targets, device)
        self.average = WeightAverage(self.model, config.optim.ema) if config.optim.ema else None
        self.parameters: list[Tensor] = [p for p in whole.parameters() if p.requires_grad]
        """All that training moves, the network's own first."""
        self.training = self._compiled(self._shared(whole))
        """The same weights as they train."""

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and kept."""
        return self.model if self.average is None else self.average.model

    def state_dict(self) -> dict[str, Any]:
        """All weights, by what they are for."""
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if self._heads is not None:
            state["heads"] = self._heads.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the weights that `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        if self._heads is not None:
            self._heads.load_state_dict(state["heads"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _shared(self, model: nn.Module) -> nn.Module:
        """The network whose gradients are averaged over all ranks; same weights as ``model``."""
        if self._world.size == 1:
            return model
        on_gpu = self._device.type == "cuda"
        if self._config.compute.sync_bn:
            if not on_gpu:
                raise ConfigError("--sync-bn: torch has it for GPUs only; expected --device cuda")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        ids = [self._device] if on_gpu else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def _compiled(self, model: nn.Module) -> nn.Module:
        """The network as it trains: compiled anew when a size is seen for the first time."""
        how = self._config.compute.compile
        if how == "no":
            return model
        if how == "graphs" and self._device.type != "cuda":
            raise ConfigError(
                "--compile graphs: only GPUs have CUDA graphs; "
                "expected --device cuda, or --compile yes"
            )
        if how == "graphs" and (self._config.optim.grad_accum > 1 or self._world.size > 1):
            # A second replay writes over the gradients that the first one left.
            raise ConfigError(
                "--compile graphs: one GPU and one batch a step only; "
                "expected --grad-accum 1 without torchrun, or --compile yes"
            )
        mode = "reduce-overhead" if how == "graphs" else "default"
        return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


def alone(config: Config, world: World) -> list[str]:
    """A line for whoever asked for what a single rank cannot do, and need not."""
    if config.compute.sync_bn and world.size == 1:
        return ["--sync-bn: does nothing here: it takes several ranks (torchrun), and this is one"]
    return []


@contextmanager
def compiling(how: str) -> Iterator[None]:
    """Where a network may be compiled, for it is called.

    Raises:
        ConfigError: It cannot be compiled here: there is no compiler, as a rule.
    """
    try:
        yield
    except Exception as error:
        if how == "no" or not type(error).__module__.startswith(COMPILERS):
            raise
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ConfigError(
            f"--compile {how}: this machine cannot compile the network ({reason}); install a C++ "
            "compiler (g++), or go on with --resume --compile no"
        ) from error


def _rest(model: nn.Module, targets: tuple[str, ...], device: torch.device) -> None:
    """Leave alone what serves none of ``targets``: ranks would wait for its gradients for ever."""
    training = model.training
    raw = model.eval()(torch.zeros(1, 6, MULTIPLE, MULTIPLE, device=device))
    model.train(training)
    said = [raw.prediction, *raw.coarse] if isinstance(raw, Scales) else [raw]
    outputs = [getattr(prediction, target).sum() for prediction in said for target in targets]
    parameters = list(model.parameters())
    found = torch.autograd.grad(outputs, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.requires_grad_(gradient is not None)
