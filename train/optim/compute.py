"""Device, precision, cuDNN's algorithms and memory format of a network."""

from typing import NamedTuple

import torch
from torch import nn

from train.distributed import World
from train.errors import ConfigError

__all__ = ["Precision", "move_model", "pick_device", "precision_of", "set_cudnn_algorithms"]


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


def move_model(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a network to where and how it computes; returns the same object."""
    model.to(device)
    if channels_last:
        # torch's annotations lack what its documentation has.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


_BF16 = (8, 0)
"""Compute capability of the first GPUs with units for bf16: Ampere."""


class Precision(NamedTuple):
    """The arithmetic of the network; losses and weights are always float32."""

    name: str
    """fp32, bf16 or fp16."""

    dtype: torch.dtype
    """What autocast computes in."""


def precision_of(name: str, device: torch.device) -> Precision:
    """The arithmetic that a setting means on a device.

    Args:
        name: auto, fp32, bf16 or fp16. auto: bf16 on a GPU that has it, otherwise fp32, since
            CPUs without matrix units for it compute bf16 2.5 times slower.
        device: Where the network lives.
    """
    if name == "auto":
        # A GPU before Ampere only imitates bf16, far slower than it computes fp32.
        real = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BF16
        name = "bf16" if real else "fp32"
    return Precision(
        name, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    )


def set_cudnn_algorithms(device: torch.device, *, deterministic: bool = False) -> None:
    """Say, for the whole process, which algorithms a GPU may compute with.

    Args:
        device: Where networks compute from now on.
        deterministic: Those alone that give the same bits every time; else the fastest, which are
            looked for when a size is seen for the first time.
    """
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.set_float32_matmul_precision("high")
