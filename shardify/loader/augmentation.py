"""What is drawn for a sample: its angle, its colour change, its noise.

Pure functions on numbers. Every draw is a function of (seed, epoch, sample) alone, by the
counter-based generator Philox4x32-10: the same whatever the batch, the rank, the thread or the
device. This module touches no pixel.

One sample has one draw: the angle moves all four images; colour and noise change ``bg`` and
``fg_bg`` alike, and nothing else.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.loader.sampler import Indexes

__all__ = [
    "NOISE_MARGIN",
    "NOISE_UNIT",
    "Augmentation",
    "AugmentationDraws",
    "affine_matrices",
    "draw",
    "matrices",
    "no_augmentation",
    "noise_table",
    "philox",
]

NOISE_MARGIN = 256
"""The noise table is this much wider and higher than the image: as many places to crop it."""
NOISE_UNIT = 32
"""A noise table's value of 32 is one standard deviation."""

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

# NTSC: luma, then the plane in which a rotation turns the hue and a scale changes the saturation.
_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]], np.float64
)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How far the draws may go. All uniform between the bounds."""

    angle: float = 10.0
    """Rotation about the centre, up to this either way. Degrees, counter-clockwise positive."""

    shift: float = 20.0
    """RGB shift: each channel, up to this either way. Levels of 255."""

    hue: float = 18.0
    """HSV: turn of the hue, up to this either way. Degrees."""

    saturation: float = 0.3
    """HSV: saturation times 1 +- up to this."""

    value: float = 0.2
    """HSV: value times 1 +- up to this."""

    noise: float = 8.0
    """Gaussian noise: its standard deviation, from 0 to this. Levels of 255."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationDraws:
    """The draws of n samples."""

    angle: Floats
    """(n,) degrees."""

    turn: npt.NDArray[np.float64]
    """(n, 2, 3) that rotation of the unit square, see ``affine_matrices``."""

    colour: Floats
    """(n, 3, 4): red, green, blue in levels of 255 become ``colour[:, :3] @ rgb + colour[:, 3]``,
    clipped to [0, 255] once the noise is added."""

    noise: Floats
    """(n,) standard deviation in levels of 255."""

    place: npt.NDArray[np.int32]
    """(n, 2) row and column of the noise table where the crop begins; in [0, NOISE_MARGIN)."""

    def part(self, first: int, last: int) -> "AugmentationDraws":
        """Those of samples ``first`` to ``last``: views."""
        return AugmentationDraws(
            angle=self.angle[first:last],
            turn=self.turn[first:last],
            colour=self.colour[first:last],
            noise=self.noise[first:last],
            place=self.place[first:last],
        )


def draw(
    samples: Indexes, *, seed: int, epoch: int, augmentation: Augmentation | None = None
) -> AugmentationDraws:
    """Draw for some samples of one epoch.

    Half of the samples get an RGB shift, the others a change of hue, saturation and value. That
    change is the linear one (a turn and a scale in YIQ), not the conversion to HSV and back.

    Args:
        samples: (n,) indexes in the split.
        seed: In [0, 2**64).
        epoch: In [0, 2**32).
        augmentation: The bounds; the defaults if None.
    """
    limits = augmentation or Augmentation()
    low, high = _halves(np.asarray(samples, np.uint64))
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    epochs = np.full_like(low, epoch)
    first = philox((low, high, epochs, np.zeros_like(low)), key)
    second = philox((low, high, epochs, np.ones_like(low)), key)
    unit = [word.astype(np.float64) / 2**32 for word in (*first, *second)]
    even = [2 * value - 1 for value in unit]

    hsv = _hsv(even[2] * limits.hue, 1 + even[3] * limits.saturation, 1 + even[4] * limits.value)
    shift = np.zeros((len(low), 3, 4))
    shift[:, :, :3] = np.eye(3)
    shift[:, :, 3] = np.stack(even[2:5], axis=1) * limits.shift
    colour = np.where((unit[1] < 0.5)[:, None, None], shift, hsv)
    place = np.stack([second[1] >> np.uint64(8), second[1] >> np.uint64(20)], axis=1)
    angle = (even[0] * limits.angle).astype(np.float32)
    return AugmentationDraws(
        angle=angle,
        turn=_turns(angle),
        colour=colour.astype(np.float32),
        noise=(unit[6] * limits.noise).astype(np.float32),
        place=(place % np.uint64(NOISE_MARGIN)).astype(np.int32),
    )


