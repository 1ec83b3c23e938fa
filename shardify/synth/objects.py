"""Draw synthetic objects to paste on a scene: colours, a shape with a soft edge, and relief.

Shapes are blobs, polygons, figures, animals, cars and plants. Some have stripes or dots; some show
a piece of the scene itself as camouflage.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from shardify.synth.textures import checks, dots, noise, random_numbers, stripes, turbulence

CANVAS = 256
"""Height and width of a cutout. Pixels."""

_CUTOUTS = 2
_FINE = 3
"""Shapes are drawn this many times larger, so that their edges are soft once reduced."""

# cos(2 pi k / 64) in 1/1024, written out: no libm may round them differently.
_QUARTER = (1024, 1019, 1004, 980, 946, 903, 851, 792, 724, 650, 569, 483, 392, 297, 200, 100, 0)
_HALF = (*_QUARTER, *(-value for value in _QUARTER[-2::-1]))
_COSINE = (*_HALF, *_HALF[-2:0:-1])

Points = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutout:
    """One foreground."""

    colour: npt.NDArray[np.uint8]
    """(CANVAS, CANVAS, 3) RGB."""

    alpha: npt.NDArray[np.uint8]
    """(CANVAS, CANVAS); 255 is the object."""

    bulge: npt.NDArray[np.uint8]
    """(CANVAS, CANVAS); how much nearer than its rim the object is there. At most about 12."""

    camouflage: int
    """How much of the scene shows on its surface. Of 256."""

    area: int
    """Size it should have in a picture. Thousandths of the picture."""


def make_cutout(seed: int, index: int) -> Cutout:
    """Draw foreground number ``index``; the same arguments give the same cutout."""
    rng = random_numbers(seed, _CUTOUTS, index)
    fine = Image.new("L", (CANVAS * _FINE, CANVAS * _FINE))
    _SHAPES[index % len(_SHAPES)](rng, ImageDraw.Draw(fine))
    box = fine.getbbox() or (0, 0, *fine.size)
    alpha = _fit(fine.crop(box)).filter(ImageFilter.BoxBlur(1))
    blur = ImageFilter.BoxBlur(CANVAS // 12)
    rounded = np.asarray(alpha.filter(blur).filter(blur))
    camouflage = (0, 0, 0, 0, 0, 80, 140, 200)[int(rng.integers(8))]
    bulge = rounded.astype(np.int16) * int(rng.integers(5, 13)) // 255
    return Cutout(
        colour=_surface(rng, rounded),
        alpha=np.asarray(alpha),
        bulge=bulge.astype(np.uint8),
        camouflage=camouflage,
        area=int(rng.integers(110, 390)),
    )


def _fit(picture: Image.Image) -> Image.Image:
    """Scale a cropped shape to fill the canvas but for a margin that its soft edge needs."""
    room = CANVAS - 8
    longer = max(picture.size)
    width, height = (max(1, side * room // longer) for side in picture.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    small = picture.resize((width, height), Image.Resampling.BOX)
    canvas.paste(small, ((CANVAS - width) // 2, CANVAS - 4 - height))
    return canvas


def _surface(rng: np.random.Generator, rounded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Draw two colours in a pattern, rough, darker towards the rim and the lower right."""
    one, two = rng.integers(20, 236, (2, 3)).astype(np.int32)
    period = int(rng.integers(14, 48))
    kind = int(rng.integers(8))
    if kind == 0:
        slope = (int(rng.integers(-3, 4)), int(rng.integers(1, 4)))
        choice = stripes(CANVAS, CANVAS, period, slope=slope)
    elif kind == 1:
        choice = checks(CANVAS, CANVAS, period)
    elif kind == 2:
        choice = dots(CANVAS, CANVAS, period)
    elif kind == 3:
        choice = (turbulence(rng, CANVAS, CANVAS, period) > 10).astype(np.int16)
    else:
        choice = np.zeros((CANVAS, CANVAS), np.int16)
        two = one
    colour = np.where(choice[..., None] == 1, two, one)
    rough = turbulence(rng, CANVAS, CANVAS, int(rng.integers(4, 24))).astype(np.int32)
    rough += noise(rng, CANVAS, CANVAS, 2) >> 1
    colour = colour + rough[..., None] * int(rng.integers(6, 40)) // 128
    across = np.arange(CANVAS, dtype=np.int32)
    slant = (CANVAS - across - across[:, None]) // 8
    shade = 190 + rounded.astype(np.int32) // 4 + slant
    lit: npt.NDArray[np.uint8] = np.clip(colour * shade[..., None] >> 8, 0, 255).astype(np.uint8)
    return lit


def _ring(rng: np.random.Generator, corners: int, rough: int) -> Points:
    """Return points around a centre whose distance varies by up to ``rough`` thousandths."""
    middle, reach = CANVAS * _FINE // 2, CANVAS * _FINE * 45 // 100
    points = []
    for corner in range(corners):
        turn = corner * 64 // corners
        length = reach * (1000 - int(rng.integers(0, rough + 1))) // 1000
        x = middle + length * _COSINE[turn] // 1024
        y = middle + length * _COSINE[(turn - 16) % 64] // 1024
        points.append((x, y))
    return points


