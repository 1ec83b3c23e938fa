"""Tell from names whether several masks are parts of one picture's mask."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from shardify.layout import filenames

DIGIT = re.compile(r"[0-9]")
_LAST_NUMBER = re.compile(r"\d{1,18}(?=\D*$)")
_ANNOTATOR = re.compile(
    r"(?:annotation|annotator|observer|rater|reader|expert|manual|user|(?<![a-z])by)"
    r"[\W_]*(\d+|[a-z](?![a-z]))|(\d(?:st|nd|rd|th))(?![a-z]{3})"
)
SEPARATOR = re.compile(r"[\W_]")
FILE_EXTENSION = re.compile(r"_(?:jpe?g|png|tiff?|bmp)$")
"""End of a folder that is named as a file, once its words are stripped."""
WORD_END = re.compile(r"^[^\W_]*")
NUMBER_FIRST = re.compile(r"[\W_]*\d")
_ONE_NUMBER = re.compile(r"[\W_]\d+")
_NUMBERS = re.compile(r"[\W_]*\d+")
_FIRST_WORD = re.compile(r"[\W_]*([^\W\d_]+)")
HAS_LETTER = re.compile(r"[^\W\d_]")


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
    ends = [end_after(picture, name) for name in masks]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends) or len(set(known)) < len(ends):
        return False
    if begin_with_picture and all(_ONE_NUMBER.fullmatch(end) for end in known):
        return True
    words = [_FIRST_WORD.match(end) for end in known]
    if any(word is None for word in words):
        return False
    if len({_NUMBERS.sub("", end) for end in known}) == 1:
        return True
    return begin_with_picture and len({word[1] for word in words if word}) == 1


def find_gaps(ends: Mapping[int, Sequence[str]], united: Sequence[int]) -> dict[int, int]:
    """Find pictures whose masks are numbered with a gap: a part of the object is missing.

    Numbers with gaps in most pictures are no series, but classes or IDs of instances.

    Args:
        ends: Row of a picture -> what follows its name in the names of its masks.
        united: Rows with several masks.

    Returns:
        Row -> the lowest number that is missing.
    """
    series = {row: _numbers_by_text(each) for row, each in ends.items()}
    firsts = Counter(min(set().union(*series[row].values())) for row in united)
    start = firsts.most_common(1)[0][0]
    if start > 1:
        return {}
    # Each word of a tool has numbers of its own, or all share one series.
    for together in (False, True):
        gaps = {}
        for row, each in series.items():
            parts = [set().union(*each.values())] if together else list(each.values())
            if lacking := [gap for part in parts if (gap := _first_gap(part, start)) is not None]:
                gaps[row] = lacking[0]
        if 2 * sum(row in gaps for row in united) <= len(united):
            return gaps
    return {}


def _numbers_by_text(ends: Sequence[str]) -> dict[str, set[int]]:
    """Return the last number of each name by the rest of the name.

    A name without a number is the one before the lowest: ``x_mask`` beside ``x_mask_2`` is 1.
    """
    found: dict[str, set[int]] = {}
    bare = []
    for end in ends:
        match = _LAST_NUMBER.search(end)
        rest = end if match is None else end[: match.start()] + end[match.end() :]
        text = SEPARATOR.sub("", rest)
        if match is None:
            bare.append(text)
        else:
            found.setdefault(text, set()).add(int(match[0]))
    for text in bare:
        each = found.setdefault(text, set())
        each.add(1 if each and min(each) == 2 else 0)
    return found


def _first_gap(numbers: set[int], start: int) -> int | None:
    """Return the lowest number from ``start`` on that a series lacks; None if it is whole."""
    lacking = next(number for number in itertools.count(start) if number not in numbers)
    return lacking if lacking < max(numbers) else None


def end_after(picture: str, mask: str) -> str | None:
    """Return what follows a picture's name in that of its mask; None if it does not begin so."""
    front, back = filenames.file_stem(picture).lower(), filenames.file_stem(mask).lower()
    pieces, others = filenames.parse_stem(front).pieces, filenames.parse_stem(back).pieces
    if not pieces or not others:
        return None
    front, back = front[pieces[0].start : pieces[-1].stop], back[others[0].start :]
    return back[len(front) :] if back.startswith(front) else None
