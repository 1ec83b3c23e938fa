"""What one file's name says: its role, what it shares with its companions, its numbers.

Strings in, strings and numbers out. This module looks at one name at a time: it compares no two
names, counts nothing and reads no file. ``layout`` does the comparing.

The keys that samples and backgrounds have in a shard, made of their names.

Names in, keys out: unique, and the same whatever the order of the names.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.sources.entry_names import take

__all__ = [
    "ROLES",
    "Shape",
    "Shapes",
    "background_number",
    "folder_number",
    "numbers",
    "safe_key",
    "shape_of",
    "split_of",
    "strip_words",
    "unique_keys",
    "words",
]


ROLES = ("bg", "fg_bg", "mask", "depth")
"""The roles a file may have, in the order in which they are shown."""


KEY_LIMIT = 80
"""Longest key. Characters: KEY.fg_bg.jpeg must fit the 100 bytes of a tar header's name."""

_WORD = re.compile(r"[^-_ .]+")

_LABELS = re.compile(
    # What only says where a depth was measured, and masks of what was not pasted yet.
    r"(?P<validity>depths?(?:[-_ .]?maps?)?[-_ .]?(?:masks?|valid(?:ity)?)(?![a-z])"
    r"|(?<![a-z])validity(?![a-z]))"
    r"|(?P<cutout>(?<![a-z])(?<!bg[-_ .])(?:fg|foreground)s?[-_ .]?masks?(?![a-z]))"
    r"|(?P<trimap>trimap)"
    r"|(?P<mask>mask|matte|silhouette)"
    r"|(?P<depth>depth|disparity|(?<![a-z])(?:disp|dmap)(?![a-z]))"
    r"|(?P<label>segmentation|ground[-_ .]?truth|matting|annotation|annot(?![a-z])"
    r"|(?<![a-z])(?:labels?|gts?|segs?|alphas?|phas?)(?![a-z]))"
)
_OTHER = re.compile(
    r"gtfine|gtcoarse|labelids|labeltrainids|instanceids|rightimg|(?<![a-z])normals?(?![a-z])"
)
_FOR_THE_EYE = re.compile(
    r"(?<![a-z])(?:vis|viz|visuali[sz]ations?|previews?|thumbs?|thumbnails?|colou?red|edges?"
    r"|contours?|boundar(?:y|ies)|skeletons?)(?![a-z])"
)
_SPLIT = re.compile(
    r"(?<![a-z])(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))(?![a-z])"
)
_BOTH = re.compile(
    r"fgs?[-_ .]?bg|bgs?[-_ .]?fg|overla(?:y|id)|composite|(?<![a-z])merged(?![a-z])"
    r"|(?<![a-z])fg[-_ .]?\d.*(?<![a-z])bg[-_ .]?\d"
    r"|(?<![a-z])bg[-_ .]?\d.*(?<![a-z])fg[-_ .]?\d"
    # Single letters only with separators around: hexadecimal names are full of b1 and f0.
    r"|(?:^|[-_ .])(?:f\d+[-_ .]b|b\d+[-_ .]f)\d+(?![a-z\d])"
)
_BACKGROUND = re.compile(
    r"(?<![a-z])(?:bgs?|backs?|backgrounds?)(?:(?![a-z])|(?=images?(?![a-z])|imgs?(?![a-z])))"
)
_BACKGROUND_NUMBERED = re.compile(r"(?<![a-z])(?:bg|back|background)[-_ .]?\d")
_FOREGROUND = re.compile(
    r"^(?:fgs?|foregrounds?|cut[-_ ]?outs?)(?:[-_ ](?:images?|png|jpe?g|rgba))?$"
)
_PICTURE = re.compile(
    r"(?<![a-z])(?:images?|imgs?|pictures?|photos?|rgb|colou?rs?)(?![a-z])|leftimg"
)

