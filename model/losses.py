"""Losses of depth and mask, and the criterion that combines them.

Every loss is a mean of per-sample values. So the mean over a split does not depend on batch sizes
or on the number of GPUs, and neither does a scheduler that reads it. For this reason Dice is
computed for each sample, not over the whole batch as by the data set's authors: over a batch, a
large object hides small ones, and the value depends on which samples share the batch.

With ``valid`` ((B, 1, H, W) bool), a sample's value is that of its valid pixels: the others have no
influence, and their gradient is 0. A sample without any has the value 0.

All losses are computed in float32, also under autocast. An empty batch has loss 0. Nothing here
synchronises with the GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from model.blocks import Prediction

KINDS = ("dice+l1", "dice", "l1", "bce", "ssim")
ACTIVATIONS = ("sigmoid", "none")
TARGETS = ("mask", "depth")

ALL_VALID: Mapping[str, Tensor] = MappingProxyType({})
"""Validity of targets whose pixels are all valid."""

WINDOW = 11
SIGMA = 1.5


class LossParts(NamedTuple):
    """Float32 scalars; ``total`` is what to differentiate."""

    total: Tensor
    mask: Tensor
    """Unweighted."""
    depth: Tensor
    """Unweighted."""


def l1(pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference.

    Args:
        pred: (B, 1, H, W) float.
        target: Same shape.
        valid: Valid pixels; None: all.

    Returns:
        Float32 scalar, at least 0.

    Raises:
        ValueError: The shapes disagree.
    """
    pred, target = _check_shapes(pred, target)
    return _mean((pred - target).abs(), valid)


def dice_loss(
    pred: Tensor, target: Tensor, valid: Tensor | None = None, *, smooth: float = 1.0
) -> Tensor:
    """Return one minus the Dice overlap, with squared denominators; mean over samples.

    With squares it also suits depth: only a prediction equal to the target has loss 0.

    Args:
        pred: (B, 1, H, W) float, in [0, 1].
        target: Same shape; in [0, 1].
        valid: Valid pixels; None: all.
        smooth: Avoids a division by zero for an empty mask, or a sample without valid pixels.
            Pixels, for each sample.

    Returns:
        Float32 scalar in [0, 1]; 0 when they agree everywhere.

    Raises:
        ValueError: The shapes disagree.

    Source: Milletari et al. 2016, V-Net, section 3.
    """
    pred, target = (_known(t, valid).flatten(1) for t in _check_shapes(pred, target))
    overlap = (pred * target).sum(1)
    size = (pred * pred).sum(1) + (target * target).sum(1)
    if valid is not None:
        # Without smooth, a sample without valid pixels would be 0 / 0.
        some = valid.flatten(1).any(1)
        overlap, size = overlap + 0.5 * ~some, size + ~some
    return _mean(1 - (2 * overlap + smooth) / (size + smooth))


