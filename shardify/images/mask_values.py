"""Tell what the values of a mask mean, and turn a mask into 0 and 255 by one rule.

Values are judged as they are stored, before any scaling: palette indices, whole numbers of up to 32
bits, colours, alpha. A class map, a trimap or a matte is described, and not cut into a binary mask.

Rules: ``threshold`` (object where at least ``MASK_THRESHOLD`` of 255), ``threshold N`` (the same
share of N), ``level N`` (object where N; all else is 0), ``one value`` (object where not 0, one
value in each picture), ``nonzero`` (object where not 0: instance IDs), ``alpha`` (object where
opaque), ``color`` (object where not black).
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ImageError
from shardify.images.parser import MASK_THRESHOLD, ImageInfo

if TYPE_CHECKING:
    from PIL import Image

MISFIT = "a mask with "
"""First words of the reason for which a mask is refused that its data set's rule does not fit."""

_FULL = (255, 65535)
"""Values of the object where a mask uses the whole range of 8 or 16 bits."""

_MAX_LEVELS = 32
"""Largest number of values of a picture that is judged by the areas of each value."""

_MAX_LEVELS_SHOWN = 8

_MAX_GRID_SIDE = 512
"""Shorter side, about, of the grid of pixels on which areas are examined."""

_MAX_ODD_SHARE = 0.1
"""Largest share of masks that may be no binary masks; above it the whole set is none."""

_MIN_IDS, _MIN_ID_COUNTS = 5, 3
"""Instance IDs: some picture has this many; this many different numbers of IDs occur."""

_MAX_COVER = 0.95
"""If what is not 0 covers more of the pictures, it is no object on a background."""


class Mask(NamedTuple):
    """A decoded mask, its values as they are stored."""

    values: NDArray[Any]
    """(H, W) whole numbers. Of a colour: its brightness, of 255."""
    form: str
    """``gray``, ``palette``, ``color`` or ``alpha``."""
    lossy: bool = False
    """Whether compression may have changed the values a little."""
    problem: str = ""
    """Why it is no binary mask, if that shows already here."""


class Reading(NamedTuple):
    """What the values of one mask show."""

    kind: str
    """``empty``, ``full`` (one value), ``two`` (0 and another), ``soft`` (the same with thin
    edges), ``labels``, or ``other``."""
    form: str
    top: int = 0
    """The object's value."""
    levels: tuple[int, ...] = ()
    """All its values, if they are exact."""
    cover: float = 0
    """Share of pixels that are not 0."""
    problem: str = ""
    """Why it is no binary mask; empty if it is one."""
    at_border: bool = False
    """Whether the object fills the whole border, as in an inverted mask."""


def alpha_of(image: "Image.Image") -> "Image.Image | None":
    """Return the alpha plane if it is the mask: it varies, or all else is constant."""
    if not image.has_transparency_data:
        return None
    *colour, alpha = image.convert("RGBA").split()
    low, high = cast(tuple[int, int], alpha.getextrema())
    if low == 255:
        return None
    if low == high and any(
        low != high for low, high in (cast(tuple[int, int], each.getextrema()) for each in colour)
    ):
        return None
    return alpha


def mask_of_image(image: "Image.Image", picture: ImageInfo, rule: str) -> Mask:
    """Return the mask in a decoded picture. Raises ImageError if the rule needs an alpha channel.

    Args:
        image: A picture as Pillow decodes it, in its own mode.
        picture: Its header.
        rule: Rule of the data set, or empty if not known yet.
    """
    lossy = picture.kind not in ("png", "gif", "bmp", "tif")
    if rule == "alpha":
        if not image.has_transparency_data:
            raise ImageError("a mask without an alpha channel, unlike the others")
        return Mask(np.asarray(image.convert("RGBA").getchannel("A")), "alpha", lossy)
    if image.mode == "P":
        return _mask_of_palette(image, lossy)
    if image.mode[0] in "IF":
        return mask_of_array(np.asarray(image))
    alpha = alpha_of(image)
    if alpha is not None:
        return _mask_of_alpha(image, np.asarray(alpha), lossy)
    if image.mode in ("1", "L", "LA", "La"):
        return Mask(np.asarray(image.convert("L")), "gray", lossy)
    return _mask_of_colours(np.asarray(image.convert("RGB")), lossy)


