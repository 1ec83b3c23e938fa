"""Compose one synthetic sample: an object pasted on a scene, its mask, and its depth map.

Uses integers and Pillow's fixed-point arithmetic only, so the pixels are the same on every machine.
"""

import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from shardify.synth.objects import CANVAS, Cutout, make_cutout
from shardify.synth.scenes import Scene, make_scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """A background, ready to paste on."""

    file: bytes
    """JPEG of the whole picture."""
    square: Image.Image
    nearness: Image.Image
    scene: Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreground:
    """A foreground, ready to paste."""

    look: Image.Image
    """Red, green, blue and alpha, as one CMYK picture: Pillow scales its bands as they are,
    without multiplying by alpha, at the cost of RGB."""
    relief: Image.Image
    """Alpha, softened as a depth network would, and bulge, as red and green."""
    filled: int
    """Pixels of the canvas that are object."""
    cutout: Cutout


@functools.lru_cache(maxsize=2)
def make_background(seed: int, index: int, size: int) -> Background:
    """Draw background ``index``, resized to ``size`` x ``size`` pixels; the last two are cached."""
    scene = make_scene(seed, index)
    file = _encode(Image.fromarray(scene.picture), "JPEG", quality=88)
    # Objects are pasted on what a reader of the file sees.
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    depth_size = ((size * 224 + 125) // 250,) * 2
    return Background(
        file=file,
        square=picture.resize((size, size), Image.Resampling.BILINEAR),
        nearness=Image.fromarray(scene.nearness).resize(depth_size, Image.Resampling.BILINEAR),
        scene=scene,
    )


@functools.lru_cache(maxsize=200)
def make_foreground(seed: int, index: int, mirrored: bool) -> Foreground:
    """Draw foreground ``index``; the last 200 are cached."""
    cutout = make_cutout(seed, index)
    colour, alpha, bulge = map(Image.fromarray, (cutout.colour, cutout.alpha, cutout.bulge))
    soft = alpha.filter(ImageFilter.BoxBlur(2))
    look = Image.merge("CMYK", (*colour.split(), alpha))
    relief = Image.merge("RGB", (soft, bulge, Image.new("L", soft.size)))
    if mirrored:
        look, relief = (
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in (look, relief)
        )
    filled = int((cutout.alpha >= 128).sum())
    return Foreground(look=look, relief=relief, filled=filled, cutout=cutout)


def compose(
    background: Background, foreground: Foreground, rng: np.random.Generator, size: int
) -> tuple[bytes, bytes, bytes]:
    """Paste the foreground at a random position on the background.

    ``rng`` draws position, size and, for camouflage, the part of the scene shown on the object.
    ``size`` is the height and width of the composite in pixels.

    Returns:
        The composite as JPEG, its mask as gray JPEG, its depth as gray PNG of 224/250 the size.
    """
    # Its area varies by a quarter from sample to sample.
    share = foreground.cutout.area * int(rng.integers(75, 126)) // 100
    side = math.isqrt(share * size * size * CANVAS * CANVAS // (1000 * foreground.filled))
    side = max(8, min(side, size))
    slack = side // 12
    left, top = (int(value) for value in rng.integers(-slack, size - side + slack + 1, 2))
    small = (side, side)
    *colours, alpha = foreground.look.resize(small, Image.Resampling.BILINEAR).split()
    colour = Image.merge("RGB", colours)
    if foreground.cutout.camouflage:
        x, y = (int(value) for value in rng.integers(0, size - side + 1, 2))
        patch = background.square.crop((x, y, x + side, y + side))
        colour.paste(patch, (0, 0), Image.new("L", small, foreground.cutout.camouflage))
    picture = background.square.copy()
    picture.paste(colour, (left, top), alpha)
    mask = Image.new("L", (size, size))
    mask.paste(alpha, (left, top))
    return (
        _encode(picture, "JPEG", quality=30),
        _encode(mask, "JPEG", quality=30),
        _encode(_depth(background, foreground, (left, top, side), size), "PNG", compress_level=6),
    )


def _depth(
    background: Background, foreground: Foreground, place: tuple[int, int, int], size: int
) -> Image.Image:
    """Return the depth map of the scene with the object in front.

    The object is as near as the ground it stands on, and nearer than what it hides.

    ``place`` is the left and upper edge and the side of the foreground, in pixels of the composite.
    """
    scene, height = background.scene, background.nearness.height
    left, top, side = (value * height // size for value in place)
    planes = Image.new("RGB", background.nearness.size)
    planes.paste(foreground.relief.resize((side, side), Image.Resampling.BILINEAR), (left, top))
    over, bulge = (np.asarray(plane).astype(np.int32) for plane in planes.split()[:2])
    behind = np.asarray(background.nearness).astype(np.int32)
    far, near = scene.ground
    foot = (place[1] + place[2]) * 1000 // size
    ground = far + (near - far) * max(0, foot - scene.horizon) // (1000 - scene.horizon)
    hidden = int((behind * over).sum()) // max(1, int(over.sum()))
    front = max(ground, hidden) + 8 + bulge
    nearness = (behind * (255 - over) + front * over + 127) // 255
    return Image.fromarray(nearness.astype(np.uint8))


def _encode(picture: Image.Image, format: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()
