"""Three pictures that are painted on together: colour, nearness, roughness.

Flat shapes and random shades of a palette; what they add up to is for ``scenes`` to say.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["FAR", "Canvas", "Colour", "Palette", "clip"]

FAR = 20
"""Nearness of the sky. Of 255."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """The colours of one season and hour."""

    sky: tuple[Colour, Colour]
    """At the top, at the horizon."""
    ground: tuple[Colour, Colour]
    """Far, near."""
    leaves: tuple[Colour, ...]
    path: Colour


_PALETTES = (
    Palette(sky=((84, 140, 205), (196, 216, 232)), ground=((118, 148, 72), (72, 108, 40)),
             leaves=((54, 92, 38), (78, 118, 46), (40, 70, 34)), path=(176, 160, 132)),
    Palette(sky=((150, 160, 172), (208, 208, 204)), ground=((132, 132, 88), (90, 92, 52)),
             leaves=((172, 112, 40), (196, 146, 52), (134, 74, 36)), path=(140, 120, 104)),
    Palette(sky=((78, 70, 118), (238, 170, 116)), ground=((110, 98, 72), (58, 58, 40)),
             leaves=((48, 54, 44), (64, 66, 48), (36, 38, 40)), path=(122, 104, 96)),
    Palette(sky=((170, 182, 196), (226, 230, 234)), ground=((214, 218, 224), (232, 234, 238)),
             leaves=((70, 88, 84), (96, 110, 104), (52, 66, 70)), path=(176, 176, 184)),
    Palette(sky=((104, 166, 214), (222, 228, 216)), ground=((196, 178, 124), (172, 150, 96)),
             leaves=((92, 124, 64), (122, 146, 70), (70, 98, 58)), path=(214, 200, 164)),
    Palette(sky=((58, 110, 176), (166, 198, 222)), ground=((92, 140, 84), (52, 98, 52)),
             leaves=((38, 84, 56), (62, 110, 62), (120, 70, 96)), path=(128, 128, 126)),
)  # fmt: skip


class Canvas:
    """Three pictures of one size that are painted on together."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.palette = _PALETTES[int(rng.integers(len(_PALETTES)))]
        self.horizon = height * int(rng.integers(280, 560)) // 1000
        self.near = (int(rng.integers(30, 38)), int(rng.integers(70, 96)))
        self.colour = Image.new("RGB", (width, height))
        self.nearness = Image.new("L", (width, height), FAR)
        self.rough = Image.new("L", (width, height), 5)
        self.pens = [ImageDraw.Draw(each) for each in (self.colour, self.nearness, self.rough)]

    def between(self, low: int, high: int) -> int:
        """A random number from ``low`` up to and without ``high``."""
        return int(self.rng.integers(low, max(high, low + 1)))

    def shade(self, colour: Colour, by: int) -> Colour:
        """A colour up to ``by`` brighter or darker, and up to a third of that redder or bluer."""
        light, tint = self.between(-by, by + 1), self.between(-by // 3, by // 3 + 1)
        red, green, blue = colour
        return clip(red + light + tint), clip(green + light), clip(blue + light - tint)

    def near_at(self, y: int) -> int:
        """Nearness of the ground at height ``y``."""
        far, near = self.near
        return far + (near - far) * max(0, y - self.horizon) // (self.height - self.horizon)

    def polygon(self, points: list[tuple[int, int]], colour: Colour, near: int, rough: int) -> None:
        """Fill a polygon on all three canvases."""
        self.pens[0].polygon(points, fill=colour)
        self.pens[1].polygon(points, fill=near)
        self.pens[2].polygon(points, fill=rough)

    def ellipse(
        self, box: tuple[int, int, int, int], colour: Colour, near: int, rough: int
    ) -> None:
        """Fill an ellipse on all three canvases; ``box`` is left, top, right, bottom."""
        self.pens[0].ellipse(box, fill=colour)
        self.pens[1].ellipse(box, fill=near)
        self.pens[2].ellipse(box, fill=rough)


def clip(value: int) -> int:
    """The nearest number that a uint8 can hold."""
    return min(255, max(0, value))
