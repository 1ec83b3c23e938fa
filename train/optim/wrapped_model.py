"""Wrap the network of a run: deep supervision, DDP, torch.compile and EMA.

``model`` holds the weights, ``training`` is the wrapped network to train, and ``evaluated`` is the
network to evaluate and save: the average of the weights, or ``model`` itself.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
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

COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
"""Errors of these modules are compile errors."""


class WrappedModel:
    """One network and its wrappers."""

    def __init__(
        self,
        config: Config,
        *,
        world: World,
        device: torch.device,
        make_model: MakeModel,
        targets: tuple[str, ...] = TARGETS,
    ) -> None:
        """Create the network with initial weights.

        Parameters that serve no target in ``targets`` are frozen.

        Raises:
            ConfigError: The network or the device does not support a setting.
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
            # DDP would wait for the gradients of parameters without influence on the targets.
            unused = set(unused_parameters(whole, targets))
            for name, parameter in whole.named_parameters():
                parameter.requires_grad_(name not in unused)
        self.average = WeightAverage(self.model, config.optim.ema) if config.optim.ema else None
        self.parameters: list[Tensor] = [p for p in whole.parameters() if p.requires_grad]
        """Trainable parameters, those of ``model`` first; some may be frozen in early stages."""
        self._whole = whole
        self._frozen = self._frozen_part()
        for parameter in self._frozen.parameters():
            parameter.requires_grad_(False)
        self._check_batch_norms()
        self.training = self._compiled(self._distributed(whole))
        """The wrapped network; it shares its weights with ``model``."""

    @property
    def evaluated(self) -> nn.Module:
        """Network to evaluate and save."""
        return self.model if self.average is None else self.average.model

    def train_mode(self) -> None:
        """Set the network to training mode, except for the frozen part."""
        self.model.train()
        self._frozen.eval()  # Its batch norms neither use nor change batch statistics.

    def enter_stage(self, number: int) -> bool:
        """Unfreeze the frozen part, if stage ``number``, counted from 1, is one that trains it.

        Returns:
            Whether it was unfrozen now. Then ``training`` is a new object, and nobody may hold the
            old one.
        """
        first = self._config.network.unfreeze_stage
        if not len(self._frozen) or not 0 < first <= number:
            return False
        own = {id(parameter) for parameter in self._frozen.parameters()}
        for parameter in self.parameters:
            if id(parameter) in own:
                parameter.requires_grad_(True)
        self._frozen = nn.ModuleList()
        # DDP exchanges the gradients that it found at its creation only. The old one must be gone
        # before, because its hooks stay on the parameters as long as it exists.
        del self.training
        gc.collect()
        self.training = self._compiled(self._distributed(self._whole))
        return True

    def _check_batch_norms(self) -> None:
        """Check that each batch norm that is trained gets more than one value per channel.

        Raises:
            ConfigError: One value has no variance.
        """
        config = self._config
        res = min(config.data.res, key=lambda each: each.pixels)
        shared = config.compute.sync_bn and self._world.size > 1
        # The networks halve images up to MULTIPLE: larger ones keep more than one pixel.
        if config.data.batch > 1 or max(res) > MULTIPLE or shared:
            return
        fixed = set(self._frozen.modules()) if not config.network.unfreeze_stage else set()
        values: list[int] = []

        def count(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if norm not in fixed:
                values.append(inputs[0].numel() // inputs[0].shape[1])

        norms = [each for each in self._whole.modules() if isinstance(each, _BatchNorm)]
        hooks = [norm.register_forward_pre_hook(count) for norm in norms]
        training = self._whole.training
        with torch.no_grad():
            self._whole.eval()(torch.zeros(1, 6, *res, device=self._device))
        self._whole.train(training)
        for hook in hooks:
            hook.remove()
        if 1 in values:
            raise ConfigError(
                f"--batch 1: at --res {res} a batch norm gets one value per channel, which has no "
                "variance; use --batch 2 or more, or a larger --res"
            )

    def _frozen_part(self) -> nn.ModuleList:
        """Return the modules of ``--freeze``.

        Raises:
            ConfigError: The network has no such part.
        """
        if self._config.network.freeze == "none":
            return nn.ModuleList()
        names = getattr(self.model, "encoder", ())
        if not names:
            raise ConfigError("--freeze encoder: this network has no encoder; use --freeze none")
        return nn.ModuleList(self.model.get_submodule(name) for name in names)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the network, its auxiliary heads and its average."""
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if self._heads is not None:
            state["heads"] = self._heads.state_dict()
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the weights of `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self._heads is not None:
            self._heads.load_state_dict(state["heads"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _distributed(self, model: nn.Module) -> nn.Module:
        """Wrap ``model`` in DDP if there are several ranks."""
        if self._world.size == 1:
            return model
        on_gpu = self._device.type == "cuda"
        if self._config.compute.sync_bn:
            if not on_gpu:
                raise ConfigError("--sync-bn: torch supports it on GPUs only; use --device cuda")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        ids = [self._device] if on_gpu else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def _compiled(self, model: nn.Module) -> nn.Module:
        """Compile ``model`` if the settings say so; every new input size is compiled once."""
        how = self._config.compute.compile
        if how == "no":
            return model
        if how == "graphs" and self._device.type != "cuda":
            raise ConfigError(
                "--compile graphs: CUDA graphs need a GPU; use --device cuda, or --compile yes"
            )
        if how == "graphs" and (self._config.optim.grad_accum > 1 or self._world.size > 1):
            # A second replay overwrites the gradients of the first.
            raise ConfigError(
                "--compile graphs: supports one GPU and one batch per step only; "
                "use --grad-accum 1 without torchrun, or --compile yes"
            )
        mode = "reduce-overhead" if how == "graphs" else "default"
        return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


def single_rank_messages(config: Config, world: World) -> list[str]:
    """Return a line for each setting that has no effect with a single rank."""
    if config.compute.sync_bn and world.size == 1:
        return ["--sync-bn: has no effect with one rank; use torchrun for several"]
    return []


@contextmanager
def translate_compile_errors(mode: str) -> Iterator[None]:
    """Turn errors of torch.compile in the block into one line.

    Raises:
        ConfigError: The network cannot be compiled, usually because there is no C++ compiler.
    """
    try:
        yield
    except Exception as error:
        if mode == "no" or not type(error).__module__.startswith(COMPILER_MODULES):
            raise
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ConfigError(
            f"--compile {mode}: the network cannot be compiled here ({reason}); install a C++ "
            "compiler (g++), or continue with --resume --compile no"
        ) from error


def unused_parameters(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the parameters without influence on ``targets``."""
    training = model.training
    names, parameters = zip(*model.named_parameters(), strict=True)
    raw = model.eval()(torch.zeros(1, 6, MULTIPLE, MULTIPLE, device=parameters[0].device))
    model.train(training)
    predictions = [raw.prediction, *raw.coarse] if isinstance(raw, Scales) else [raw]
    outputs = [
        getattr(prediction, target).sum() for prediction in predictions for target in targets
    ]
    gradients = torch.autograd.grad(outputs, parameters, allow_unused=True)
    return [name for name, grad in zip(names, gradients, strict=True) if grad is None]