def bce(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of raw outputs.

    Args:
        logits: (B, 1, H, W) float, before any sigmoid.
        target: Same shape; in [0, 1].
        valid: Valid pixels; None: all.

    Returns:
        Float32 scalar, at least 0; nats a pixel.

    Raises:
        ValueError: The shapes disagree.
    """
    logits, target = _check_shapes(logits, target)
    values = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(values, valid)


def ssim(pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the structural similarity: mean over the positions of an 11x11 Gaussian window.

    With ``valid``, a window's means and variances are those of its valid pixels, and only windows
    whose valid pixels have more than half of the weight count.

    Args:
        pred: (B, C, H, W) float, in [0, 1]; H and W at least 11.
        target: Same shape; in [0, 1].
        valid: Valid pixels; None: all.

    Returns:
        Float32 scalar in [-1, 1]; 1 when they agree everywhere (also for an empty batch). The
        loss is one minus it.

    Raises:
        ValueError: The shapes disagree, or a side is shorter than the window.

    Source: Wang et al. 2004, Image Quality Assessment; sigma 1.5, K1 0.01, K2 0.03, range 1.
    """
    pred, target = (_known(each, valid) for each in _check_shapes(pred, target))
    height, width = pred.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"ssim: {height}x{width} is smaller than the {WINDOW}x{WINDOW} window")
    # Window means of x, y, x², y², xy at once, first vertically, then horizontally.
    maps = [pred, target, pred * pred, target * target, pred * target]
    maps += [] if valid is None else [valid.expand_as(pred).float()]
    weights = _gaussian(pred.device)
    with torch.autocast(pred.device.type, enabled=False):
        flat = torch.stack(maps).reshape(-1, 1, height, width)
        flat = functional.conv2d(flat, weights.view(1, 1, WINDOW, 1))
        flat = functional.conv2d(flat, weights.view(1, 1, 1, WINDOW))
    means = flat.reshape(len(maps), *pred.shape[:2], *flat.shape[-2:])
    counted = None
    if valid is not None:
        share = means[5]
        counted = share > 0.5
        means = means[:5] / torch.where(counted, share, 1)
    mean_x, mean_y, xx, yy, xy = means
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return 1 - _mean(1 - score, counted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """The loss of a prediction: ``mask_weight * mask + depth_weight * depth``.

    Each of the two is the weighted mean of Dice and L1, or the loss that ``kind`` names.
    """

    kind: str = "dice+l1"
    """One of ``KINDS``. ``bce`` takes raw outputs, all others activated ones."""
    activation: str = "sigmoid"
    """One of ``ACTIVATIONS``; applied to raw outputs before the losses."""
    dice_weight: float = 1.0
    """Weight of Dice in the weighted mean of ``dice+l1``."""
    l1_weight: float = 1.0
    """Weight of L1 in the weighted mean of ``dice+l1``."""
    mask_weight: float = 2.0
    depth_weight: float = 1.0
    smooth: float = 1.0
    """``smooth`` of ``dice_loss``. Pixels."""
    targets: tuple[str, ...] = TARGETS
    """Those of ``TARGETS`` that the data set has; the other's loss is 0 and is not computed."""

    def __post_init__(self) -> None:
        """Refuse unknown names; the settings of a run check the weights.

        Raises:
            ValueError: An unknown kind, activation or target, or ``bce`` without sigmoid.
        """
        if self.kind not in KINDS:
            raise ValueError(f"loss {self.kind!r}: unknown; use one of {', '.join(KINDS)}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation {self.activation!r}: unknown; use one of {known}")
        if self.kind == "bce" and self.activation != "sigmoid":
            raise ValueError("loss 'bce': takes raw outputs as logits; use activation 'sigmoid'")
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ValueError(f"targets {self.targets}: expected one or both of {TARGETS}")

    def __call__(
        self,
        prediction: Prediction,
        mask: Tensor,
        depth: Tensor,
        valid: Mapping[str, Tensor] = ALL_VALID,
    ) -> LossParts:
        """Return the loss of raw outputs.

        Args:
            prediction: Raw outputs, (B, 1, H, W) each, any float type.
            mask: (B, 1, H, W) in {0, 1}.
            depth: (B, 1, H, W) in [0, 1].
            valid: Target -> (B, 1, H, W) bool, of targets with pixels that have no value.

        Returns:
            Float32 scalars, means over the samples; 0 for an empty batch.

        Raises:
            ValueError: The shapes disagree.
        """
        zero = mask.new_zeros((), dtype=torch.float32)
        losses = {
            name: self._loss(raw, target, valid.get(name)) if name in self.targets else zero
            for name, raw, target in (
                ("mask", prediction.mask, mask), ("depth", prediction.depth, depth)
            )
        }  # fmt: skip
        mask_loss, depth_loss = losses["mask"], losses["depth"]
        total = self.mask_weight * mask_loss + self.depth_weight * depth_loss
        return LossParts(total=total, mask=mask_loss, depth=depth_loss)

    def activate(self, prediction: Prediction) -> Prediction:
        """Map raw outputs to the values that are shown and measured.

        Returns:
            Float32 in [0, 1]: sigmoid of the raw outputs, or (activation ``none``) their clamp.
        """
        bound = torch.sigmoid if self.activation == "sigmoid" else _clamp
        return Prediction(
            depth=bound(prediction.depth.float()), mask=bound(prediction.mask.float())
        )

    def _loss(self, raw: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """Return the loss of one head."""
        if self.kind == "bce":
            return bce(raw, target, valid)
        pred = torch.sigmoid(raw.float()) if self.activation == "sigmoid" else raw
        if self.kind == "l1":
            return l1(pred, target, valid)
        if self.kind == "dice":
            return dice_loss(pred, target, valid, smooth=self.smooth)
        if self.kind == "ssim":
            return 1 - ssim(pred, target, valid)
        dice = self.dice_weight * dice_loss(pred, target, valid, smooth=self.smooth)
        linear = self.l1_weight * l1(pred, target, valid)
        return (dice + linear) / (self.dice_weight + self.l1_weight)


def _check_shapes(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32; refuse different shapes, as broadcasting would hide the mistake."""
    if pred.shape != target.shape:
        given = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"loss: shapes of prediction and target disagree: {given}")
    return pred.float(), target.float()


def _mean(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean; 0 if there are no values, where ``Tensor.mean`` returns NaN.

    With ``valid``, the mean over samples of the mean over their valid values, 0 without any.
    """
    if valid is None:
        return values.sum() / max(values.numel(), 1)
    sums = torch.where(valid, values, 0).flatten(1).sum(1)
    counts = valid.expand_as(values).flatten(1).sum(1)
    return (sums / counts.clamp(min=1)).sum() / max(len(values), 1)


def _known(values: Tensor, valid: Tensor | None) -> Tensor:
    """Replace invalid values by 0."""
    return values if valid is None else torch.where(valid, values, 0)


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(0, 1)


def _gaussian(device: torch.device) -> Tensor:
    """Return (WINDOW,) float32 weights that sum to 1."""
    place = torch.arange(WINDOW, device=device, dtype=torch.float32) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    return weights / weights.sum()
