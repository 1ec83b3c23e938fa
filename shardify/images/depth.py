"""Convert depth maps to 8 or 16 bits by one rule for the whole data set.

A shard's depth map holds whole steps; 0 stands where there is no depth. The rule says how many
steps a unit of the source has, and which of the source's values mean that there is no depth. It is
held against every map that is converted: a map that it does not fit raises ImageError.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardify.errors import ImageError

FLOATING, INTEGER = "floating-point", "integer"
KITTI_SCALE = 256.0
"""Steps to a unit of a floating-point map, as KITTI's 16-bit maps have to a metre."""
STEPS = 65535
_IMPOSSIBLE = 1e9
"""No depth in any usual unit is this large. Renderers write 1e10 or more where there is nothing."""
_HALF_FLOAT_MAX = 65504.0
_APART = 2.0
"""A value means "no depth" only if it is at least this many times the largest other value."""
_MAX_MARKS = 4
"""Largest number of values of one map that may mean "no depth"."""
_GRAY_SLACK = 8
"""Largest difference of the channels of a gray map saved in 8-bit colour."""
_MAX_ZEROS = 0.01
"""If more of the pixels of maps of more than 8 bits are 0, then 0 means "no depth"."""
_WHOLE_STEPS = 1 / 512
"""Room for rounding at the largest value that can be stored. Steps."""


class DepthEncoding(NamedTuple):
    """What the depth values of a source mean."""

    source: str = ""
    """``floating-point`` or ``integer``: the type of the source's values; empty for any."""
    scale: float | None = None
    """Stored steps to a unit. Integers are stored as they are; None if their unit is not known."""
    unit: str = ""
    """Name of the source's unit, as ``m`` or ``mm``; empty if not known."""
    maximum: float | None = None
    """Largest value of a map, in the source's unit, if known."""
    invalid: tuple[float, ...] = ()
    """Values of the source, as they are in its files, that mean "no depth"; stored as 0."""
    has_holes: bool | None = False
    """Whether 0 is known to mean "no depth" in the shards. None: a layout file says that every
    value is a depth."""

    def needs_values(self, bits: int) -> bool:
        """Whether integers of these bits must be read to see if they fit."""
        full = 2**bits - 1
        limit = None if self.maximum is None else self.maximum * (self.scale or 1)
        return (
            self.source == FLOATING
            or any(0 < value <= full for value in self.invalid)
            or (limit is not None and limit < full)
        )

    @property
    def step_text(self) -> str:
        """What a step is, for the recorded rule of a floating-point map."""
        marks = "".join(f"; {value:g} to 0" for value in self.invalid)
        return f"1 is {self.scale or KITTI_SCALE:g} of {STEPS}{marks}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthValues:
    """What the choice of an encoding needs to know of one depth map."""

    name: str = ""
    source: str
    """``floating-point`` or ``integer``."""
    bits: int
    peak: float
    """Largest valid value apart from ``marks``; 0 if there is none."""
    marks: tuple[float, ...]
    """Values above ``peak`` that may mean "no depth"."""
    whole: bool
    """Whether all valid values are whole numbers."""
    has_holes: bool
    """Whether it has values that are no depth: not finite, negative, or named by the user."""
    zeros: float = 0.0
    """Share of its pixels that are 0."""


def depth_values(
    plane: NDArray[Any], *, name: str = "", invalid: Sequence[float] = ()
) -> DepthValues:
    """Describe a depth map. Raises ImageError if it is in colours.

    Args:
        plane: (H, W) or (H, W, 3), any real dtype.
        name: Its name, for error messages.
        invalid: Values that mean "no depth", if the user names them.
    """
    plane = _one_channel(plane)
    floating = plane.dtype.kind == "f"
    valid = plane[_is_depth(plane, invalid)]
    has_holes = valid.size < plane.size
    marks: list[float] = []
    while valid.size and len(marks) < _MAX_MARKS:
        peak = float(valid.max())
        if not (peak >= _IMPOSSIBLE or peak == STEPS or (floating and peak == _HALF_FLOAT_MAX)):
            break
        marks.append(peak)
        valid = valid[valid < peak]
    return DepthValues(
        name=name,
        source=FLOATING if floating else INTEGER,
        bits=8 * plane.itemsize,
        peak=float(valid.max(initial=0)),
        marks=tuple(marks),
        whole=not floating or bool((valid == np.floor(valid)).all()),
        has_holes=has_holes,
        zeros=float((plane == 0).mean()) if plane.size else 0.0,
    )


