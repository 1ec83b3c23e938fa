"""Deep supervision: add losses at the decoders' coarser scales while a network trains.

A wrapper adds one 1x1 head for each scale and decoder. The network, its parameters and its
predictions do not change, and the heads are dropped after training.

Source: Lee et al. 2015, Deeply-Supervised Nets.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.blocks import Prediction, init_conv
from model.losses import ALL_VALID, Criterion


class Decoding(Protocol):
    """A network that returns its decoders' features at each scale."""

    coarse_channels: tuple[tuple[int, int], ...]
    """Channels of the depth and mask features at each coarser scale."""

    def decode(self, x: Tensor, *, every: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Return the depth and mask features, coarsest scale first; by default the full one."""

    def read(self, depth: Tensor, mask: Tensor) -> Prediction:
        """Return raw outputs from the features of the full scale."""


class Scales(NamedTuple):
    """Outputs of a supervised network for a batch."""

    prediction: Prediction
    """Raw outputs of the network itself."""

    coarse: list[Prediction]
    """Raw outputs of the heads, (B, 1, H / 2^k, W / 2^k), coarsest first."""


class Supervised(nn.Module):
    """Wraps a network and adds heads on its decoders' coarser scales.

    Raises:
        ValueError: The network does not return its coarser scales.
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
        """Return raw outputs at every scale; takes and refuses the same input as the network."""
        network = cast(Decoding, self.network)
        *coarse, full = network.decode(x, every=True)
        predictions = []
        for heads, (depth, mask) in zip(self.heads, coarse, strict=True):
            depth_head, mask_head = cast(nn.ModuleList, heads)
            predictions.append(Prediction(depth=depth_head(depth), mask=mask_head(mask)))
        return Scales(network.read(*full), predictions)


def coarse_loss(
    criterion: Criterion,
    coarse: Sequence[Prediction],
    mask: Tensor,
    depth: Tensor,
    valid: Mapping[str, Tensor] = ALL_VALID,
) -> Tensor:
    """Return the mean loss over scales; targets are averaged down to each scale.

    Args:
        criterion: The criterion of the full scale.
        coarse: Raw outputs, (B, 1, H / k, W / k) each.
        mask: (B, 1, H, W) in {0, 1}; its average is the share of object in a cell.
        depth: (B, 1, H, W) in [0, 1].
        valid: As for the criterion. The average is over the valid pixels of a cell, which is valid
            if these are more than half of it.

    Returns:
        Float32 scalar.
    """
    total = mask.new_zeros(()).float()
    for prediction in coarse:
        cell = mask.shape[-1] // prediction.mask.shape[-1]
        targets = {"mask": mask.float(), "depth": depth.float()}
        small = {name: functional.avg_pool2d(target, cell) for name, target in targets.items()}
        small_valid = {}
        for name, known in valid.items():
            levels = functional.avg_pool2d(torch.where(known, targets[name], 0), cell)
            share = functional.avg_pool2d(known.float(), cell)
            small_valid[name] = share > 0.5
            small[name] = levels / torch.where(small_valid[name], share, 1)
        parts = criterion(prediction, small["mask"], small["depth"], small_valid)
        total = total + parts.total
    return total / max(1, len(coarse))
