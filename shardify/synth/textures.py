"""Generate noise and patterns as int16 planes.

Uses integers and Pillow's fixed-point resize only: the last bit of a sine or of a sum of floats may
differ between processors, and these planes must not.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.int16]
"""(height, width) int16."""


def random_numbers(seed: int, kind: int, index: int) -> np.random.Generator:
    """Return the generator of one picture; different arguments give independent generators.

    Args:
        seed: In [0, 2**64).
        kind: Number of the family of pictures; in [0, 2**16).
        index: Number of the picture in its family; in [0, 2**48).
    """
    key = np.array([seed, kind << 48 | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def noise(rng: np.random.Generator, width: int, height: int, cell: int, *, flat: int = 1) -> Plane:
    """Return smooth noise, -128 to 127, whose grains are ``cell`` pixels high.

    Args:
        rng: Random generator.
        width: Pixels.
        height: Pixels.
        cell: Height of a grain. Pixels; 1 is white noise.
        flat: How many times as wide as high a grain is.
    """
    across, down = width // (cell * flat) + 2, height // cell + 2
    grid = rng.integers(0, 256, (down, across), np.uint8)
    if cell == 1 and flat == 1:
        return grid[:height, :width].astype(np.int16) - 128
    picture = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture).astype(np.int16) - 128


def turbulence(
    rng: np.random.Generator, width: int, height: int, cell: int, *, flat: int = 1
) -> Plane:
    """Return noise of grains of ``cell`` pixels and of finer, weaker ones; within ±224."""
    total = np.zeros((height, width), np.int16)
    for octave in range(3):
        size = cell >> (2 * octave)
        if size:
            total += noise(rng, width, height, size, flat=flat) >> octave
    return total


def stripes(width: int, height: int, period: int, *, slope: tuple[int, int]) -> Plane:
    """Return bars of 0 and 1, ``period`` pixels from bar to bar along the direction ``slope``."""
    x, y = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    return (((x * slope[0] + y * slope[1]) // (period * 2)) & 1).astype(np.int16)


def checks(width: int, height: int, period: int) -> Plane:
    """Return a chessboard of 0 and 1 with squares of ``period`` pixels."""
    x, y = np.arange(width), np.arange(height)[:, None]
    return ((x // period + y // period) & 1).astype(np.int16)


def dots(width: int, height: int, period: int) -> Plane:
    """Return discs of 1 on 0, ``period`` pixels apart, every other row set off by half."""
    x, y = np.arange(width), np.arange(height)[:, None]
    row = y // period
    dx = (x + (row & 1) * (period // 2)) % period - period // 2
    dy = y % period - period // 2
    inside: Plane = (dx * dx + dy * dy < period * period // 9).astype(np.int16)
    return inside
