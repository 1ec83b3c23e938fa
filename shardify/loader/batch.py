"""The batch type: the loader's output and the training step's input.

A batch is four tensors. A role that the data set lacks is a tensor of zeros. If a role has pixels
without a value, as depth where nothing was measured, the batch also says which are valid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shardify.resolution import Resolution, ResolutionLike, resolution


class _Images(NamedTuple):
    """The four images of a batch."""

    bg: Tensor
    """(B, 3, H, W): the background alone, normalised by mean and standard deviation."""

    fg_bg: Tensor
    """(B, 3, H, W): the object on that background, normalised likewise."""

    mask: Tensor
    """(B, 1, H, W): 1 where the object is, else 0."""

    depth: Tensor
    """(B, 1, H, W): in [0, 1] of the depth map's full range; 0 where ``valid`` is False."""


class Batch(_Images):
    """Aligned images of B samples of H x W pixels, all on one device and of one dtype."""

    valid: Mapping[str, Tensor] = MappingProxyType({})
    """role -> (B, 1, H, W) bool: True where the role has a value. Only of roles with pixels that
    have none; all pixels of the other roles are valid. Not part of the unpacking."""

    def __new__(
        cls,
        bg: Tensor,
        fg_bg: Tensor,
        mask: Tensor,
        depth: Tensor,
        *,
        valid: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Create a batch; all its pixels are valid without ``valid``."""
        batch = super().__new__(cls, bg, fg_bg, mask, depth)
        if valid:
            batch.valid = valid
        return batch

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function to every tensor, those of ``valid`` included."""
        valid = {role: function(one) for role, one in self.valid.items()}
        return Batch(*map(function, self), valid=valid)

    def to(self, *args: Any, **options: Any) -> "Batch":
        """Move every tensor, as ``Tensor.to`` with a device; ``valid`` stays bool."""
        return self.map(lambda tensor: tensor.to(*args, **options))

    def _replace(self, **changes: Any) -> "Batch":
        return Batch(**{**self._asdict(), "valid": self.valid, **changes})


ROLES = Batch._fields
WITH_HOLES = ("depth",)
"""Roles that may have pixels without a value."""
CHANNELS = {"bg": 3, "fg_bg": 3, "mask": 1, "depth": 1}

RoleStats = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""role -> mean and standard deviation of each channel, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RenderSettings:
    """How the images of one data set become batches, on either device."""

    res: Resolution
    """H and W of the batches. Pixels."""

    batch_size: int
    """Samples in a full batch."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    """Memory order NHWC instead of NCHW."""

    augment: bool
    """Whether colour and noise are applied."""

    threads: int
    """Decoding threads, and as many for the steps after decoding."""

    roles: tuple[str, ...]
    """Roles that the data set has, ``fg_bg`` among them."""

    normal: npt.NDArray[np.float32]
    """(2, 2, 3): for bg and fg_bg, scale and shift of each channel; the output is levels of 255
    times scale plus shift."""

    threshold: float
    """A mask pixel is 1 if its level after the warp is at least this. Levels of 255."""

    depth_bits: int
    """8 or 16."""

    invalid: Mapping[str, int] = field(default_factory=dict)
    """role -> stored value that means "no value", for the roles that have one."""


def fill(
    tensors: Mapping[str, Tensor],
    batch_size: int,
    settings: RenderSettings,
    valid: Mapping[str, Tensor] | None = None,
) -> Batch:
    """Return a batch of the given tensors, with zeros for the other roles.

    ``tensors`` has one for each role that the data set has, as ``settings`` says; ``valid`` one for
    each role with an invalid value, and may be None for a batch of no samples.
    """
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format

    def zeros(role: str) -> Tensor:
        shape = batch_size, CHANNELS[role], *settings.res
        empty = torch.empty(
            shape, dtype=settings.dtype, device=settings.device, memory_format=layout
        )
        return empty.zero_()

    if valid is None:
        valid = {role: zeros(role).bool() for role in settings.invalid}
    return Batch(
        *(tensors[role] if role in tensors else zeros(role) for role in ROLES), valid=valid
    )


def synthetic(
    batch_size: int,
    res: ResolutionLike,
    *,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> Batch:
    """Return random numbers in the shape and ranges of a batch, to measure without a loader.

    The same at every call, in float32.
    """
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device=device).contiguous(memory_format=layout)

    size = resolution(res)
    bg = torch.randn(batch_size, 3, *size, generator=generator)
    fg_bg = torch.randn(batch_size, 3, *size, generator=generator)
    mask = (torch.rand(batch_size, 1, *size, generator=generator) < 0.25).float()
    depth = torch.rand(batch_size, 1, *size, generator=generator)
    return Batch(place(bg), place(fg_bg), place(mask), place(depth))
