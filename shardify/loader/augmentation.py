"""Random augmentation of each sample: rotation angle, colour change and noise.

The random numbers depend on (seed, epoch, sample) only, by the counter-based generator
Philox4x32-10. They do not depend on the batch, the rank, the thread or the device.

One sample has one set of random numbers. The rotation applies to all four images. Colour and noise
apply equally to ``bg`` and ``fg_bg``, and to no other image.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from shardify.loader.sampler import Indexes
from shardify.resolution import ResolutionLike, resolution

NOISE_MARGIN = 256
"""Pixels by which the noise table is wider and higher than the image; crops start within them."""
NOISE_UNIT = 32
"""Value in the noise table that stands for one standard deviation."""

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

# NTSC YIQ: luma, then the I-Q plane, where a rotation changes the hue and a scale the saturation.
_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]], np.float64
)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Bounds of the random augmentation. All values are uniform between the bounds."""

    angle: float = 10.0
    """Largest rotation about the centre, in both directions, in the image's own pixels. Degrees."""

    shift: float = 20.0
    """Largest RGB shift of each channel, up and down. Levels of 255."""

    hue: float = 18.0
    """Largest change of the hue, in both directions. Degrees."""

    saturation: float = 0.3
    """The saturation is multiplied by 1 +- up to this."""

    value: float = 0.2
    """The value (HSV) is multiplied by 1 +- up to this."""

    noise: float = 8.0
    """Largest standard deviation of the Gaussian noise. Levels of 255."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationDraws:
    """Random augmentation values of n samples."""

    angle: Floats
    """(n,) degrees, counter-clockwise positive."""

    rotation: npt.NDArray[np.float64]
    """(n, 2, 3) the rotation by ``angle`` of a square picture on the unit square; see
    ``affine_matrices``."""

    colour: Floats
    """(n, 3, 4): red, green, blue in levels of 255 become ``colour[:, :3] @ rgb + colour[:, 3]``,
    clipped to [0, 255] once the noise is added."""

    noise: Floats
    """(n,) standard deviation in levels of 255."""

    place: npt.NDArray[np.int32]
    """(n, 2) row and column of the noise table where the crop begins; in [0, NOISE_MARGIN)."""

    def part(self, first: int, last: int) -> "AugmentationDraws":
        """Return views of the values of samples ``first`` to ``last``."""
        return AugmentationDraws(
            **{each.name: getattr(self, each.name)[first:last] for each in fields(self)}
        )


def draw(
    samples: Indexes, *, seed: int, epoch: int, augmentation: Augmentation | None = None
) -> AugmentationDraws:
    """Draw the augmentation of some samples of one epoch.

    Half of the samples get an RGB shift, the others a change of hue, saturation and value. That
    change is linear (a rotation and a scale in YIQ), not a conversion to HSV and back.

    Args:
        samples: (n,) indexes in the split.
        seed: In [0, 2**64).
        epoch: In [0, 2**32).
        augmentation: Bounds; None: the defaults.
    """
    limits = augmentation or Augmentation()
    low, high = _split_words(np.asarray(samples, np.uint64))
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    epochs = np.full_like(low, epoch)
    first = philox((low, high, epochs, np.zeros_like(low)), key)
    second = philox((low, high, epochs, np.ones_like(low)), key)
    unit = [word.astype(np.float64) / 2**32 for word in (*first, *second)]
    even = [2 * value - 1 for value in unit]

    hsv = _hsv_matrices(
        even[2] * limits.hue, 1 + even[3] * limits.saturation, 1 + even[4] * limits.value
    )
    shift = np.zeros((len(low), 3, 4))
    shift[:, :, :3] = np.eye(3)
    shift[:, :, 3] = np.stack(even[2:5], axis=1) * limits.shift
    colour = np.where((unit[1] < 0.5)[:, None, None], shift, hsv)
    place = np.stack([second[1] >> np.uint64(8), second[1] >> np.uint64(20)], axis=1)
    angle = (even[0] * limits.angle).astype(np.float32)
    return AugmentationDraws(
        angle=angle,
        rotation=rotations(angle),
        colour=colour.astype(np.float32),
        noise=(unit[6] * limits.noise).astype(np.float32),
        place=(place % np.uint64(NOISE_MARGIN)).astype(np.int32),
    )


def no_augmentation(count: int) -> AugmentationDraws:
    """Return values that change nothing but the size."""
    colour = np.zeros((count, 3, 4), np.float32)
    colour[:, :, :3] = np.eye(3)
    angle = np.zeros(count, np.float32)
    return AugmentationDraws(
        angle=angle,
        rotation=rotations(angle),
        colour=colour,
        noise=np.zeros(count, np.float32),
        place=np.zeros((count, 2), np.int32),
    )


def rotations(angle: Floats) -> npt.NDArray[np.float64]:
    """Return rotations of the unit square about its centre: (n, 2, 3).

    Args:
        angle: (n,) degrees; positive: the image content turns counter-clockwise.
    """
    radians = np.deg2rad(angle.astype(np.float64))
    cos, sin = np.cos(radians), np.sin(radians)
    rows = [cos, -sin, (1 - cos + sin) / 2, sin, cos, (1 - sin - cos) / 2]
    return np.stack(rows, axis=-1).reshape(-1, 2, 3)


def affine_matrices(
    rotation: npt.NDArray[np.float64],
    sizes: npt.ArrayLike,
    *,
    res: ResolutionLike,
    aspect: npt.ArrayLike = 1.0,
) -> Floats:
    """Return output-to-source matrices that combine resize and rotation.

    Both images are mapped to the unit square. The output is the source rotated about its centre in
    its own pixels, then stretched. With pixel centres at half numbers, an output pixel (x, y)
    samples the source at ``M @ (x + 0.5, y + 0.5, 1) - 0.5``, in pixels.

    Args:
        rotation: (n, 2, 3), ``AugmentationDraws.rotation``.
        sizes: (n, k, 2) width and height of k source images a sample. Pixels.
        res: Output resolution. Pixels.
        aspect: Width by height of the picture that is rotated: of each sample (n,), or of all.

    Returns:
        (n, k, 2, 3) float32.
    """
    height, width = resolution(res)
    matrix = _in_pixels(rotation, np.asarray(aspect)) / np.array([width, height, 1.0])
    scaled: Floats = (matrix[:, None] * np.asarray(sizes)[..., None]).astype(np.float32)
    return scaled


def _in_pixels(
    rotation: npt.NDArray[np.float64], aspect: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the map of the unit square that does ``rotation`` in pixels of a picture's aspect.

    The map acts about the centre; a shift stays the same share of the picture.
    """
    if (aspect == 1).all():
        return rotation
    turned = rotation.copy()
    turned[:, 0, 1] /= aspect
    turned[:, 1, 0] *= aspect
    turned[:, 0, 2] += (rotation[:, 0, 1] - turned[:, 0, 1]) / 2
    turned[:, 1, 2] += (rotation[:, 1, 0] - turned[:, 1, 0]) / 2
    return turned


