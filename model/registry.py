"""Networks by name, and the sizes they take.

The one place that maps a word on a command line or in a checkpoint to a network; it reads neither.
"""

from collections.abc import Callable

from torch import nn

from model.blocks import check_size
from model.resunet import ResUNet
from model.unet import PairUNet

__all__ = ["MODELS", "MakeModel", "check_resolution", "create"]


MakeModel = Callable[[str], nn.Module]
"""Name of an architecture → a network with fresh weights."""


MODELS: dict[str, Callable[[int], nn.Module]] = {"resunet": ResUNet, "unet": PairUNet}
"""Name → class; each takes the number of input channels and returns ``Prediction``s."""


def create(name: str, *, in_channels: int = 6) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        name: A key of ``MODELS``.
        in_channels: 6: ``bg`` and ``fg_bg`` stacked.

    Returns:
        A module: (B, in_channels, H, W) float → ``Prediction`` of raw outputs (B, 1, H, W).

    Raises:
        ValueError: No such name, or no channels.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r}: unknown; use one of {', '.join(MODELS)}")
    if in_channels < 1:
        raise ValueError(f"in_channels {in_channels}: expected 1 or more")
    return MODELS[name](in_channels)


def check_resolution(res: int) -> None:
    """Refuse a side length that the networks do not take.

    Args:
        res: Pixels.

    Raises:
        ValueError: Not a positive multiple of 16; names the nearest that are.
    """
    check_size(res, res)
