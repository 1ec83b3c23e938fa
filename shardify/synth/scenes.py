"""Draw synthetic parks: a picture and the nearness of every pixel.

A scene is painted from far to near, as flat shapes on three images at once: colour, nearness and
surface roughness. Noise is then added in proportion to the roughness.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from shardify.synth.textures import noise, random_numbers, turbulence

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


def _clip(value: int) -> int:
    """Limit a number to the range of uint8."""
    return min(255, max(0, value))


SIZES = (
    (750, 422), (800, 533), (900, 506), (960, 640), (1024, 683), (1080, 720), (1200, 800),
    (1280, 720), (1280, 853), (1600, 900), (1600, 1067),
)  # fmt: skip
"""Width and height of the pictures, in pixels; the smallest are the most frequent."""

_SCENES = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One background."""

    picture: npt.NDArray[np.uint8]
    """(height, width, 3) RGB."""

    nearness: npt.NDArray[np.uint8]
    """(height, width); brighter is nearer."""

    horizon: int
    """Where the ground begins. Thousandths of the height."""

    ground: tuple[int, int]
    """Nearness of the ground at the horizon and at the lower edge."""


def make_scene(seed: int, index: int) -> Scene:
    """Paint background number ``index``; the same arguments give the same scene."""
    rng = random_numbers(seed, _SCENES, index)
    width, height = SIZES[min(int(rng.integers(len(SIZES))), int(rng.integers(len(SIZES))))]
    park = _Park(rng, width, height)
    park.sky()
    park.hills()
    if rng.integers(3) == 0:
        park.houses()
    park.tree_line()
    park.lawn()
    if rng.integers(4):
        park.path()
    if rng.integers(3) == 0:
        park.pond()
    park.furnish()
    return park.finish()


