"""Choose the device, precision, cuDNN algorithms and memory format of a network."""

import torch
from torch import nn

from train.config import check_device
from train.distributed import World
from train.errors import ConfigError


def pick_device(name: str, world: World) -> torch.device:
    """Return the device of this process for a ``--device`` setting.

    Raises:
        ConfigError: ``name`` is not a device, or its GPU is not available.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch finds no GPU; use --device cpu")
    index = int(name.partition(":")[2] or world.local_rank)
    if index >= (count := torch.cuda.device_count()):
        raise ConfigError(f"--device {name}: no such GPU; torch finds {count}")
    return torch.device("cuda", index)


def move_model(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a network to a device and memory format; return the same object."""
    model.to(device)
    if channels_last:
        # Documented, but missing in torch's annotations.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


_MIN_BF16_CAPABILITY = (8, 0)
"""Compute capability of Ampere, the first GPUs with bf16 units."""


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type in which a network computes, for a ``--precision`` setting on a device.

    Losses and weights are always float32.

    Args:
        name: auto, fp32, bf16 or fp16. auto: bf16 on a GPU that supports it, else fp32, because
            CPUs without bf16 matrix units compute it 2.5 times slower.
        device: Device of the network.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(
            "--precision fp16: needs a GPU; this run is on a CPU; use --precision fp32 or bf16"
        )
    if name == "auto":
        # GPUs before Ampere emulate bf16, which is far slower than fp32.
        native = (
            device.type == "cuda"
            and torch.cuda.get_device_capability(device) >= _MIN_BF16_CAPABILITY
        )
        name = "bf16" if native else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def set_cudnn_algorithms(device: torch.device, *, deterministic: bool = False) -> None:
    """Set the algorithms that a GPU may use, for the whole process.

    Args:
        device: Device of the networks.
        deterministic: Use deterministic algorithms only; else use the fastest, which cuDNN
            searches when an input size occurs for the first time.
    """
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.set_float32_matmul_precision("high")
