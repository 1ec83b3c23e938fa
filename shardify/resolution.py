"""The resolution of stored images and of batches: one number for a square, else HEIGHTxWIDTH.

The one place that parses and formats resolutions. Does not know which ones a network takes.
"""

from typing import Any, NamedTuple

MAX_SIDE = 8192
"""Largest side that text may state, in pixels: a number beyond is a slip."""

EXPECTED = f"a side in pixels, 1 to {MAX_SIDE}, or HEIGHTxWIDTH like 128x224"


class Resolution(NamedTuple):
    """Height and width in pixels. ``str`` and JSON of a square are its side."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def folder(self) -> str:
        """Name of the folder of a data set stored at this resolution, like ``res-064``."""
        return f"res-{self.height:03d}" if self.height == self.width else f"res-{self}"

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    def to_json(self) -> int | str:
        """Return the side of a square, else ``"HEIGHTxWIDTH"``; `resolution` reads it back."""
        return self.height if self.height == self.width else str(self)


ResolutionLike = int | str | tuple[int, int]
"""Side of a square, (height, width), or text as on the command line."""


def resolution(value: ResolutionLike) -> Resolution:
    """Return the resolution that a number, a pair or a text states.

    Raises:
        ValueError: It states none; the message says what was expected.
    """
    if isinstance(value, Resolution):
        return value
    sides: object = value
    if isinstance(value, str):
        parts = value.strip().lower().split("x")
        plain = len(parts) < 3 and all(part.isascii() and part.isdecimal() for part in parts)
        sides = tuple(map(int, parts)) if plain and len(value) < 32 else None
        if isinstance(sides, tuple) and max(sides) > MAX_SIDE:
            sides = None
    if isinstance(sides, int):
        sides = (sides,)
    if isinstance(sides, tuple | list) and len(sides) in (1, 2):
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        if whole and min(sides) > 0:
            return Resolution(sides[0], sides[-1])
    shown = "x".join(map(str, value)) if isinstance(value, tuple) else value
    raise ValueError(f"resolution {shown}: expected {EXPECTED}")


def is_resolution(value: Any) -> bool:
    """Return whether a JSON value is one that ``Resolution.to_json`` returns."""
    try:
        return bool(resolution(value).to_json() == value)
    except ValueError:
        return False


def parse_resolutions(text: str) -> tuple[Resolution, ...]:
    """Parse a comma-separated list like ``64,128x224``.

    Raises:
        ValueError: As `resolution`.
    """
    return tuple(map(resolution, text.split(",")))
