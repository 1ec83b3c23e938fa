"""Render samples with Pillow and NumPy: the reference of the benchmark and the tests.

The augmentation is the loader's own: same random values, same matrices, same noise table.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from shardify.dataset.manifest import Manifest
from shardify.loader.augmentation import (
    NOISE_UNIT,
    Augmentation,
    AugmentationDraws,
    affine_matrices,
    draw,
    no_augmentation,
    noise_table,
)
from shardify.loader.reduction import HALF, reduced_sizes
from shardify.loader.shards import background_payloads
from shardify.resolution import ResolutionLike, resolution

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def warp(image: Array, matrix: Array, res: ResolutionLike) -> npt.NDArray[np.float64]:
    """Bilinear interpolation in plain NumPy, the nearest edge pixel outside: the definition.

    Args:
        image: (H, W) or (H, W, C).
        matrix: (2, 3), from ``augmentation.affine_matrices``.
        res: Output resolution. Pixels.

    Returns:
        (*res,) or (*res, C), in the image's levels.
    """
    height, width = image.shape[:2]
    rows, columns = resolution(res)
    y, x = np.mgrid[:rows, :columns] + 0.5
    a = np.asarray(matrix, np.float64)
    across = (a[0, 0] * x + a[0, 1] * y + a[0, 2] - 0.5).clip(0, width - 1)
    down = (a[1, 0] * x + a[1, 1] * y + a[1, 2] - 0.5).clip(0, height - 1)
    left, top = across.astype(int), down.astype(int)
    right, low = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    u, v = across - left, down - top
    if image.ndim == 3:
        u, v = u[..., None], v[..., None]
    levels = image.astype(np.float64)
    upper = levels[top, left] * (1 - u) + levels[top, right] * u
    lower = levels[low, left] * (1 - u) + levels[low, right] * u
    return np.asarray(upper * (1 - v) + lower * v)


def open_image(data: bytes, mode: str) -> Image.Image:
    """Decode one image with Pillow; ``mode`` is RGB, L, or I;16 for what is left as it is."""
    image = Image.open(io.BytesIO(data))
    return image if mode == "I;16" else image.convert(mode)


def reduced(image: Image.Image, res: ResolutionLike) -> Image.Image:
    """Resize with antialiasing what is much larger than the output, as the loader does."""
    width, height = reduced_sizes(image.size, res).tolist()
    if (width, height) == image.size:
        return image
    if image.mode != "I;16":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    levels = Image.fromarray(np.asarray(image, np.float32))
    small = levels.resize((width, height), Image.Resampling.BILINEAR)
    return Image.fromarray(np.rint(np.asarray(small)).astype(np.uint16))


class PillowRenderer:
    """One sample at a time: decoded images in, a batch's planes out."""

    def __init__(self, folder: Path, *, res: ResolutionLike, augment: bool = True) -> None:
        """Read the manifest and decode the backgrounds once."""
        self.manifest = Manifest.load(folder)
        self.res = resolution(res)
        self.augment = augment
        width, height, _ = self.manifest.roles["fg_bg"].sizes[0]
        self.backgrounds = [
            open_image(payload.tobytes(), "RGB").resize((width, height), Image.Resampling.BILINEAR)
            for payload in background_payloads(folder, self.manifest)
        ]
        self.threshold: float = self.manifest.roles["mask"].threshold or 128
        self.depth_levels = 2 ** self.manifest.roles["depth"].bits - 1
        self.invalid = self.manifest.roles["depth"].invalid
        self.noise = noise_table(res)
        self.normal = {role: self._normal(role) for role in ("bg", "fg_bg")}

    def draws(self, index: int, *, seed: int, epoch: int) -> AugmentationDraws:
        """The draws of one sample, as the loader makes them."""
        if not self.augment:
            return no_augmentation(1)
        return draw(np.array([index]), seed=seed, epoch=epoch, augmentation=Augmentation())

    def __call__(
        self,
        fg_bg: Image.Image,
        mask: Image.Image,
        depth: Image.Image,
        background: int,
        draws: AugmentationDraws,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Render one sample.

        ``fg_bg`` is RGB, ``mask`` L, ``depth`` L or I;16; ``draws`` are of this one sample.

        Returns:
            bg, fg_bg (3, H, W), mask, depth (1, H, W) float32.
        """
        aspect = fg_bg.width / fg_bg.height
        bg = self.picture(self.backgrounds[background], draws, "bg", aspect)
        threshold = self.threshold
        binary = mask.point(lambda level: 255 * (level >= self.threshold))
        if (smaller := reduced(binary, self.res)).size != mask.size:
            mask, threshold = smaller, HALF
        seen = np.asarray(self.moved(mask, draws, aspect))
        far = self.moved_depth(depth, draws, aspect) / self.depth_levels
        return (
            bg,
            self.picture(fg_bg, draws, "fg_bg", aspect),
            (seen >= threshold).astype(np.float32)[None],
            far[None],
        )

    def encoded(self, files: Mapping[str, bytes], draws: AugmentationDraws) -> tuple[Floats, ...]:
        """Decode and render one sample.

        ``files`` has fg_bg, mask and depth as image files, bg as the digits of its index.
        """
        return self(
            open_image(files["fg_bg"], "RGB"),
            open_image(files["mask"], "L"),
            open_image(files["depth"], "L" if self.depth_levels == 255 else "I;16"),
            int(files["bg"]),
            draws,
        )

    def _normal(self, role: str) -> tuple[Floats, Floats]:
        """Scale and shift of the channels, from levels of 255 to normalised."""
        stats = self.manifest.stats[role]
        mean, std = np.array(stats.mean).reshape(3, 1, 1), np.array(stats.std).reshape(3, 1, 1)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def moved(self, image: Image.Image, draws: AugmentationDraws, aspect: float) -> Image.Image:
        """Resize and rotation in one; black outside, as Pillow has it."""
        image = reduced(image, self.res)
        sizes = [[image.size]]
        matrix = affine_matrices(draws.rotation, sizes, res=self.res, aspect=aspect)[0, 0]
        return image.transform(
            self.res[::-1],
            Image.Transform.AFFINE,
            matrix.ravel().tolist(),
            Image.Resampling.BILINEAR,
        )

    def moved_depth(self, image: Image.Image, draws: AugmentationDraws, aspect: float) -> Floats:
        """Resize and rotation of a depth map, in levels; invalid pixels are 0 and do not bleed."""
        if self.invalid is None:
            return np.asarray(self.moved(image, draws, aspect), np.float32)
        levels = np.asarray(image, np.float32)
        valid = levels != self.invalid
        moves: tuple[Callable[[Image.Image], Image.Image], ...] = (
            lambda part: reduced(part, self.res),
            lambda part: self.moved(part, draws, aspect),
        )
        for move in moves:
            total, weight = (
                np.asarray(move(Image.fromarray(part.astype(np.float32))))
                for part in (np.where(valid, levels, 0), valid)
            )
            valid = weight > 0.5
            levels = np.where(valid, total / np.maximum(weight, 0.5), 0)
        return levels

    def picture(
        self, image: Image.Image, draws: AugmentationDraws, role: str, aspect: float
    ) -> Floats:
        """Warp, colour, noise, normalise: (3, H, W) float32."""
        moved = self.moved(image, draws, aspect)
        if self.augment:
            # Pillow's own colour matrix: rounds to whole levels and clips.
            moved = moved.convert("RGB", tuple(draws.colour[0].ravel().tolist()))
        planes = np.asarray(moved).transpose(2, 0, 1).astype(np.float32, order="C")
        if self.augment:
            (row, column), (height, width) = draws.place[0], self.res
            grain = self.noise[:, row : row + height, column : column + width]
            strength = np.float32(float(draws.noise[0]) / NOISE_UNIT)
            planes += grain * strength
            np.clip(planes, 0, 255, out=planes)
        scale, shift = self.normal[role]
        planes *= scale
        planes += shift
        return planes
