"""Render decoded images into a batch on a CPU: run the compiled kernel in several threads.

A renderer keeps what is the same for all batches (normalisation, noise table) and reuses the
memory of batches that are no longer in use.
"""

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from shardify.loader.augmentation import AugmentationDraws, affine_matrices, noise_table
from shardify.loader.batch import CHANNELS, ROLES, Batch, RenderSettings, fill
from shardify.loader.cpu_kernels import render, unpack
from shardify.loader.reduction import HALF, reduce_images, reduced_sizes

_ALIGNMENT = 64
"""Alignment of buffers, in bytes: the widest vector, and a cache line."""
_STREAM_THRESHOLD = 4 << 20
"""Bytes; a larger batch leaves the caches before it is read, so writes bypass them."""

Floats = npt.NDArray[np.float32]


class Buffers:
    """Memory for batches, reused once no tensor refers to it.

    New memory costs a page fault every 4 KiB, at 256 pixels as much time as the warp. A buffer is
    reused only after its last tensor is gone, so a caller may keep a batch as long as it likes.
    """

    def __init__(self) -> None:
        self._in_use: list[tuple[weakref.ref[Floats], Floats]] = []
        self._free: list[Floats] = []

    def take(self, length: int) -> torch.Tensor:
        """Return a float32 tensor of ``length`` elements, aligned to 64 bytes, uninitialised."""
        padding = _ALIGNMENT // 4
        # Polled here, not by a weakref callback: Ctrl-C inside a callback would be lost.
        in_use, self._in_use = self._in_use, []
        for user, memory in in_use:
            if user() is None:
                self._free.append(memory)
            else:
                self._in_use.append((user, memory))
        while self._free:
            memory = self._free.pop()
            if len(memory) == length + padding:
                break
        else:
            memory = np.empty(length + padding, np.float32)
        # Only torch holds this view, as long as any tensor uses the memory.
        start = -memory.ctypes.data % _ALIGNMENT // memory.itemsize
        view = memory[start : start + length]
        self._in_use.append((weakref.ref(view), memory))
        return torch.from_numpy(view)


class Renderer:
    """Renders decoded images into batches of one size."""

    def __init__(self, settings: RenderSettings) -> None:
        self._settings = settings
        self._channels = [CHANNELS[role] if role in settings.roles else 0 for role in ROLES]
        self._channels.append(1 if "depth" in settings.invalid else 0)
        self._invalid = settings.invalid.get("depth", -1)
        self._noise = noise_table(settings.res)
        self._buffers = Buffers()
        self._rgb = np.empty((0, 1, 1, 3), np.uint8)
        self._masks = np.empty((0, 1, 1), np.uint8)
        self._reduced = np.empty(0, np.uint8)
        self._pool = (
            ThreadPoolExecutor(settings.threads, "shardline-render")
            if settings.threads > 1
            else None
        )

    def __call__(
        self,
        images: npt.NDArray[np.int64],
        draws: AugmentationDraws,
        packed: npt.NDArray[np.int64] | None = None,
        aspect: npt.NDArray[np.float64] | None = None,
    ) -> Batch:
        """Render one batch of B samples, B >= 0.

        Args:
            images: (B, 4, 3): address, width, height of bg, fg_bg, mask and depth; all 0 for roles
                that the data set lacks. With ``packed``, fg_bg's and mask's addresses are set
                here.
            draws: Augmentation of the same samples.
            aspect: (B,) width by height of the pictures, if fg_bg was reduced already.
            packed: (B, 2) addresses of raw fg_bg and raw masks, all of one size.

        Returns:
            The batch; zeros for missing images.
        """
        if packed is not None:
            self._place_unpacked(images)
        settings, count = self._settings, len(images)
        area, width = settings.res.pixels, settings.res.width
        flat = self._buffers.take(count * sum(self._channels) * area)
        parts = torch.split(flat, [count * channels * area for channels in self._channels])
        outputs = tuple(
            part.view(count, channels * area).numpy()
            for part, channels in zip(parts, self._channels, strict=True)
        )
        stream = width % 16 == 0 and flat.nbytes > _STREAM_THRESHOLD
        sizes = reduced_sizes(images[:, :, 1:], settings.res)
        targets = self._reduced_addresses(images, sizes)
        warped = np.concatenate([np.where(targets, targets, images[:, :, 0])[..., None], sizes], 2)
        if aspect is None:
            aspect = images[:, 1, 1] / images[:, 1, 2]
        matrices = affine_matrices(draws.rotation, sizes, res=settings.res, aspect=aspect)
        thresholds = np.where(targets[:, 2], HALF, settings.threshold).astype(np.float32)

        def render_range(first: int, last: int) -> None:
            if packed is not None:
                unpack(packed, self._rgb, self._masks, first, last)
            if targets.any():
                reduce_images(
                    images,
                    sizes,
                    targets,
                    settings.threshold,
                    settings.depth_bits == 16,
                    self._invalid,
                    first,
                    last,
                )
            render(
                warped, matrices, draws.colour, draws.noise, draws.place, self._noise,
                settings.normal, thresholds, settings.depth_bits, self._invalid, settings.augment,
                settings.channels_last, stream, width, outputs, first, last,
            )  # fmt: skip

        parallel = min(settings.threads, max(count, 1))
        bounds = np.linspace(0, count, parallel + 1).astype(int).tolist()
        if self._pool is None or parallel == 1:
            render_range(0, count)
        else:
            list(self._pool.map(render_range, bounds[:-1], bounds[1:]))
        found = {
            role: self._as_images(part, channels)
            for role, part, channels in zip(ROLES, parts[:-1], self._channels[:-1], strict=True)
            if channels
        }
        known = parts[-1].view(-1, 1, *settings.res) > 0
        return fill(found, count, settings, dict.fromkeys(settings.invalid, known))

    def _place_unpacked(self, images: npt.NDArray[np.int64]) -> None:
        """Allocate memory for a batch of unpacked images, and set their addresses in ``images``."""
        count = len(images)
        if len(self._rgb) < count:
            (wide, high), (width, height) = images[0, 1, 1:].tolist(), images[0, 2, 1:].tolist()
            self._rgb = np.empty((count, high, wide, 3), np.uint8)
            self._masks = np.empty((count, height, width), np.uint8)
        places = [(1, self._rgb)] + ([(2, self._masks)] if self._masks.size else [])
        for column, memory in places:
            first, stride = memory.__array_interface__["data"][0], memory.strides[0]
            images[:, column, 0] = first + stride * np.arange(count)

    def _reduced_addresses(
        self, images: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Allocate memory for the images that are reduced; return (B, 4) addresses, or 0."""
        pixels = np.array([3, 3, 1, self._settings.depth_bits // 8]) * sizes.prod(2)
        smaller = (images[:, :, 1:] != sizes).any(2)
        # `render` reads up to 8 bytes from a pixel on.
        lengths = np.where(smaller, pixels + -pixels % _ALIGNMENT + _ALIGNMENT, 0)
        if len(self._reduced) < (total := int(lengths.sum())):
            self._reduced = np.empty(total, np.uint8)
        start = self._reduced.__array_interface__["data"][0]
        ends = lengths.cumsum().reshape(lengths.shape)
        return np.where(smaller, start + ends - lengths, 0)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _as_images(self, part: torch.Tensor, channels: int) -> torch.Tensor:
        """Return a part as (B, C, H, W) in the renderer's dtype and memory order."""
        size, dtype = self._settings.res, self._settings.dtype
        if self._settings.channels_last:
            return part.view(-1, *size, channels).permute(0, 3, 1, 2).to(dtype)
        return part.view(-1, channels, *size).to(dtype)
