"""Pictures that belong together: backgrounds, composites that are their background, masks."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 24
"""Of composites and masks. Pixels."""

_GROUND = 16
"""Rows in which the background shows; whole blocks of JPEG, so that no object bleeds into them."""


def encoded(plane: "npt.NDArray[np.uint8] | Image.Image", kind: str) -> bytes:
    """A file of this format."""
    image = plane if isinstance(plane, Image.Image) else Image.fromarray(plane)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """(H, W, 3): as a size has them, the width comes first."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)


def scene(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A background: smooth patches of colour, others for each number."""
    return Image.fromarray(noise(number, (5, 4))).resize(size, Image.Resampling.BICUBIC)


def background(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """The same, as a JPEG."""
    return encoded(scene(number, size), "JPEG")


def composite(seed: int, back: int) -> bytes:
    """A JPEG: the background, squashed, with an object of noise over its lowest third."""
    plane = noise(seed)
    plane[:_GROUND] = np.asarray(scene(back).resize((SIDE, SIDE)))[:_GROUND]
    return encoded(plane, "JPEG")


def mask(seed: int) -> bytes:
    """A JPEG: where that object is, in a shade that differs by seed; 0 elsewhere."""
    return flat_mask(255 - seed % 90, "JPEG")


def flat_mask(level: int, kind: str = "PNG") -> bytes:
    """The same with one value for the object."""
    plane = np.zeros((SIDE, SIDE), np.uint8)
    plane[_GROUND:] = level
    return encoded(plane, kind)


def depth(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of gray noise."""
    return encoded(Image.fromarray(noise(seed, size)).convert("L"), "PNG")