def no_augmentation(count: int) -> AugmentationDraws:
    """Draws that change nothing: a plain resize."""
    colour = np.zeros((count, 3, 4), np.float32)
    colour[:, :, :3] = np.eye(3)
    angle = np.zeros(count, np.float32)
    return AugmentationDraws(
        angle=angle,
        turn=_turns(angle),
        colour=colour,
        noise=np.zeros(count, np.float32),
        place=np.zeros((count, 2), np.int32),
    )


def affine_matrices(turn: npt.NDArray[np.float64], sizes: npt.ArrayLike, *, res: int) -> Floats:
    """Where in the source each output pixel looks: resize and rotation as one matrix.

    Both images are the unit square; the output is that square turned about its centre. With pixel
    centres at half numbers, an output pixel (x, y) looks at ``M @ (x + 0.5, y + 0.5, 1) - 0.5`` in
    the source, a place in pixels.

    Args:
        turn: (n, 2, 3), as draws have it.
        sizes: (n, k, 2) width and height of k sources of each. Pixels.
        res: Output width and height. Pixels.

    Returns:
        (n, k, 2, 3) float32.
    """
    matrix = turn / np.array([res, res, 1.0])
    scaled: Floats = (matrix[:, None] * np.asarray(sizes)[..., None]).astype(np.float32)
    return scaled


def matrices(angle: Floats, *, width: npt.ArrayLike, height: npt.ArrayLike, res: int) -> Floats:
    """As ``affine_matrices``, for one source of each angle.

    Args:
        angle: (n,) degrees; a positive one turns what is seen counter-clockwise.
        width: Of the source. Pixels; one number or (n,).
        height: Likewise.
        res: Output width and height. Pixels.

    Returns:
        (n, 2, 3) float32.
    """
    wide, high = np.broadcast_to(width, angle.shape), np.broadcast_to(height, angle.shape)
    return affine_matrices(_turns(angle), np.stack([wide, high], axis=-1)[:, None], res=res)[:, 0]


def noise_table(res: int) -> npt.NDArray[np.int8]:
    """The fixed Gaussian noise that every sample's noise is a crop of.

    Args:
        res: Width and height of the image. Pixels.

    Returns:
        (3, res + NOISE_MARGIN, res + NOISE_MARGIN) int8, in steps of 1/NOISE_UNIT standard
        deviation; cut at almost 4 of them.
    """
    side = res + NOISE_MARGIN
    raw = np.random.Philox(key=[0x5EED, 0]).random_raw(3 * side * side)
    low, high = _halves(raw)
    # Box and Muller: one normal number from two uniform ones, the first never 0.
    radius = np.sqrt(-2 * np.log((low + np.float64(1)) / 2**32))
    normal = radius * np.cos(2 * np.pi / 2**32 * high)
    levels: npt.NDArray[np.int8] = np.rint(normal * NOISE_UNIT).clip(-127, 127).astype(np.int8)
    return levels.reshape(3, side, side)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> list[Words]:
    """Philox4x32-10: four random words for each counter.

    Args:
        counter: Four arrays of 32-bit words, each in a uint64.
        key: Two 32-bit words.

    Returns:
        Four arrays of 32-bit words, each in a uint64.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    a, b, c, d = counter
    first, second = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, c = right >> _32 ^ b ^ np.uint64(first), left >> _32 ^ d ^ np.uint64(second)
        b, d = right & low, left & low
        first, second = (first + 0x9E3779B9) & 0xFFFFFFFF, (second + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


_32 = np.uint64(32)


def _turns(angle: Floats) -> npt.NDArray[np.float64]:
    """Rotations of the unit square about its centre; angles in degrees."""
    radians = np.deg2rad(angle.astype(np.float64))
    cos, sin = np.cos(radians), np.sin(radians)
    rows = [cos, -sin, (1 - cos + sin) / 2, sin, cos, (1 - sin - cos) / 2]
    return np.stack(rows, axis=-1).reshape(-1, 2, 3)


def _halves(words: Words) -> tuple[Words, Words]:
    return words & np.uint64(0xFFFFFFFF), words >> _32


def _hsv(
    hue: npt.NDArray[np.float64],
    saturation: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """(n, 3, 4) colour matrices; hue in degrees."""
    radians = np.deg2rad(hue)
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(radians) * saturation
    turn[:, 1, 2] = -np.sin(radians) * saturation
    turn[:, 2, 1] = -turn[:, 1, 2]
    colour = np.zeros((len(hue), 3, 4))
    colour[:, :, :3] = value[:, None, None] * (_FROM_YIQ @ turn @ _TO_YIQ)
    return colour
