"""Create networks by name, and check the sizes they take."""

from collections.abc import Callable

from torch import nn

from model.blocks import check_size
from model.resunet import ResUNet
from model.unet import PairUNet

MakeModel = Callable[[str], nn.Module]
"""A function from the name of an architecture to a network with new weights."""


MODELS: dict[str, Callable[[int], nn.Module]] = {"resunet": ResUNet, "unet": PairUNet}
"""Name → class. Takes the number of input channels; its networks return ``Prediction``s."""


def create(name: str, *, in_channels: int = 6) -> nn.Module:
    """Return a network with new weights, drawn from torch's global generator.

    Returns:
        A module: (B, in_channels, H, W) float → ``Prediction`` of raw outputs (B, 1, H, W).

    Raises:
        ValueError: Unknown name, or fewer than one channel.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r}: unknown; use one of {', '.join(MODELS)}")
    if in_channels < 1:
        raise ValueError(f"in_channels {in_channels}: expected 1 or more")
    return MODELS[name](in_channels)


def check_resolution(height: int, width: int) -> None:
    """Refuse a resolution that the networks do not take.

    Raises:
        ValueError: A side is not a positive multiple of 16; the message names the nearest ones.
    """
    check_size(height, width)
