"""Which background belongs to which picture: by name, never by position.

Looks for files, and passes over what an earlier prediction left among them.
"""

import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from shardify.errors import DataError

__all__ = ["MARK", "InputPair", "find_pairs", "is_prediction"]

MARK = "shardline train predict"
"""What a predicted PNG says of its origin, under Software."""

_PREDICTED = re.compile(r"_(?:mask|depth|overlay)\.png$")

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class InputPair(NamedTuple):
    """One picture and its background."""

    fg_bg: Path
    """The picture with the object."""

    bg: Path | None
    """The same scene without it; None for a network that looks at none."""


def find_pairs(bg: Path | None, fg_bg: Path) -> list[InputPair]:
    """Which background belongs to which picture.

    One background serves for every picture. In a folder, a picture's background is the file of the
    same stem, or else the one whose last number is the number after ``bg`` in the picture's name.

    Args:
        bg: A picture, or a folder of them (searched to any depth); None: there are none.
        fg_bg: Likewise.

    Raises:
        DataError: Something is missing, or a picture has no background, or more than one.
    """
    pictures = _files(fg_bg)
    stems = [picture.stem for picture in pictures]
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{fg_bg}: several pictures are named {twice}; predict folder by folder")
    if bg is None:
        return [InputPair(picture, None) for picture in pictures]
    backgrounds = _files(bg)
    if len(backgrounds) == 1:
        return [InputPair(picture, backgrounds[0]) for picture in pictures]
    by_stem: dict[str, list[Path]] = {}
    by_number: dict[int, list[Path]] = {}
    for file in backgrounds:
        by_stem.setdefault(file.stem, []).append(file)
        if numbers := re.findall(r"\d+", file.stem):
            by_number.setdefault(int(numbers[-1]), []).append(file)
    jobs = []
    for picture in pictures:
        found = by_stem.get(picture.stem, [])
        if not found and (number := re.search(r"(?<![a-z])bg[_-]?(\d+)", picture.stem, re.I)):
            found = by_number.get(int(number[1]), [])
        if len(found) != 1:
            what = ", ".join(map(str, found)) or "none"
            raise DataError(
                f"{picture}: backgrounds that its name fits in {bg}: {what}; expected one of the "
                "same stem, or numbered as bg_NUMBER in its name; or pass one file as --bg"
            )
        jobs.append(InputPair(picture, found[0]))
    return jobs


def is_prediction(path: Path) -> bool:
    """Whether a file is one that a prediction wrote."""
    if not _PREDICTED.search(path.name):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MARK
    # Pillow raises nearly anything on damaged input, which is none of ours: they appear whole.
    except Exception:
        return False


def _files(path: Path) -> list[Path]:
    """The picture, or all pictures below the folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected a picture or a folder of them")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in EXTENSIONS
        and file.is_file()
        and not file.name.startswith("._")
        and not is_prediction(file)
    )
    if not found:
        raise DataError(f"{path}: no pictures in it; expected {', '.join(sorted(EXTENSIONS))}")
    return found
