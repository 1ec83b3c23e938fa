"""The batch type: the loader's output and the training step's input.

A batch is four tensors. A role that the data set lacks is a tensor of zeros.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Aligned images of B samples at R x R pixels, all on one device and of one dtype."""

    bg: Tensor
    """(B, 3, R, R): the background alone, normalised by the data set's mean and deviation."""

    fg_bg: Tensor
    """(B, 3, R, R): the object on that background, normalised likewise."""

    mask: Tensor
    """(B, 1, R, R): 1 where the object is, else 0."""

    depth: Tensor
    """(B, 1, R, R): in [0, 1] of the depth map's full range."""


ROLES = Batch._fields
CHANNELS = {"bg": 3, "fg_bg": 3, "mask": 1, "depth": 1}


def fill(
    tensors: Mapping[str, Tensor],
    batch_size: int,
    res: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Batch:
    """Return a batch of the given tensors, with zeros for the other roles.

    Args:
        tensors: One tensor for each role that the data set has, shaped as in a batch.
        batch_size: B.
        res: R. Pixels.
        device: Device of the zeros; the same as the given tensors'.
        dtype: Type of the zeros; the same as the given tensors'.
        channels_last: Memory order NHWC instead of NCHW; the same as the given tensors'.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def zeros(role: str) -> Tensor:
        empty = torch.empty(
            batch_size, CHANNELS[role], res, res, dtype=dtype, device=device, memory_format=layout
        )
        return empty.zero_()

    return Batch(*(tensors[role] if role in tensors else zeros(role) for role in ROLES))


def synthetic(
    batch_size: int,
    res: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    seed: int = 0,
) -> Batch:
    """Return random numbers in the shape and ranges of a batch, to measure without a loader.

    Args:
        batch_size: B.
        res: R. Pixels.
        device: Device of the tensors.
        dtype: A floating type.
        channels_last: Memory order NHWC instead of NCHW.
        seed: The same seed gives the same numbers on the same kind of device.
    """
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype).contiguous(memory_format=layout)

    bg = torch.randn(batch_size, 3, res, res, generator=generator)
    fg_bg = torch.randn(batch_size, 3, res, res, generator=generator)
    mask = (torch.rand(batch_size, 1, res, res, generator=generator) < 0.25).float()
    depth = torch.rand(batch_size, 1, res, res, generator=generator)
    return Batch(place(bg), place(fg_bg), place(mask), place(depth))