def mask_of_array(plane: NDArray[Any]) -> Mask:
    """Return the mask in an array of one channel: (H, W) of any numbers."""
    if plane.dtype == np.bool_:
        return Mask(plane.astype(np.uint8) * np.uint8(255), "gray")
    if plane.dtype == np.uint8:
        return Mask(plane, "gray")
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        return Mask(np.zeros(plane.shape, np.uint8), "gray", problem="values that are no numbers")
    low, high = (float(plane.min()), float(plane.max())) if plane.size else (0.0, 0.0)
    if low < 0:
        return Mask(plane, "gray", problem=f"negative values, down to {low:g}")
    if plane.dtype.kind == "f":
        # Shares of 1, or whole numbers that were saved as such.
        plane = np.rint(plane * (65535.0 if high <= 1 else 1.0)).astype(np.int64)
        high = float(plane.max(initial=0))
    return Mask(plane.astype(np.uint16 if high <= 65535 else np.int64), "gray")


def read_values(mask: Mask) -> Reading:
    """Tell what the values of a mask show."""
    plane = mask.values
    levels, counts = _distinct(plane)
    top = int(levels[-1]) if len(levels) else 0
    exact = tuple(levels.tolist()) if not mask.lossy else ()
    cover = 1 - float(counts[0] / plane.size) if len(levels) and levels[0] == 0 else 1.0
    edges = (plane[0], plane[-1], plane[:, 0], plane[:, -1]) if plane.size else ()
    at_border = all(2 * int(edge.min()) > top for edge in edges)
    reading = Reading("other", mask.form, top, exact, cover, mask.problem, at_border)
    if mask.problem:
        return reading
    if top == 0:
        return reading._replace(kind="empty", cover=0)
    if len(levels) == 1:
        return reading._replace(kind="full")
    if len(levels) == 2 and levels[0] == 0:
        return reading._replace(kind="two")
    step = max(1, min(plane.shape) // _MAX_GRID_SIDE)
    grid = plane[::step, ::step]
    if not mask.lossy:
        wide = _wide_levels(grid)
        if len(levels) <= _MAX_LEVELS or 2 * len(wide) >= len(levels):
            return _read_labels(reading, levels.tolist(), wide)
    return _read_gray(reading, grid)


def choose_rule(readings: Sequence[Reading], names: Sequence[str]) -> tuple[str, bool]:
    """Choose the rule for the masks of a data set from what some of them show.

    Args:
        readings: What each of some masks shows.
        names: Their names, for error messages.

    Returns:
        The rule, and whether every mask of the data set must be checked because some of these do
        not fit.

    Raises:
        ImageError: They are no binary masks, or of several meanings. The message begins with a
            name.
    """
    shown = [(each, name) for each, name in zip(readings, names, strict=True) if each.top]
    odd = [(each, name) for each, name in shown if each.problem]
    if _are_instance_ids([each for each, _ in shown]):
        return "nonzero", False
    if len(odd) > _MAX_ODD_SHARE * len(shown):
        reading, name = odd[0]
        raise ImageError(f"{name}: a mask with {reading.problem} ({len(odd)} of {len(shown)} masks "
                         "with an object that were looked at are such)")  # fmt: skip
    good = [(each, name) for each, name in shown if not each.problem]
    rule, misfits = _common_rule([each for each, _ in good])
    if len(odd) + misfits > _MAX_ODD_SHARE * len(shown):
        low, high = (pick(good, key=lambda each: each[0].top) for pick in (min, max))
        raise ImageError(
            f"{low[1]}: masks of mixed meaning: {_describe(low[0])} here, {_describe(high[0])} in "
            f"{high[1]}; expected one meaning for all"
        )
    if rule == "one value" and np.median([each.cover for each, _ in good]) > _MAX_COVER:
        raise ImageError(
            f"{good[0][1]}: a mask with {_describe(good[0][0])}, which leave nearly nothing at 0 "
            "(as in nearly all others): no object on a background"
        )
    return rule, bool(odd) or misfits > 0


def object_plane(mask: Mask, rule: str, *, check: bool = True) -> NDArray[np.uint8]:
    """Return (H, W) uint8: 255 where the object is, else 0.

    Args:
        mask: The mask.
        rule: Rule of its data set.
        check: Whether to refuse a mask that the rule does not fit.

    Raises:
        ImageError: The rule does not fit the mask.
    """
    values, word, *number = mask.values, *rule.split()
    if word == "level":
        level = int(number[0])
        if mask.form == "color":
            raise ImageError(f"a mask in colours; expected the values 0 and {level}")
        found = values == level
        if check and not np.all(found | (values == 0)):
            raise ImageError(f"{MISFIT}other values than 0 and {level}")
    else:
        fault = _misfit(read_values(mask), rule) if check else ""
        if fault:
            raise ImageError(f"{MISFIT}{fault}; the rule for this data set is: {rule}")
        if word in ("nonzero", "one") or mask.form == "palette":
            found = values != 0
        else:
            full = int(number[0]) if number else 255
            found = values >= -(-MASK_THRESHOLD * full // 255)
    return np.where(found, np.uint8(255), np.uint8(0))


def _mask_of_palette(image: "Image.Image", lossy: bool) -> Mask:
    """Return the indices, or the colours where these tell more."""
    indices = np.asarray(image)
    stated = np.array(image.getpalette("RGB") or [0, 0, 0], np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(stated)] = stated
    if (np.ptp(palette, axis=1) == 0).all():
        alpha = alpha_of(image) if np.ptp(palette[indices, 0]) == 0 else None
        if alpha is not None:
            return Mask(np.asarray(alpha), "alpha", lossy)
        return Mask(palette[indices, 0], "gray", lossy)
    if palette[0].any():
        # Its first colour is no background: an encoder ordered the colours.
        return _mask_of_colours(palette[indices], lossy)
    return Mask(indices, "palette")


def _mask_of_alpha(image: "Image.Image", alpha: NDArray[np.uint8], lossy: bool) -> Mask:
    gray = np.asarray(image.convert("RGB")).max(axis=2)
    if gray.min() == 0 and gray.max() == 255 and ((gray == 0) | (gray == 255)).all():
        if ((gray > 0) != (alpha >= MASK_THRESHOLD)).mean() > 0.01:
            problem = "one object in its colours and another in its alpha channel"
            return Mask(alpha, "alpha", lossy, problem)
    return Mask(alpha, "alpha", lossy)


def _mask_of_colours(pixels: NDArray[np.uint8], lossy: bool) -> Mask:
    """Return the brightness of pictures in gray, or in one colour on black."""
    bands = [pixels[..., band] for band in range(3)]
    bright = functools.reduce(np.maximum, bands)
    spread = bright - functools.reduce(np.minimum, bands)
    gray = Mask(np.ascontiguousarray(bands[1]), "gray", lossy)
    lit = bright > (40 if lossy else 0)
    if spread.max(initial=0) <= 8 or not lit.any():
        return gray
    if lossy and spread.mean() < 3 and np.percentile(spread, 99) < 24:
        return gray
    codes = (pixels[lit] >> 4).astype(np.int32) @ np.array([256, 16, 1])
    counts = np.bincount(codes, minlength=4096)
    main = pixels[lit][codes == counts.argmax()].mean(axis=0)
    shade = bright[..., None] * (main / main.max())
    off = np.abs(pixels - shade).max(axis=2) > (64 if lossy else 24)
    # Edges of one colour are darker shades of it.
    plane = np.minimum(np.rint(bright * (255 / main.max())), 255).astype(np.uint8)
    if (off & lit).sum() <= 0.02 * lit.sum():
        return Mask(plane, "color", lossy)
    common = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 0.005 * counts.sum())]
    colours = [pixels[lit][codes == code][0] for code in common[:_MAX_LEVELS_SHOWN]]
    shown = ", ".join("#" + bytes(each.tolist()).hex() for each in colours)
    more = " ..." if len(common) > _MAX_LEVELS_SHOWN else ""
    if len(common) < 3 and lit.all():
        problem = f"the colours {shown}, neither of them black: which is the object is not told"
    else:
        problem = f"the colours {shown}{more} (a class map, or instances in colours)"
    return Mask(plane, "color", lossy, problem)