_ROLE_WORDS = re.compile(
    r"(?:dense[-_ ]?)?depths?(?:[-_ ]?maps?)?|disparity|masks?|trimaps?|mattes?|silhouettes?"
    r"|fgs?[-_ .]?bgs?(?![a-z])|bgs?[-_ .]?fgs?(?![a-z])|overla(?:y(?:ed|s)?|id)|composites?"
    r"|segmentations?|ground[-_ ]?truths?"
    r"|leftimg8bit|(?<![a-z])(?:colou?rs?|rgb|images?|imgs?|annotations?|labels?|gts?|segs?|alphas?"
    r"|phas?)(?![a-z])|images?$"
)
_BACKGROUND_NUMBER = re.compile(r"(?<![a-z])(?:bg|b|back|background)[-_ .]?(\d{1,9})(?!\d)")
_FOREGROUND_NUMBER = re.compile(r"(?<![a-z])(?:fg|f|fore|foreground)[-_ .]?(\d{1,9})(?!\d)")
_DIGITS = re.compile(r"\d+")
_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_REMEMBERED = 50_000
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def words(part: str) -> tuple[str, ...]:
    """The words for a role in one folder's name, or in one file's stem, from left to right.

    Returns:
        ``mask``, ``depth``, ``fg_bg``, ``bg``, each as often as it stands there; ``label`` for
        words such as ``annotation``, which may be any target; ``validity`` for ``depth_mask``,
        which says where a depth was measured; ``trimap``, a mask where there is no other;
        ``cutout`` for masks of foregrounds alone; ``eye`` for what was made to be looked at;
        ``other`` for what is no role here. Only where there is none of these: ``numbered`` for
        ``bg_007``, which may be a background or the folder of what was pasted on it; ``fg`` for
        foregrounds; ``picture`` for words such as ``images``.
    """
    part = part.lower()
    if _OTHER.search(part):
        return ("other",)
    found = [(each.start(), str(each.lastgroup)) for each in _LABELS.finditer(part)]
    found += [(each.start(), "eye") for each in _FOR_THE_EYE.finditer(part)]
    both = [(each.start(), "fg_bg") for each in _BOTH.finditer(part)]
    numbered = _BACKGROUND_NUMBERED.search(part)
    if not both and not numbered and (back := _BACKGROUND.search(part)):
        found.append((back.start(), "bg"))
    found += both
    if found:
        return tuple(word for _, word in sorted(found))
    if numbered:
        return ("numbered",)
    if _FOREGROUND.match(part):
        return ("fg",)
    return ("picture",) if _PICTURE.search(part) else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What all stems that differ in their digits alone have in common."""

    pieces: tuple[slice, ...]
    """Where the stem's characters lie that are no words for a role; joined by ``_``."""

    background: slice | None
    """Where, in the joined pieces, the background's number lies."""

    foreground: slice | None
    """Where, in the joined pieces, the foreground's number lies."""


def shape_of(stem: str) -> Shape:
    """Study one stem (lower case). The result holds for every stem with other digits in it."""
    pieces = _pieces(stem)
    text = "_".join(stem[piece] for piece in pieces)
    return Shape(
        pieces=pieces,
        background=_number_span(_BACKGROUND_NUMBER, text),
        foreground=_number_span(_FOREGROUND_NUMBER, text),
    )


class Shapes:
    """What stems say, remembered by their shape, so that a million names cost a few studies.

    Each question is remembered apart: names that share no shape pay for what is asked alone.
    """

    def __init__(self) -> None:
        self._words: dict[bytes, tuple[str, ...]] = {}
        self._pieces: dict[bytes, tuple[slice, ...]] = {}
        self._shapes: dict[bytes, Shape] = {}

    def words(self, stem: str) -> tuple[str, ...]:
        """``words`` of a stem in lower case."""
        outline = _outline(stem)
        found = self._words.get(outline)
        if found is None:
            found = words(stem)
            if len(self._words) < _REMEMBERED:
                self._words[outline] = found
        return found

    def of(self, stem: str) -> Shape:
        """The shape of a stem in lower case."""
        outline = _outline(stem)
        shape = self._shapes.get(outline)
        if shape is None:
            shape = shape_of(stem)
            if len(self._shapes) < _REMEMBERED:
                self._shapes[outline] = shape
        return shape

    def stripped(self, stem: str) -> str:
        """``strip_words`` of a stem in lower case."""
        outline = _outline(stem)
        pieces = self._pieces.get(outline)
        if pieces is None:
            pieces = _pieces(stem)
            if len(self._pieces) < _REMEMBERED:
                self._pieces[outline] = pieces
        if len(pieces) == 1:
            return stem[pieces[0]]
        return "_".join([stem[piece] for piece in pieces])


