"""The batch type: the loader's output and the training step's input.

A batch is four tensors. A role that the data set lacks is a tensor of zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shardify.resolution import Resolution, ResolutionLike, resolution


class Batch(NamedTuple):
    """Aligned images of B samples of H x W pixels, all on one device and of one dtype."""

    bg: Tensor
    """(B, 3, H, W): the background alone, normalised by mean and standard deviation."""

    fg_bg: Tensor
    """(B, 3, H, W): the object on that background, normalised likewise."""

    mask: Tensor
    """(B, 1, H, W): 1 where the object is, else 0."""

    depth: Tensor
    """(B, 1, H, W): in [0, 1] of the depth map's full range."""


ROLES = Batch._fields
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


def fill(tensors: Mapping[str, Tensor], batch_size: int, settings: RenderSettings) -> Batch:
    """Return a batch of the given tensors, with zeros for the other roles.

    ``tensors`` has one for each role that the data set has, as ``settings`` says.
    """
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format

    def zeros(role: str) -> Tensor:
        shape = batch_size, CHANNELS[role], *settings.res
        empty = torch.empty(
            shape, dtype=settings.dtype, device=settings.device, memory_format=layout
        )
        return empty.zero_()

    return Batch(*(tensors[role] if role in tensors else zeros(role) for role in ROLES))


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
