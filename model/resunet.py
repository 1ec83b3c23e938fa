"""ResUNet: one residual encoder, a depth decoder, and a mask decoder that uses depth features.

The architecture is the one that the data set's authors published: 15,855,712 parameters (their
README states 17,267,393, which is their U-Net: see ``model.unet``). Outputs are raw, without
sigmoid.

Sizes at 64 px::

    x  6  64 ─ init 5x5 ─ 32  64
       down1 ─ 64  64 ┐ 32     skip1 ─────────────────────┐
       down2 ─ 128 32 ┐ 16     skip2 ───────────────┐     │
       down3 ─ 256 16 ┐  8     skip3 ─────────┐     │     │
       down4 ─ 512  8 ┐  4     skip4 ───┐     │     │     │
       bridge  512  4 ─┬─ depth: 512 → 256 → 128 → 64 → 16 → head 1
                       └─ mask:  512 →  64 →  64 → 32 → 16 → head 1
"""

from itertools import pairwise

from torch import Tensor, nn

from model.blocks import DoubleConv, Down, Prediction, Up, check_input, init_conv

ENCODER = (32, 64, 128, 256, 512)
DEPTH = (512, 256, 128, 64, 16)
MASK = (512, 64, 64, 32, 16)


class ResUNet(nn.Module):
    """Predicts depth and mask of an image, given the image and its background.

    Args:
        in_channels: 6: ``bg`` and ``fg_bg`` stacked, three channels each, normalised.
    """

    encoder = ("init", "down", "bridge")
    """Names of the modules that both decoders share."""

    def __init__(self, in_channels: int = 6) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.coarse_channels = tuple(zip(DEPTH[1:-1], MASK[1:-1], strict=True))
        self.init = nn.Conv2d(in_channels, ENCODER[0], 5, padding=2, bias=False)
        self.down = nn.ModuleList(Down(i, o) for i, o in pairwise(ENCODER))
        self.bridge = DoubleConv(ENCODER[-1], ENCODER[-1])
        skips = ENCODER[:0:-1]
        self.depth_up = nn.ModuleList(
            Up(i, skip, o) for (i, o), skip in zip(pairwise(DEPTH), skips, strict=True)
        )
        self.mask_up = nn.ModuleList(
            Up(i, skip, o, side)
            for (i, o), skip, side in zip(pairwise(MASK), skips, DEPTH[1:], strict=True)
        )
        self.depth_head = nn.Conv2d(DEPTH[-1], 1, 1, bias=False)
        self.mask_head = nn.Conv2d(MASK[-1], 1, 1, bias=False)
        init_conv(self)

    def forward(self, x: Tensor) -> Prediction:
        """Return raw depth and mask.

        Args:
            x: (B, in_channels, H, W) float; H and W multiples of 16. ``bg`` first, then ``fg_bg``.

        Returns:
            Raw outputs, (B, 1, H, W) each.

        Raises:
            ValueError: Another number of channels or dimensions, or a size not divisible by 16.
        """
        ((depth, mask),) = self.decode(x)
        return self.read(depth, mask)

    def decode(self, x: Tensor, *, every: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Return the decoders' depth and mask features.

        Args:
            x: As in ``forward``.
            every: Return all scales, coarsest first, instead of the full scale alone.

        Returns:
            For each scale a pair of (B, channels, H', W'); all scales but the last have
            ``coarse_channels``.
        """
        check_input(x, self.in_channels)
        x = self.init(x)
        skips = []
        for down in self.down:
            x, skip = down(x)
            skips.append(skip)
        depth = mask = self.bridge(x)
        scales: list[tuple[Tensor, Tensor]] = []
        for depth_up, mask_up, skip in zip(
            self.depth_up, self.mask_up, reversed(skips), strict=True
        ):
            depth = depth_up(depth, skip)
            mask = mask_up(mask, skip, depth)
            scales = [*scales, (depth, mask)] if every else [(depth, mask)]
        return scales

    def read(self, depth: Tensor, mask: Tensor) -> Prediction:
        """Return raw outputs from the features of the full scale."""
        return Prediction(depth=self.depth_head(depth), mask=self.mask_head(mask))