def choose_depth_encoding(
    maps: Sequence[DepthValues], given: DepthEncoding | None = None
) -> DepthEncoding:
    """Choose the encoding of a data set from some of its depth maps.

    Args:
        maps: Descriptions of the maps; may be empty.
        given: What a layout file says; its ``source`` is ignored.

    Raises:
        ImageError: The values fit no rule. The message names a map, its values and the remedy.
    """
    given = given or DepthEncoding()
    sources = {each.source for each in maps}
    if len(sources) > 1:
        both = " and ".join(
            next(f"{each.name} ({each.source})" for each in maps if each.source == source)
            for source in (FLOATING, INTEGER)
        )
        raise ImageError(f"depth maps of two types, {both}; expected one; save all alike")
    if not maps:
        return given
    narrow, wide = (
        next((each.name for each in maps if (each.bits == 8) == is_narrow), None)
        for is_narrow in (True, False)
    )
    if narrow and wide:
        raise ImageError(
            f"depth maps with 8 bits and with more, {narrow} and {wide}; expected one, because "
            "their steps differ; save all with the same bits, or build two data sets"
        )
    source = sources.pop()
    highest = max(maps, key=lambda each: each.peak)
    peak = highest.peak
    marks = sorted({mark for each in maps for mark in each.marks})
    if marks and (given.has_holes is None or marks[0] < _APART * peak):
        # Not apart from the rest, as in maps that use all 16 bits: ordinary values.
        highest = max(maps, key=lambda each: max((each.peak, *each.marks)))
        peak, marks = max((highest.peak, *highest.marks)), []
    found = given._replace(
        source=source,
        invalid=tuple(sorted({*given.invalid, *marks})),
        has_holes=bool(given.invalid or marks) or any(each.has_holes for each in maps),
    )
    if source == INTEGER:
        if peak > STEPS:
            raise ImageError(_too_large(peak, found, highest.name))
        return found
    if found.scale is None:
        if given.unit == "mm" or (peak > STEPS / KITTI_SCALE and all(each.whole for each in maps)):
            found = found._replace(scale=1.0, unit=given.unit or "mm")
        elif 0 < peak <= 1:
            found = found._replace(scale=float(STEPS), maximum=given.maximum or 1.0)
        else:
            found = found._replace(scale=KITTI_SCALE)
    if peak * (found.scale or 1) > STEPS + 0.5:
        raise ImageError(_too_large(peak, found, highest.name))
    return found


def unexplained_zeros(
    maps: Sequence[DepthValues], encoding: DepthEncoding, given: DepthEncoding | None = None
) -> float:
    """Return the mean share of zeros if it tells that 0 means "no depth", else 0.

    It does in maps of more than 8 bits with more zeros than a scene can have. Floating-point maps
    of relative depth, from 0 to 1, are left out.

    Args:
        maps: As for ``choose_depth_encoding``.
        encoding: Its result.
        given: What a layout file says.
    """
    said = encoding.has_holes or (given is not None and given.has_holes is None)
    if said or encoding.scale == STEPS or all(each.bits == 8 for each in maps):
        return 0.0
    share = sum(each.zeros for each in maps) / len(maps)
    return share if share > _MAX_ZEROS else 0.0


def convert_depth(plane: NDArray[Any], encoding: DepthEncoding) -> NDArray[Any]:
    """Convert a depth map to the steps of a shard.

    Args:
        plane: (H, W) or (H, W, 3), any real dtype.
        encoding: The rule of the data set.

    Returns:
        (H, W) uint8 or uint16; ``plane`` itself if nothing changes.

    Raises:
        ImageError: A value cannot be stored, or the map does not fit the rule.
    """
    plane = _one_channel(plane)
    floating = plane.dtype.kind == "f"
    if encoding.source and (encoding.source == FLOATING) != floating:
        other = FLOATING if floating else INTEGER
        raise ImageError(f"{other} depth among {encoding.source} maps; expected one type")
    valid = _is_depth(plane, encoding.invalid)
    every = bool(valid.all())
    scale = (encoding.scale or KITTI_SCALE) if floating else 1.0
    peak = float(np.max(plane, where=valid, initial=0))
    limit = STEPS / scale
    if encoding.maximum is not None:
        limit = min(limit, encoding.maximum * (1.0 if floating else encoding.scale or 1.0))
    if peak * scale > limit * scale + (0.5 if floating else _WHOLE_STEPS):
        raise ImageError(_too_large(peak, encoding._replace(scale=scale), limit=limit))
    if floating:
        steps = np.where(valid, plane, 0).astype(np.float64) * scale
        return np.clip(np.rint(steps), 0, STEPS).astype(np.uint16)
    stored = plane if every else np.where(valid, plane, plane.dtype.type(0))
    return stored if plane.dtype == np.uint8 else stored.astype(np.uint16, copy=False)


def _one_channel(plane: NDArray[Any]) -> NDArray[Any]:
    """Return the plane of a gray map saved in colour. Raises ImageError for other colours."""
    if plane.ndim == 2:
        return plane.astype(np.uint8) if plane.dtype == np.bool_ else plane
    if plane.shape[2] == 1:
        return _one_channel(plane[..., 0])
    colours = plane[..., :3]
    low, high = colours.min(axis=2), colours.max(axis=2)
    slack = _GRAY_SLACK if plane.dtype == np.uint8 else 0
    # The channels of a floating-point map are equal where it is not a number, too.
    same = (high <= low) | ~np.isfinite(high) | ~np.isfinite(low)
    if slack:
        same |= high - low <= slack
    if not same.all():
        raise ImageError("a depth map in colours, whose values cannot be told")
    return np.ascontiguousarray(colours[..., 1])


def _is_depth(plane: NDArray[Any], invalid: Sequence[float]) -> NDArray[np.bool_]:
    """Where a value may be a depth: finite, not negative, and none that means "no depth"."""
    valid: NDArray[np.bool_] = np.isfinite(plane) & (plane >= 0)
    for value in invalid:
        # In the map's own precision: 3.4e38 is not the same number in 32 and in 64 bits.
        own = plane.dtype.type(value) if plane.dtype.kind == "f" else value
        valid &= plane != own
    return valid


def _too_large(
    peak: float, encoding: DepthEncoding, name: str = "", *, limit: float | None = None
) -> str:
    scale = encoding.scale or 1.0
    limit = STEPS / scale if limit is None else limit
    unit = f" {encoding.unit}" if encoding.unit else ""
    steps = 10.0 ** np.floor(np.log10(STEPS / peak))
    return (
        f"{name}{': ' if name else ''}depth of up to {peak:g}{unit}; at most {limit:.5g} can be "
        f"stored at {scale:g} steps a unit; in a layout file, set [depth] scale = {steps:g} "
        f"(steps a unit), or invalid = {peak:g} if that means no depth"
    )
