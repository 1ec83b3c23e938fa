"""U-Net with bilinear upsampling: the baseline beside ResUNet.

``UNet`` returns one tensor; ``PairUNet`` splits its two output channels into depth and mask.
17,267,393 parameters for 3 → 1 channels (the figure printed beside the data set's model),
17,269,186 for 6 → 2. Outputs are raw, without sigmoid.

Source: Ronneberger et al. 2015, in the widely used form with padding, batch norm and half-width
bilinear decoders.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.blocks import Prediction, check_input, init_conv, norm

ENCODER = (64, 128, 256, 512, 512)
DECODER = (512, 256, 128, 64, 64)


def _double(in_channels: int, middle: int, out_channels: int) -> nn.Sequential:
    """Twice convolution, batch norm and ReLU. The bias is redundant, but published."""
    return nn.Sequential(
        nn.Conv2d(in_channels, middle, 3, padding=1),
        norm(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, out_channels, 3, padding=1),
        norm(out_channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """The plain U-Net."""

    def __init__(self, in_channels: int = 6, out_channels: int = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.init = _double(in_channels, ENCODER[0], ENCODER[0])
        self.down = nn.ModuleList(_double(i, o, o) for i, o in pairwise(ENCODER))
        # Features from below are concatenated with a skip of the same width, hence 2 * i.
        self.up = nn.ModuleList(_double(2 * i, i, o) for i, o in pairwise(DECODER))
        self.head = nn.Conv2d(DECODER[-1], out_channels, 1)
        init_conv(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the raw output.

        Args:
            x: (B, in_channels, H, W) float; H and W multiples of 16.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: Another number of channels or dimensions, or a size not divisible by 16.
        """
        out: Tensor = self.head(self.decode(x)[-1])
        return out

    def decode(self, x: Tensor, *, every: bool = False) -> list[Tensor]:
        """Return the decoder's features: at the full scale, or at every scale, coarsest first."""
        check_input(x, self.in_channels)
        x = self.init(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(functional.max_pool2d(x, 2))
        scales: list[Tensor] = []
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = up(torch.cat((skip, x), dim=1))
            scales = [*scales, x] if every else [x]
        return scales


class PairUNet(nn.Module):
    """A U-Net with two output channels: depth, then mask.

    Args:
        in_channels: 6: ``bg`` and ``fg_bg`` stacked, three channels each, normalised.
    """

    encoder = ("net.init", "net.down")
    """Names of the modules before the decoder."""

    def __init__(self, in_channels: int = 6) -> None:
        super().__init__()
        self.net = UNet(in_channels, 2)
        self.coarse_channels = tuple((width, width) for width in DECODER[1:-1])

    def forward(self, x: Tensor) -> Prediction:
        """Return raw depth and mask, (B, 1, H, W) each; takes the same input as ``UNet``."""
        ((shared, _),) = self.decode(x)
        return self.read(shared, shared)

    def decode(self, x: Tensor, *, every: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Return features as ``ResUNet.decode`` does; depth and mask share them."""
        return [(shared, shared) for shared in self.net.decode(x, every=every)]

    def read(self, depth: Tensor, mask: Tensor) -> Prediction:
        """Return raw outputs from the features of the full scale, which both outputs share."""
        assert depth is mask
        out = self.net.head(depth)
        return Prediction(depth=out[:, :1], mask=out[:, 1:])