def noise_table(res: ResolutionLike) -> npt.NDArray[np.int8]:
    """Return the fixed Gaussian noise from which each sample's noise is cropped.

    Args:
        res: Resolution of the image. Pixels.

    Returns:
        (3, height + NOISE_MARGIN, width + NOISE_MARGIN) int8, in steps of 1/NOISE_UNIT standard
        deviation; clipped at almost 4 standard deviations.
    """
    height, width = (side + NOISE_MARGIN for side in resolution(res))
    raw = np.random.Philox(key=[0x5EED, 0]).random_raw(3 * height * width)
    low, high = _split_words(raw)
    # Box-Muller: one normal number from two uniform ones; the first is never 0.
    radius = np.sqrt(-2 * np.log((low + np.float64(1)) / 2**32))
    normal = radius * np.cos(2 * np.pi / 2**32 * high)
    levels: npt.NDArray[np.int8] = np.rint(normal * NOISE_UNIT).clip(-127, 127).astype(np.int8)
    return levels.reshape(3, height, width)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> list[Words]:
    """Return four random words for each counter: Philox4x32-10.

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


def _split_words(words: Words) -> tuple[Words, Words]:
    """Split 64-bit words into their low and high 32 bits."""
    return words & np.uint64(0xFFFFFFFF), words >> _32


def _hsv_matrices(
    hue: npt.NDArray[np.float64],
    saturation: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return (n, 3, 4) colour matrices; hue in degrees."""
    radians = np.deg2rad(hue)
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(radians) * saturation
    turn[:, 1, 2] = -np.sin(radians) * saturation
    turn[:, 2, 1] = -turn[:, 1, 2]
    colour = np.zeros((len(hue), 3, 4))
    colour[:, :, :3] = value[:, None, None] * (_FROM_YIQ @ turn @ _TO_YIQ)
    return colour
