"""From decoded images to a batch on a CPU: the compiled kernel, run over a batch by threads.

Holds what stays the same from batch to batch (normalisation, noise table, memory of batches that
are no longer in use). It decodes nothing and chooses no sample.
"""

import weakref
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from shardify.loader.augmentation import AugmentationDraws, affine_matrices, noise_table
from shardify.loader.batch import CHANNELS, ROLES, Batch, fill
from shardify.loader.cpu_kernels import render, unpack

__all__ = ["Buffers", "Renderer"]

_ALIGNED = 64
"""Bytes: the widest vector, and a cache line."""
_LARGE = 4 << 20
"""Bytes: a batch of more leaves the caches before anybody reads it."""

Floats = npt.NDArray[np.float32]


class Buffers:
    """Memory for batches, used again once no tensor looks at it.

    Fresh memory costs a page fault every 4 KiB, as much time at 256 pixels as the warp. A buffer
    may be taken again when the last tensor over it is gone, so whoever keeps a batch may keep it.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[weakref.ref[Floats], Floats]] = []
        self._free: list[Floats] = []

    def take(self, length: int) -> torch.Tensor:
        """A float32 tensor of ``length`` elements at a multiple of 64 bytes, content undefined."""
        spare = _ALIGNED // 4
        # Asked for here, not told by a callback: in one of those Ctrl-C would be lost.
        lent, self._lent = self._lent, []
        for user, memory in lent:
            if user() is None:
                self._free.append(memory)
            else:
                self._lent.append((user, memory))
        while self._free:
            memory = self._free.pop()
            if len(memory) == length + spare:
                break
        else:
            memory = np.empty(length + spare, np.float32)
        # torch holds this view, and nothing else does, as long as any tensor uses the memory.
        begin = -memory.ctypes.data % _ALIGNED // memory.itemsize
        view = memory[begin : begin + length]
        self._lent.append((weakref.ref(view), memory))
        return torch.from_numpy(view)


class Renderer:
    """Turns decoded images into batches of one size."""

    def __init__(
        self,
        *,
        res: int,
        normal: Floats,
        threshold: float,
        depth_bits: int,
        augment: bool,
        threads: int,
        dtype: torch.dtype,
        channels_last: bool,
        roles: Collection[str] = ROLES,
    ) -> None:
        """Compile or load the kernel.

        Args:
            res: R, width and height of the batches. Pixels.
            normal: (2, 2, 3) float32 as ``kernel.render`` takes it.
            threshold: Of the mask, in levels of 255.
            depth_bits: 8 or 16.
            augment: Whether colour and noise are applied.
            threads: That share a batch.
            dtype: Of the batches.
            channels_last: Memory order NHWC.
            roles: Those that the data set has; ``fg_bg`` is one of them.
        """
        self._res = res
        self._normal = normal
        self._threshold = threshold
        self._depth_bits = depth_bits
        self._augment = augment
        self._threads = threads
        self._dtype = dtype
        self._channels_last = channels_last
        self._channels = [CHANNELS[role] if role in roles else 0 for role in ROLES]
        self._noise = noise_table(res)
        self._buffers = Buffers()
        self._rgb = np.empty((0, 1, 1, 3), np.uint8)
        self._masks = np.empty((0, 1, 1), np.uint8)
        self._pool = ThreadPoolExecutor(threads, "shardline-render") if threads > 1 else None

    def __call__(
        self,
        images: npt.NDArray[np.int64],
        draws: AugmentationDraws,
        packed: npt.NDArray[np.int64] | None = None,
    ) -> Batch:
        """Render one batch of B samples, B >= 0.

        Args:
            images: (B, 4, 3): address, width, height of bg, fg_bg, mask and depth; all 0 of those
                that the data set lacks. Where ``packed`` is given, fg_bg's and mask's addresses
                are set here.
            draws: Of the same samples.
            packed: (B, 2) addresses of raw fg_bg and raw masks, all of one size.

        Returns:
            The batch; zeros in place of the images that there are not.
        """
        if packed is not None:
            self._make_room(images)
        count, area = len(images), self._res * self._res
        flat = self._buffers.take(count * sum(self._channels) * area)
        parts = torch.split(flat, [count * channels * area for channels in self._channels])
        outputs = tuple(
            part.view(count, channels * area).numpy()
            for part, channels in zip(parts, self._channels, strict=True)
        )
        stream = self._res % 16 == 0 and flat.nbytes > _LARGE
        matrices = affine_matrices(draws.turn, images[:, :, 1:], res=self._res)

        def part(first: int, last: int) -> None:
            if packed is not None:
                unpack(packed, self._rgb, self._masks, first, last)
            render(
                images, matrices, draws.colour, draws.noise, draws.place, self._noise, self._normal,
                self._threshold, self._depth_bits, self._augment, self._channels_last, stream,
                outputs, first, last,
            )  # fmt: skip

        cuts = np.linspace(0, count, min(self._threads, max(count, 1)) + 1).astype(int).tolist()
        if self._pool is None or len(cuts) == 2:
            part(0, count)
        else:
            list(self._pool.map(part, cuts[:-1], cuts[1:]))
        return fill(
            {
                role: self._dress(part, channels)
                for role, part, channels in zip(ROLES, parts, self._channels, strict=True)
                if channels
            },
            count, self._res, dtype=self._dtype, channels_last=self._channels_last,
        )  # fmt: skip

    def _make_room(self, images: npt.NDArray[np.int64]) -> None:
        """Have memory for a batch of unpacked images, and note where each will be."""
        count = len(images)
        if len(self._rgb) < count:
            (wide, high), (width, height) = images[0, 1, 1:].tolist(), images[0, 2, 1:].tolist()
            self._rgb = np.empty((count, high, wide, 3), np.uint8)
            self._masks = np.empty((count, height, width), np.uint8)
        places = [(1, self._rgb)] + ([(2, self._masks)] if self._masks.size else [])
        for column, memory in places:
            first, stride = memory.__array_interface__["data"][0], memory.strides[0]
            images[:, column, 0] = first + stride * np.arange(count)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _dress(self, part: torch.Tensor, channels: int) -> torch.Tensor:
        """As (B, C, R, R) of the dtype and memory order that are wanted."""
        if self._channels_last:
            return part.view(-1, self._res, self._res, channels).permute(0, 3, 1, 2).to(self._dtype)
        return part.view(-1, channels, self._res, self._res).to(self._dtype)