def _rounded(points: Points, times: int = 3) -> Points:
    """Round the corners: Chaikin's algorithm, ``times`` iterations."""
    for _ in range(times):
        cut: Points = []
        for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True):
            cut += [((3 * x + u) // 4, (3 * y + v) // 4), ((x + 3 * u) // 4, (y + 3 * v) // 4)]
        points = cut
    return points


def _blob(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    pen.polygon(_rounded(_ring(rng, int(rng.integers(6, 14)), 520)), fill=255)


def _polygon(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    pen.polygon(_ring(rng, int(rng.integers(3, 9)), 260), fill=255)


def _star(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    points = _ring(rng, 2 * int(rng.integers(4, 9)), 60)
    middle, deep = CANVAS * _FINE // 2, int(rng.integers(450, 750))
    for corner in range(1, len(points), 2):
        x, y = points[corner]
        points[corner] = (
            middle + (x - middle) * deep // 1000,
            middle + (y - middle) * deep // 1000,
        )
    pen.polygon(points, fill=255)


def _hoop(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    _blob(rng, pen)
    middle, hole = CANVAS * _FINE // 2, CANVAS * _FINE * int(rng.integers(8, 17)) // 100
    pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)


def _figure(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Draw a person: head, trunk, two arms and two legs, each at its own angle."""
    unit = CANVAS * _FINE // 64
    middle = 32 * unit
    broad = int(rng.integers(6, 10))
    hip = (middle, 36 * unit)
    pen.ellipse((middle - 5 * unit, 2 * unit, middle + 5 * unit, 13 * unit), fill=255)
    trunk = [(middle - broad * unit, 14 * unit), (middle + broad * unit, 14 * unit)]
    waist = int(rng.integers(5, 8)) * unit
    trunk += [(hip[0] + waist, 38 * unit), (hip[0] - waist, 38 * unit)]
    pen.polygon(_rounded(trunk, 2), fill=255)
    for side in (-1, 1):
        shoulder = (middle + side * (broad - 1) * unit, 17 * unit)
        elbow_x = shoulder[0] + side * int(rng.integers(1, 10)) * unit
        elbow = (elbow_x, int(rng.integers(12, 30)) * unit)
        hand = (elbow[0] + side * int(rng.integers(-3, 7)) * unit,
                elbow[1] + int(rng.integers(-9, 12)) * unit)  # fmt: skip
        pen.line([shoulder, elbow, hand], fill=255, width=5 * unit, joint="curve")
        knee = (middle + side * int(rng.integers(3, 9)) * unit, 48 * unit)
        foot = (knee[0] + side * int(rng.integers(-2, 5)) * unit, 62 * unit)
        leg = [(hip[0] + side * 3 * unit, hip[1]), knee, foot]
        pen.line(leg, fill=255, width=6 * unit, joint="curve")


def _animal(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Draw a long body on four legs with head, ears and tail."""
    unit = CANVAS * _FINE // 64
    back, belly = int(rng.integers(18, 26)), int(rng.integers(40, 48))
    pen.ellipse((12 * unit, back * unit, 52 * unit, belly * unit), fill=255)
    head = (back - int(rng.integers(2, 12))) * unit
    pen.ellipse((44 * unit, head, 62 * unit, head + 14 * unit), fill=255)
    pen.polygon([(48 * unit, head + 4 * unit), (50 * unit, head - 6 * unit),
                 (54 * unit, head + 3 * unit)], fill=255)  # fmt: skip
    for x in (17, 25, 39, 46):
        foot = (x + int(rng.integers(-3, 4))) * unit
        pen.line([(x * unit, 36 * unit), (foot, 61 * unit)], fill=255, width=5 * unit)
    tip = (int(rng.integers(1, 10)) * unit, int(rng.integers(8, 40)) * unit)
    pen.line([(14 * unit, 30 * unit), tip], fill=255, width=3 * unit)


def _car(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Draw a body with a cabin on two wheels."""
    unit = CANVAS * _FINE // 64
    front, rear = int(rng.integers(12, 22)), int(rng.integers(42, 54))
    top, deck = int(rng.integers(8, 20)), int(rng.integers(26, 32))
    pen.polygon(_rounded([(2 * unit, deck * unit), (62 * unit, deck * unit),
                          (63 * unit, 50 * unit), (1 * unit, 50 * unit)], 1), fill=255)  # fmt: skip
    pen.polygon([(front * unit, (deck + 2) * unit), ((front + 6) * unit, top * unit),
                 ((rear - 4) * unit, top * unit), (rear * unit, (deck + 2) * unit)],
                fill=255)  # fmt: skip
    for x in (15, 48):
        pen.ellipse(((x - 8) * unit, 42 * unit, (x + 8) * unit, 58 * unit), fill=255)


def _plant(rng: np.random.Generator, pen: ImageDraw.ImageDraw) -> None:
    """Draw a stem with leaves to both sides, in a pot."""
    unit = CANVAS * _FINE // 64
    pen.line([(32 * unit, 52 * unit), (32 * unit, 8 * unit)], fill=255, width=3 * unit)
    for height in range(10, 46, int(rng.integers(6, 10))):
        for side in (-1, 1):
            reach = int(rng.integers(12, 28)) * unit * side
            low, high = (height + 3) * unit, (height + int(rng.integers(-10, 4))) * unit
            root, tip = (32 - 5 * side) * unit, 32 * unit + reach
            bend = 32 * unit + reach * 2 // 3
            leaf = [(root, low), (bend, high - 3 * unit), (tip, high), (bend, low + 5 * unit)]
            pen.polygon(_rounded(leaf, 2), fill=255)
    pen.polygon([(20 * unit, 48 * unit), (44 * unit, 48 * unit),
                 (40 * unit, 63 * unit), (24 * unit, 63 * unit)], fill=255)  # fmt: skip


_SHAPES: tuple[Callable[[np.random.Generator, ImageDraw.ImageDraw], None], ...] = (
    _blob, _figure, _polygon, _animal, _hoop, _car, _star, _plant, _blob, _figure,
)  # fmt: skip