def _is_full(level: int) -> bool:
    """Whether a value is the largest of 8 or 16 bits, or nearly so."""
    return any(0.9 * full <= level <= full for full in _FULL)


def _distinct(plane: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct values in ascending order, and their counts."""
    if plane.dtype in (np.uint8, np.uint16):
        counts = np.bincount(plane.ravel())
        levels = np.flatnonzero(counts)
        return levels, counts[levels]
    return np.unique(plane, return_counts=True)


def _windows(combine: np.ufunc, plane: NDArray[Any], size: int) -> NDArray[Any]:
    """Combine the values of each ``size`` x ``size`` window; empty if the plane is smaller."""
    rows, columns = (max(0, side - size + 1) for side in plane.shape)
    plane = functools.reduce(combine, (plane[at : at + rows] for at in range(size)))
    return functools.reduce(combine, (plane[:, at : at + columns] for at in range(size)))


def _spread(plane: NDArray[Any]) -> NDArray[Any]:
    """Return the largest minus the smallest value of each 3 x 3 window."""
    spread: NDArray[Any] = _windows(np.maximum, plane, 3) - _windows(np.minimum, plane, 3)
    return spread


def _wide_levels(grid: NDArray[Any]) -> list[int]:
    """Return the values that fill areas, at least 3 pixels wide."""
    spread = _spread(grid)
    levels, counts = _distinct(grid[1 : 1 + spread.shape[0], 1 : 1 + spread.shape[1]][spread == 0])
    least = 0.02 * counts[levels != 0].sum()
    return [int(level) for level, count in zip(levels, counts, strict=True) if count >= least]


def _read_labels(reading: Reading, levels: list[int], wide: list[int]) -> Reading:
    """Tell what a picture with exact values shows: areas of one value, and what lies between."""
    top = levels[-1]
    areas = [level for level in wide if level]
    object_level = max(areas, default=top)
    shown = _listed(levels)
    # A compressed mask that was saved again has values close to those of the object.
    near = 0.9 if _is_full(object_level) else 1
    others = [level for level in areas if level < near * object_level]
    if levels[0] > 0.2 * object_level:
        problem = f"the values {shown}, without 0 for the background"
        if set(levels) == {1, 2, 3}:
            problem += " (a trimap, as of Oxford pets: 1 object, 2 background, 3 border)"
    elif top in _FULL and object_level < 0.8 * top:
        problem = f"the values {shown}, of which {top} is thin (a class map with a void line)"
    elif not others:
        return reading._replace(kind="soft", top=object_level)
    elif len(others) == 1 and _is_full(object_level) and 0.35 < others[0] / object_level < 0.65:
        problem = f"the values {shown}, of which {others[0]} fills areas (a trimap)"
    else:
        problem = f"the values {shown} (a class map, or instance IDs)"
        return reading._replace(kind="labels", problem=problem)
    return reading._replace(problem=problem)


def _read_gray(reading: Reading, grid: NDArray[Any]) -> Reading:
    """Tell what a picture with many gray values shows: two values with thin edges, or more."""
    top = reading.top
    # Whole numbers of the plane's own type: several times faster than float.
    middle = (grid > top // 5) & (grid < 4 * top // 5)
    bright = int(np.count_nonzero(grid >= 4 * top // 5))
    soft = int(np.count_nonzero(middle))
    problem = ""
    if grid.min() > top // 5:
        problem = f"values from {grid.min()} to {top}, without 0 for the background"
    elif soft > 0.08 * (soft + bright) and _is_wide(grid, middle, top, soft, bright):
        values = _even(grid, middle, top)
        low, level, high = np.percentile(values if values.size else grid[middle], (10, 50, 90))
        problem = f"many gray values up to {top} in wide areas (a matte)"
        if high - low <= 0.15 * top and bright > 0.05 * soft:
            problem = f"values up to {top}, of which about {level:.0f} fills areas (a trimap)"
    elif not any(0.59 * full <= top <= full for full in _FULL):
        problem = f"many gray values, up to {top} only (a matte, or a mask that is too dark)"
    return reading._replace(kind="other" if problem else "soft", problem=problem)


def _is_wide(
    grid: NDArray[Any], middle: NDArray[np.bool_], top: int, soft: int, bright: int
) -> bool:
    """Whether values between background and object fill areas, instead of thin edges."""
    # Edges of a resized mask are wide too, but not on half the pixels of a large picture.
    step = 1 + (min(middle.shape) > _MAX_GRID_SIDE // 2)
    wide = step**2 * np.count_nonzero(_windows(np.logical_and, middle[::step, ::step], 5))
    if wide > 0.08 * (soft + bright) or bright < 0.05 * soft:
        return True
    return _even(grid, middle, top).size > max(8, 0.1 * (soft + bright))


def _even(grid: NDArray[Any], middle: NDArray[np.bool_], top: int) -> NDArray[Any]:
    """Return the values between background and object that are even over 3 x 3 pixels."""
    even: NDArray[Any] = (_spread(grid) <= 3 * top // 100) & middle[1:-1, 1:-1]
    values: NDArray[Any] = grid[1:-1, 1:-1][even]
    return values


def _are_instance_ids(readings: Sequence[Reading]) -> bool:
    """Whether the values number the objects of each picture: 1 to n, with n different by picture.

    Values of classes have gaps, because not every picture shows every class.
    """
    counted = [[level for level in each.levels if level] for each in readings]
    if any(each.problem and each.kind != "labels" for each in readings):
        return False
    if not counted or any(each.form not in ("gray", "palette") for each in readings):
        return False
    gapless = [len(each) == each[-1] for each in counted if each]
    counts = {len(each) for each in counted}
    return (
        max(counts) >= _MIN_IDS
        and len(counts) >= _MIN_ID_COUNTS
        and sum(gapless) >= 0.9 * len(counted)
        and np.median([each.cover for each in readings]) <= _MAX_COVER
    )


def _common_rule(readings: Sequence[Reading]) -> tuple[str, int]:
    """Return the rule that fits most of these binary masks, and how many it does not fit."""
    forms, tops = {each.form for each in readings}, Counter(each.top for each in readings)
    candidates = ["threshold", "threshold 65535"]
    if forms == {"alpha"}:
        candidates = ["alpha"]
    elif "color" in forms:
        candidates = ["color"]
    elif readings:
        top = tops.most_common(1)[0][0]
        candidates += [f"level {top}", f"threshold {top}"]
    misfits = [sum(bool(_misfit(each, rule)) for each in readings) for rule in candidates]
    rule, least = candidates[misfits.index(min(misfits))], min(misfits)
    # Where the highest value is 255, it may be a void label instead of an object.
    if least > _MAX_ODD_SHARE * len(readings) and max(tops) not in _FULL:
        return "one value", sum(bool(_misfit(each, "one value")) for each in readings)
    return rule, least


def _misfit(reading: Reading, rule: str) -> str:
    """Return what of a mask does not fit a rule; empty if it fits."""
    word, *number = rule.split()
    if reading.kind == "empty":
        return ""
    exact = bool(reading.levels)
    if word == "nonzero" and reading.form in ("gray", "palette") and exact:
        if reading.kind in ("full", "two", "labels"):
            return ""
        if reading.kind == "soft" and not _is_full(reading.top):
            return ""
    if reading.problem:
        return reading.problem
    if word == "level":
        fits = reading.kind in ("full", "two") and reading.top == int(number[0])
    elif word == "one":
        fits = reading.kind in ("full", "two") and reading.form in ("gray", "palette")
    elif word == "alpha":
        fits = reading.form == "alpha" and reading.top >= MASK_THRESHOLD
    elif word == "color":
        fits = reading.form == "palette" or (
            reading.form in ("color", "gray") and MASK_THRESHOLD <= reading.top <= 255
        )
    elif word == "threshold":
        full = int(number[0]) if number else 255
        fits = reading.form in ("gray", "alpha") and MASK_THRESHOLD * full <= 255 * reading.top
        fits = fits and reading.top <= full
    else:
        fits = False
    return "" if fits else _describe(reading)


def _describe(reading: Reading) -> str:
    if reading.form == "color":
        return "an object in colour"
    where = {"palette": " (palette indices)", "alpha": " in its alpha channel"}
    if reading.kind == "soft":
        return f"values up to {reading.top}{where.get(reading.form, '')}"
    values = [0, reading.top] if reading.kind == "two" else list(reading.levels or [reading.top])
    return f"the value{'s' * (len(values) > 1)} {_listed(values)}{where.get(reading.form, '')}"


def _listed(levels: Sequence[int]) -> str:
    """List values, the highest too if they are many."""
    if len(levels) <= _MAX_LEVELS_SHOWN:
        return ", ".join(map(str, levels))
    return ", ".join(map(str, levels[: _MAX_LEVELS_SHOWN - 1])) + f", ... {levels[-1]}"
