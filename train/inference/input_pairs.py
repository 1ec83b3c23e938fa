"""Find input images and match each with its background by name.

Outputs of earlier predictions in the same folder are skipped.
"""

import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from shardify.errors import DataError

MARK = "shardline train predict"
"""Value of the PNG text ``Software`` in predicted images."""

_PREDICTED = re.compile(r"_(?:mask|depth|depth_color|overlay)\.png$")

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class InputPair(NamedTuple):
    """One image and its background."""

    fg_bg: Path
    bg: Path | None
    """The same scene without the object; None for a network that does not use it."""


def find_pairs(bg: Path | None, fg_bg: Path) -> list[InputPair]:
    """Match images with backgrounds.

    A single background is used for all images. In a folder, the background of an image is the file
    with the same stem, or else the file whose last number is the number after ``bg`` in the name of
    the image.

    Both paths are an image, or a folder that is searched recursively.

    Raises:
        DataError: A path is missing, or an image has no background or more than one.
    """
    images = _files(fg_bg)
    stems = [image.stem for image in images]
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f"{fg_bg}: several images are named {twice}; predict one folder at a time")
    if bg is None:
        return [InputPair(image, None) for image in images]
    backgrounds = _files(bg)
    if len(backgrounds) == 1:
        return [InputPair(image, backgrounds[0]) for image in images]
    by_stem: dict[str, list[Path]] = {}
    by_number: dict[int, list[Path]] = {}
    for file in backgrounds:
        by_stem.setdefault(file.stem, []).append(file)
        if numbers := re.findall(r"\d+", file.stem):
            by_number.setdefault(int(numbers[-1]), []).append(file)
    pairs = []
    for image in images:
        found = by_stem.get(image.stem, [])
        if not found and (number := re.search(r"(?<![a-z])bg[_-]?(\d+)", image.stem, re.I)):
            found = by_number.get(int(number[1]), [])
        if len(found) != 1:
            matches = ", ".join(map(str, found)) or "none"
            raise DataError(
                f"{image}: matching backgrounds in {bg}: {matches}; expected one with the same "
                "stem, or with the number after bg in the image's name; or pass one file as --bg"
            )
        pairs.append(InputPair(image, found[0]))
    return pairs


def is_prediction(path: Path) -> bool:
    """Return whether a file was written by a prediction."""
    if not _PREDICTED.search(path.name):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MARK
    # Pillow raises many types of errors for damaged files; ours are written atomically.
    except Exception:
        return False


def _files(path: Path) -> list[Path]:
    """Return the image, or all images below the folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected an image or a folder of images")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in EXTENSIONS
        and file.is_file()
        and not file.name.startswith("._")
        and not is_prediction(file)
    )
    if not found:
        raise DataError(f"{path}: contains no images; expected {', '.join(sorted(EXTENSIONS))}")
    return found
