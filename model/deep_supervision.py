"""Deep supervision: the decoders judged at their coarser scales too, while they train.

A wrapper around a network adds a 1x1 head a scale and decoder; the network itself, its parameters
and what it predicts stay as they are, and the heads are left behind when training ends. This module
knows no optimiser and decides no weight.

Source: Lee et al. 2015, Deeply-Supervised Nets.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn
from torch.nn import functional

from model.blocks import Prediction, init_conv
from model.losses import Criterion

__all__ = ["Decoding", "Scales", "Supervised", "coarse_loss"]


class Decoding(Protocol):
    """A network that shows what its decoders make of each scale."""

    coarse_channels: tuple[tuple[int, int], ...]
    """Channels of the features of depth and mask at each scale below the full one."""

    def decode(self, x: Tensor, *, every: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Features of depth and of mask, coarsest scale first."""

    def read(self, depth: Tensor, mask: Tensor) -> Prediction:
        """Raw outputs from the features of the full scale."""


class Scales(NamedTuple):
    """What a supervised network says of a batch."""

    prediction: Prediction
    """Raw outputs of the network itself."""

    coarse: list[Prediction]
    """Raw outputs of the heads, (B, 1, H / 2^k, W / 2^k), coarsest first."""


class Supervised(nn.Module):
    """A network with heads on its decoders' coarser scales.

    Args:
        network: A ``Decoding``; it stays the same object.

    Raises:
        ValueError: The network does not show its scales.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not hasattr(network, "coarse_channels"):
            name = type(network).__name__
            raise ValueError(f"{name}: shows no coarser scales; it cannot be supervised there")
        self.network = network
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in pair)
            for pair in cast(Decoding, network).coarse_channels
        )
        init_conv(self.heads)

    def forward(self, x: Tensor) -> Scales:
        """Raw outputs at every scale; takes and refuses what the network does."""
        network = cast(Decoding, self.network)
        *coarse, full = network.decode(x, every=True)
        said = []
        for heads, (depth, mask) in zip(self.heads, coarse, strict=True):
            of_depth, of_mask = cast(nn.ModuleList, heads)
            said.append(Prediction(depth=of_depth(depth), mask=of_mask(mask)))
        return Scales(network.read(*full), said)


def coarse_loss(
    criterion: Criterion, coarse: Sequence[Prediction], mask: Tensor, depth: Tensor
) -> Tensor:
    """Mean loss over scales; targets are averaged down to each.

    Args:
        criterion: As for the full scale.
        coarse: Raw outputs, (B, 1, H / k, W / k) each.
        mask: (B, 1, H, W) in {0, 1}; averaged, the share of a cell that is object.
        depth: (B, 1, H, W) in [0, 1].

    Returns:
        Float32 scalar.
    """
    total = mask.new_zeros(()).float()
    for prediction in coarse:
        cell = mask.shape[-1] // prediction.mask.shape[-1]
        small_mask, small_depth = (
            functional.avg_pool2d(target.float(), cell) for target in (mask, depth)
        )
        total = total + criterion(prediction, small_mask, small_depth).total
    return total / max(1, len(coarse))
