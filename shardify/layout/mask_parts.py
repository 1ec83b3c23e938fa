"""Tell from names whether several masks are parts of one picture's mask."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from shardify.layout import filenames

_ANNOTATOR = re.compile(
    r"(?:annotation|annotator|observer|rater|reader|expert|manual|user|(?<![a-z])by)"
    r"[\W_]*(\d+|[a-z](?![a-z]))|(\d(?:st|nd|rd|th))(?![a-z]{3})"
)
_SEPARATOR = re.compile(r"[\W_]")
_ONE_NUMBER = re.compile(r"[\W_]\d+")
_NUMBERS = re.compile(r"[\W_]*\d+")
_LAST_NUMBER = re.compile(r"\d{1,18}(?=\D*$)")
_FIRST_WORD = re.compile(r"[\W_]*([^\W\d_]+)")


def belong_together(
    picture: str, masks: Sequence[str], *, in_own_folder: bool, begin_with_picture: bool
) -> bool:
    """Whether several masks surely are parts of one picture's mask.

    Args:
        picture: Name of the picture.
        masks: Names of the masks.
        in_own_folder: Whether they are joined because their folder is that of this picture alone.
        begin_with_picture: Whether they are joined because their names begin with the picture's.
    """
    if len({name.rpartition("/")[0] for name in masks}) > 1:
        return False
    if len({tuple(_ANNOTATOR.findall(filenames.file_stem(name).lower())) for name in masks}) > 1:
        # Each annotator drew the whole object, in their own way.
        return False
    if in_own_folder:
        return True
    ends = [end for name in masks if (end := end_after(picture, name)) is not None]
    if len(set(ends)) < len(masks):
        return False
    if begin_with_picture and all(_ONE_NUMBER.fullmatch(end) for end in ends):
        return True
    words = [word[1] for end in ends if (word := _FIRST_WORD.match(end))]
    if len(words) < len(ends):
        return False
    if len({_NUMBERS.sub("", end) for end in ends}) == 1:
        return True
    return begin_with_picture and len(set(words)) == 1


def find_gaps(ends: Mapping[int, Sequence[str]], united: Sequence[int]) -> dict[int, int]:
    """Find pictures whose masks are numbered with a gap: a part of the object is missing.

    Numbers with gaps in most pictures are no series, but classes or IDs of instances.

    Args:
        ends: Row of a picture -> what follows its name in the names of its masks.
        united: Rows with several masks.

    Returns:
        Row -> the lowest number that is missing.
    """
    series = {row: _numbers_by_text(row_ends) for row, row_ends in ends.items()}
    lowest = Counter(min(set().union(*series[row].values())) for row in united)
    start = lowest.most_common(1)[0][0]
    if start > 1:
        return {}
    # Each word of a tool has numbers of its own, or all share one series.
    for together in (False, True):
        gaps = {}
        for row, by_text in series.items():
            parts = [set().union(*by_text.values())] if together else by_text.values()
            missing = [gap for part in parts if (gap := _first_gap(part, start)) is not None]
            if missing:
                gaps[row] = missing[0]
        if 2 * sum(row in gaps for row in united) <= len(united):
            return gaps
    return {}


def _numbers_by_text(ends: Sequence[str]) -> dict[str, set[int]]:
    """Return the last number of each name by the rest of the name.

    A name without a number is the one before the lowest: ``x_mask`` beside ``x_mask_2`` is 1.
    """
    numbers: dict[str, set[int]] = {}
    unnumbered = []
    for end in ends:
        text = _SEPARATOR.sub("", _LAST_NUMBER.sub("", end))
        if match := _LAST_NUMBER.search(end):
            numbers.setdefault(text, set()).add(int(match[0]))
        else:
            unnumbered.append(text)
    for text in unnumbered:
        others = numbers.setdefault(text, set())
        others.add(1 if others and min(others) == 2 else 0)
    return numbers


def _first_gap(numbers: set[int], start: int) -> int | None:
    """Return the lowest number from ``start`` on that a series lacks; None if it is whole."""
    missing = next(number for number in itertools.count(start) if number not in numbers)
    return missing if missing < max(numbers) else None


def end_after(picture: str, mask: str) -> str | None:
    """Return what follows a picture's name in that of its mask; None if it does not begin so."""
    picture, mask = filenames.file_stem(picture).lower(), filenames.file_stem(mask).lower()
    picture_pieces, mask_pieces = filenames.find_pieces(picture), filenames.find_pieces(mask)
    if not picture_pieces or not mask_pieces:
        return None
    picture = picture[picture_pieces[0].start : picture_pieces[-1].stop]
    mask = mask[mask_pieces[0].start :]
    return mask[len(picture) :] if mask.startswith(picture) else None