class _Park:
    """Paints the elements of a park, the farthest first, on three images of one size."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.palette = _PALETTES[int(rng.integers(len(_PALETTES)))]
        self.horizon = height * int(rng.integers(280, 560)) // 1000
        self.near = (int(rng.integers(30, 38)), int(rng.integers(70, 96)))
        self.colour = Image.new("RGB", (width, height))
        self.nearness = Image.new("L", (width, height), FAR)
        self.rough = Image.new("L", (width, height), 5)
        self.pens = [ImageDraw.Draw(image) for image in (self.colour, self.nearness, self.rough)]

    def between(self, low: int, high: int) -> int:
        """Draw a number from ``low`` up to and without ``high``."""
        return int(self.rng.integers(low, max(high, low + 1)))

    def shade(self, colour: Colour, by: int) -> Colour:
        """Vary a colour by up to ``by`` in brightness, and by a third of that in red and blue."""
        light, tint = self.between(-by, by + 1), self.between(-by // 3, by // 3 + 1)
        red, green, blue = colour
        return _clip(red + light + tint), _clip(green + light), _clip(blue + light - tint)

    def nearness_at(self, y: int) -> int:
        """Return the nearness of the ground at height ``y``."""
        far, near = self.near
        return far + (near - far) * max(0, y - self.horizon) // (self.height - self.horizon)

    def polygon(self, points: list[tuple[int, int]], colour: Colour, near: int, rough: int) -> None:
        """Fill a polygon on all three images."""
        self.pens[0].polygon(points, fill=colour)
        self.pens[1].polygon(points, fill=near)
        self.pens[2].polygon(points, fill=rough)

    def block(
        self, left: int, top: int, right: int, foot: int, colour: Colour, near: int, rough: int
    ) -> None:
        """Fill a rectangle on all three images."""
        points = [(left, foot), (left, top), (right, top), (right, foot)]
        self.polygon(points, colour, near, rough)

    def ellipse(
        self, box: tuple[int, int, int, int], colour: Colour, near: int, rough: int
    ) -> None:
        """Fill an ellipse on all three images; ``box`` is left, top, right, bottom."""
        self.pens[0].ellipse(box, fill=colour)
        self.pens[1].ellipse(box, fill=near)
        self.pens[2].ellipse(box, fill=rough)

    def sky(self) -> None:
        """Paint a gradient with clouds."""
        width, height = self.width // 4, self.horizon // 4 + 8
        down = np.arange(height, dtype=np.int32)[:, None, None]
        top, low = (np.array(colour, np.int32) for colour in self.palette.sky)
        sky = (top * (height - down) + low * down) // height
        clouds = turbulence(self.rng, width, height, self.between(16, 40), flat=3)
        cover = np.clip(clouds.astype(np.int32) + self.between(-60, 30), 0, 110)[..., None]
        white = np.array(self.shade((238, 238, 240), 14), np.int32)
        sky = np.broadcast_to(sky, (height, width, 3)) + (white - sky) * cover // 128
        picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
        self.colour.paste(
            picture.resize((self.width, self.horizon + 8), Image.Resampling.BILINEAR), (0, 0)
        )

    def hills(self) -> None:
        """Paint one to three ridges, paler with distance."""
        pale = np.array(self.palette.sky[1], np.int32)
        ridges = self.between(1, 4)
        for ridge in range(ridges):
            leaf = np.array(self.palette.leaves[ridge % len(self.palette.leaves)], np.int32)
            red, green, blue = (pale * (ridges - ridge) + leaf * (ridge + 1)) // (ridges + 1)
            tall = self.height * self.between(40, 150) // 1000 * (ridges - ridge) // ridges
            colour = int(red), int(green), int(blue)
            self.polygon(self.ridge(tall), colour, FAR + 2 + 2 * ridge, 14)

    def ridge(self, tall: int) -> list[tuple[int, int]]:
        """Return an outline from edge to edge, from ``tall / 3`` to ``tall`` above the ground."""
        knots = 9
        line = noise(self.rng, knots * 8, 1, 1)[0, ::8].astype(np.int32) + 128
        smooth = np.asarray(
            Image.fromarray(line.astype(np.uint8)[None]).resize((64, 1), Image.Resampling.BICUBIC)
        )[0].astype(int)
        points = [
            (column * self.width // 63, self.horizon - tall // 3 - tall * int(value) * 2 // 765)
            for column, value in enumerate(smooth)
        ]
        return [*points, (self.width, self.horizon + 4), (0, self.horizon + 4)]

    def houses(self) -> None:
        """Paint a row of houses with windows, at the horizon."""
        left = self.between(0, self.width // 2)
        for _ in range(self.between(2, 7)):
            wide = self.width * self.between(40, 110) // 1000
            tall = self.height * self.between(60, 220) // 1000
            wall = self.shade((150, 136, 124), 50)
            top, foot = self.horizon - tall, self.horizon + 3
            self.block(left, top, left + wide, foot, wall, 29, 10)
            if self.between(0, 2):
                peak = (left + wide // 2, top - tall // 4)
                roof = self.shade((120, 70, 60), 30)
                self.polygon([(left - 4, top), peak, (left + wide + 4, top)], roof, 29, 14)
            step = max(8, wide // self.between(3, 7))
            glass = self.shade((70, 80, 100), 30)
            for x in range(left + step // 4, left + wide - step // 2, step):
                for y in range(top + step // 4, foot - step // 2, step):
                    self.pens[0].rectangle((x, y, x + step // 2, y + step // 2), fill=glass)
            left += wide + self.between(-4, self.width // 20)

    def tree_line(self) -> None:
        """Paint many small crowns along the horizon."""
        tall = self.height * self.between(20, 120) // 1000
        x = -tall
        while x < self.width + tall:
            if self.between(0, 8):
                self.crown(x, self.horizon - tall // 2, tall * self.between(6, 12) // 16, 30, 7)
            x += max(6, tall * self.between(4, 14) // 16)

    def crown(self, x: int, y: int, radius: int, near: int, leaves: int) -> None:
        """Paint a heap of discs in a colour of leaves, lighter towards the upper left."""
        green = self.palette.leaves[self.between(0, len(self.palette.leaves))]
        for leaf in range(leaves):
            dx, dy = self.between(-radius, radius + 1), self.between(-radius, radius + 1)
            if dx * dx + dy * dy > radius * radius:
                dx, dy = dx // 2, dy // 2
            size = max(2, radius * self.between(3, 9) // 16)
            light = (-dx - dy) * 26 // max(1, radius) + leaf * 14 // leaves - 8
            red, g, blue = self.shade(green, 5)
            lit = _clip(red + light), _clip(g + light), _clip(blue + light // 2)
            box = (x + dx - size, y + dy - size, x + dx + size, y + dy + size)
            self.ellipse(box, lit, near, 20)

    def lawn(self) -> None:
        """Paint the ground, nearer and darker towards the lower edge."""
        far, near = (np.array(self.shade(colour, 12), np.int32) for colour in self.palette.ground)
        deep = self.height - self.horizon
        mottle = turbulence(self.rng, self.width // 4, deep // 4 + 1, self.between(10, 30), flat=3)
        down = np.arange(mottle.shape[0], dtype=np.int32)[:, None, None]
        base = (far * (mottle.shape[0] - down) + near * down) // mottle.shape[0]
        spots = base * (256 + mottle.astype(np.int32)[..., None] * self.between(20, 64) // 128)
        lawn = Image.fromarray(np.clip(spots // 256, 0, 255).astype(np.uint8))
        box = (0, self.horizon)
        self.colour.paste(lawn.resize((self.width, deep), Image.Resampling.BILINEAR), box)
        column = [self.nearness_at(self.horizon + y) for y in range(deep)]
        slope = np.repeat(np.array(column, np.uint8)[:, None], self.width, axis=1)
        self.nearness.paste(Image.fromarray(slope), box)
        self.rough.paste(12, (0, self.horizon, self.width, self.height))

    def path(self) -> None:
        """Paint a path from the lower edge to a point on the horizon, bent once."""
        foot = self.between(0, self.width)
        goal = self.between(self.width // 5, self.width * 4 // 5)
        bend = self.between(-self.width // 6, self.width // 6 + 1)
        wide = self.width * self.between(80, 260) // 1000
        left, right = [], []
        for step in range(17):
            # t runs from the horizon (0) to the lower edge (256); the way widens with nearness.
            t = step * 16
            y = self.horizon + (self.height - self.horizon) * t // 256
            x = goal + (foot - goal) * t // 256 + bend * t * (256 - t) // 16384
            half = max(2, wide * t // 512)
            left.append((x - half, y))
            right.append((x + half, y))
        colour, keep = self.shade(self.palette.path, 20), self.nearness.copy()
        self.polygon(left + right[::-1], colour, 0, 22)
        self.nearness.paste(keep)

    def pond(self) -> None:
        """Paint water that mirrors the sky, with a darker rim."""
        x, y = self.between(0, self.width), self.between(self.horizon + 10, self.height)
        flat = (y - self.horizon) // 3 + 6
        wide = flat * self.between(3, 7)
        keep = self.nearness.copy()
        rim, water = self.shade((88, 84, 64), 16), self.shade(self.palette.sky[1], 24)
        self.ellipse((x - wide - 5, y - flat - 3, x + wide + 5, y + flat + 3), rim, 0, 24)
        self.ellipse((x - wide, y - flat, x + wide, y + flat), water, 0, 12)
        for _ in range(12):
            dx, dy = self.between(-wide, wide) * 2 // 3, self.between(-flat, flat) * 2 // 3
            end = x + dx + self.between(8, wide // 3 + 9)
            self.pens[0].line((x + dx, y + dy, end, y + dy), fill=self.shade(water, 30), width=2)
        self.nearness.paste(keep)

    def furnish(self) -> None:
        """Paint trees, bushes, stones, lamps and benches, the farthest first."""
        feet = sorted(
            self.between(self.horizon + 4, self.height + self.height // 12)
            for _ in range(self.between(4, 11))
        )
        for foot in feet:
            scale = (foot - self.horizon) * 256 // (self.height - self.horizon)
            x, near = self.between(0, self.width), self.nearness_at(min(foot, self.height))
            kind = self.between(0, 8)
            if kind < 3:
                self.tree(x, foot, self.height * (60 + scale * 3 // 2) // 1000, near)
            elif kind < 5:
                radius = self.height * (10 + scale // 3) // 1000
                self.crown(x, foot - radius, radius, near, 14)
            elif kind == 5:
                self.stone(x, foot, self.height * (8 + scale // 5) // 1000, near)
            elif kind == 6:
                self.lamp(x, foot, self.height * (50 + scale) // 1000, near)
            else:
                self.bench(x, foot, self.height * (16 + scale // 3) // 1000, near)

    def tree(self, x: int, foot: int, tall: int, near: int) -> None:
        """Paint a trunk with a shadow and a crown."""
        thick = max(3, tall // 12)
        bark = self.shade((84, 66, 50), 22)
        shadow = (x - tall // 3, foot - thick, x + tall // 2, foot + thick)
        self.pens[0].ellipse(shadow, fill=self.shade(self.palette.leaves[-1], 6))
        trunk = [(x - thick, foot), (x - thick * 2 // 3, foot - tall)]
        trunk += [(x + thick * 2 // 3, foot - tall), (x + thick, foot)]
        self.polygon(trunk, bark, near, 40)
        self.crown(x, foot - tall - tall // 3, tall * 5 // 8, near, 40)

    def stone(self, x: int, foot: int, radius: int, near: int) -> None:
        """Paint a gray boulder, lit from above."""
        gray = self.shade((128, 124, 118), 34)
        wide = radius * self.between(10, 20) // 8
        self.ellipse((x - wide, foot - radius * 2, x + wide, foot), gray, near, 34)
        red, green, blue = gray
        lit = _clip(red + 22), _clip(green + 22), _clip(blue + 20)
        box = (x - wide * 2 // 3, foot - radius * 2 + 2, x + wide // 3, foot - radius)
        self.ellipse(box, lit, near, 34)

    def lamp(self, x: int, foot: int, tall: int, near: int) -> None:
        """Paint a post with a globe."""
        thick, dark = max(1, tall // 40), self.shade((50, 52, 56), 16)
        self.block(x - thick, foot - tall, x + thick, foot, dark, near, 8)
        globe = thick * 4
        box = (x - globe, foot - tall - globe, x + globe, foot - tall + globe)
        self.ellipse(box, self.shade((236, 228, 196), 14), near, 4)

    def bench(self, x: int, foot: int, tall: int, near: int) -> None:
        """Paint three planks on two legs."""
        wood, wide = self.shade((132, 88, 56), 26), tall * 2
        for leg in (x - wide * 3 // 4, x + wide * 3 // 4):
            self.block(leg, foot - tall, leg + 4, foot, self.shade((60, 58, 60), 10), near, 6)
        for plank in range(3):
            y, thick = foot - tall // 2 - plank * tall // 4, max(2, tall // 8)
            self.block(x - wide, y, x + wide, y + thick, self.shade(wood, 8), near, 20)

    def finish(self) -> Scene:
        """Add noise to every surface and return the scene."""
        width, height = self.width, self.height
        grain = noise(self.rng, width, height, 1) // 2
        grain += noise(self.rng, width, height, 3)
        grain += noise(self.rng, width, height, 9) // 2
        rough = np.asarray(self.rough).astype(np.int16)
        # At most 256 * 60: in the range of int16.
        relief = (grain * np.minimum(rough, 60)) >> 8
        # A lens is never as sharp as a drawn edge.
        soft = self.colour.filter(ImageFilter.BoxBlur(width // 300))
        picture = np.asarray(soft).astype(np.int16) + relief[..., None]
        nearness = self.nearness.filter(ImageFilter.BoxBlur(max(1, width // 400)))
        return Scene(
            picture=np.clip(picture, 0, 255).astype(np.uint8),
            nearness=np.asarray(nearness),
            horizon=self.horizon * 1000 // height,
            ground=self.near,
        )