def _outline(stem: str) -> bytes:
    return stem.encode("utf-8", "surrogatepass").translate(_ANY_DIGIT)


def strip_words(part: str) -> str:
    """A folder's name or a stem without the words that only tell its role, in lower case.

    What is left is what companions share: ``mask_fg_015_bg_085_7`` and ``fg_015_bg_085_7``
    give the same.
    """
    part = part.lower()
    return "_".join(part[piece] for piece in _pieces(part))


def numbers(text: str) -> list[int]:
    """Every run of digits, as a number, from left to right; of a very long one its last 18."""
    return [int(digits[-18:]) for digits in _DIGITS.findall(text)]


def background_number(text: str) -> int:
    """The number that follows ``bg``, ``b``, ``back`` or ``background``; -1 without one.

    ``text`` is stripped of role words, so that the 638 of ``fg_bg_638`` is not taken for one.
    """
    span = _number_span(_BACKGROUND_NUMBER, text)
    return int(text[span]) if span else -1


def split_of(path: str) -> str | None:
    """``train``, ``val`` or ``test``, where a folder's path says so; the outermost word counts."""
    found = _SPLIT.search(path.lower())
    return ("train", "val", "test")[(found.lastindex or 1) - 1] if found else None


def folder_number(path: str, shared: int) -> int:
    """The number of the background after which a folder, or one around it, is named; or -1.

    The outermost ``shared`` folders are not looked at.
    """
    for part in reversed(path.split("/")[shared:]):
        number = background_number(strip_words(part))
        if number >= 0:
            return number
    return -1


def safe_key(text: str, *, of: str = "") -> str:
    """``text`` as a shard's key: ASCII letters, digits, ``_`` and ``-``; at most 80 characters.

    Where it is too long, or ``of`` is given, 16 hexadecimal digits end it: of the SHA-256 of
    ``of``, or of the text itself.
    """
    key = _UNSAFE.sub("_", text).strip("_-")
    if 0 < len(key) <= KEY_LIMIT and not of:
        return key
    digest = hashlib.sha256((of or text).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{key[: KEY_LIMIT - 17]}-{digest}" if key else f"k-{digest}"


def _pieces(part: str) -> tuple[slice, ...]:
    """The spans of ``part`` that are neither a role's word nor a separator.

    Spans that one underscore parts are given as one.
    """
    blank = _ROLE_WORDS.sub(lambda found: " " * len(found[0]), part)
    pieces: list[slice] = []
    for found in _WORD.finditer(blank):
        if pieces and found.start() == pieces[-1].stop + 1 and blank[pieces[-1].stop] == "_":
            pieces[-1] = slice(pieces[-1].start, found.end())
        else:
            pieces.append(slice(*found.span()))
    return tuple(pieces)


def _number_span(pattern: re.Pattern[str], text: str) -> slice | None:
    """Where the first match of ``pattern`` has its digits."""
    found = pattern.search(text)
    return slice(*found.span(1)) if found else None


_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-\n"

IntArray = npt.NDArray[np.int32]


def unique_keys(names: Sequence[str], members: IntArray, shared: int) -> list[str]:
    """A safe key for each file: its stem, or its path where stems repeat.

    Paths that are alike once made safe are told apart by digits of their SHA-256.
    """
    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in take(names, members)]
    keys = stems if _all_safe(stems) else list(map(safe_key, stems))
    if len(set(keys)) == len(keys):
        return keys
    paths = [
        "/".join(names[index].split("/")[shared:]).rpartition(".")[0] for index in members.tolist()
    ]
    keys = [safe_key(path) for path in paths]
    often = {key for key, count in Counter(keys).items() if count > 1}
    return [
        safe_key(key, of=names[index]) if key in often else key
        for key, index in zip(keys, members.tolist(), strict=True)
    ]


def _all_safe(stems: list[str]) -> bool:
    """Whether every stem is a safe key as it is; quick, and False where in doubt."""
    lines = "\n" + "\n".join(stems) + "\n"
    return (
        all(stems)
        and max(map(len, stems)) <= KEY_LIMIT
        and lines.isascii()
        and not lines.encode().translate(None, _SAFE)
        and lines.count("\n") == len(stems) + 1
        and not any(edge in lines for edge in ("\n_", "\n-", "_\n", "-\n"))
    )
