"""Parse file and folder names: role words, numbers, split, and the keys of samples.

Keys are unique and do not depend on the order of the names.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from shardify.sources.entry_names import take

IntArray = npt.NDArray[np.int32]
T = TypeVar("T")

ROLES = ("bg", "fg_bg", "mask", "depth")
"""Roles that a file may have, in the order in which they are shown."""

KEY_LIMIT = 80
"""Longest key, in characters: KEY.fg_bg.jpeg must fit the 100 bytes of a tar header's name."""

MAX_INT32 = 2**31 - 1

MAX_CACHED_OUTLINES = 50_000
"""Number of distinct outlines (names with every digit as 0) whose parsed parts are kept."""

_PART = re.compile(r"[^-_ .]+")

_TARGET_WORDS = re.compile(
    # Validity masks of depth maps, and masks of foregrounds before composition.
    r"(?P<validity>depths?(?:[-_ .]?maps?)?[-_ .]?(?:masks?|valid(?:ity)?)(?![a-z])"
    r"|(?<![a-z])validity(?![a-z]))"
    r"|(?P<cutout>(?<![a-z])(?<!bg[-_ .])(?:fg|foreground)s?[-_ .]?masks?(?![a-z]))"
    r"|(?P<trimap>trimap)"
    # DRIVE, HRF: masks drawn by hand, beside a folder named mask for the field of view.
    r"|(?P<mask>mask|matte|silhouette|\d(?:st|nd)[-_ .]?manual(?![a-z])|(?<![a-z])manual[-_ .]?\d)"
    r"|(?P<depth>depth|disparit(?:y|ies)|(?<![a-z])(?:disp|dmap)(?![a-z]))"
    r"|(?P<label>segmentation|ground[-_ .]?truth|matting|annotation|annot(?![a-z])"
    r"|(?<![a-z])(?:anno|labels?|gts?|segs?|alphas?|phas?)(?![a-z]))"
)
_UNUSED_WORDS = re.compile(
    r"gtfine|gtcoarse|labelids|labeltrainids|instanceids|rightimg|(?<![a-z])normals?(?![a-z])"
)
_VISUALIZATION_WORDS = re.compile(
    r"(?<![a-z])(?:vis|viz|visuali[sz]ations?|previews?|thumbs?|thumbnails?|colou?red|edges?"
    r"|superpixels?|segmentation[-_ ]?objects?|instances?|contours?|boundar(?:y|ies)|skeletons?)"
    r"(?![a-z])"
)
_SPLIT_WORDS = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev)"
    r"|(?P<test>test(?:ing)?))(?![a-z])"
)
_COMPOSITE_WORDS = re.compile(
    r"fgs?[-_ .]?bg|bgs?[-_ .]?fg|overla(?:y|id)|composite|(?<![a-z])merged(?![a-z])"
    r"|(?<![a-z])fg[-_ .]?\d.*(?<![a-z])bg[-_ .]?\d"
    r"|(?<![a-z])bg[-_ .]?\d.*(?<![a-z])fg[-_ .]?\d"
    # Single letters only with separators around: b1 and f0 are common in hexadecimal names.
    r"|(?:^|[-_ .])(?:f\d+[-_ .]b|b\d+[-_ .]f)\d+(?![a-z\d])"
)
_BACKGROUND_WORDS = re.compile(
    r"(?<![a-z])(?:bgs?|backs?|backgrounds?)(?:(?![a-z])|(?=images?(?![a-z])|imgs?(?![a-z])))"
)
_BACKGROUND_NUMBERED = re.compile(r"(?<![a-z])(?:bg|back|background)[-_ .]?\d")
_FOREGROUND_WORDS = re.compile(
    r"^(?:fgs?|fgrs?|foregrounds?|cut[-_ ]?outs?)"
    r"(?:[-_ ](?:images?|png|jpe?g|rgba|only|cropped|trimmed|resized|transparent))?$"
)
_IMAGE_WORDS = re.compile(
    r"(?<![a-z])(?:images?|imgs?|pictures?|photos?|rgb|colou?rs?)(?![a-z])|leftimg|jpegimages"
)

_ROLE_WORDS = re.compile(
    r"(?:dense[-_ ]?)?depths?(?:[-_ ]?maps?)?|disparit(?:y|ies)|masks?|trimaps?|mattes?"
    r"|silhouettes?"
    r"|fgs?[-_ .]?bgs?(?![a-z])|bgs?[-_ .]?fgs?(?![a-z])|overla(?:y(?:ed|s)?|id)|composites?"
    r"|segmentations?|ground[-_ ]?truths?"
    r"|leftimg8bit|(?<![a-z])(?:colou?rs?|rgb|images?|imgs?|annotations?|labels?|gts?|segs?|alphas?"
    r"|phas?)(?![a-z])|images?$"
)
_BACKGROUND_NUMBER = re.compile(r"(?<![a-z])(?:bg|b|back|background)[-_ .]?(\d{1,9})(?!\d)")
_FOREGROUND_NUMBER = re.compile(r"(?<![a-z])(?:fg|f|fore|foreground)[-_ .]?(\d{1,9})(?!\d)")
_DIGITS = re.compile(r"\d+")
_NUMBER_WORDS = re.compile(
    r"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    # Hexadecimal: letters and digits, but neither a word and a number nor b007f012.
    r"|(?=[0-9]*[a-f])(?=[a-f]*[0-9])(?!(?:[a-f]+[0-9]{4,}|[a-f][0-9]{2,}[a-f][0-9]{2,})(?![0-9a-z]))"
    r"[0-9a-f]{8,}"
    r")(?![0-9a-z])|\d+",
)
_NUMBER_PARTS = re.compile(r"(\d+)")
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9_-]+")
_SAFE_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-\n"


def role_words(part: str) -> tuple[str, ...]:
    """Return the words for a role in one folder's name or one file's stem, from left to right.

    Returns:
        ``mask``, ``depth``, ``fg_bg``, ``bg``, each as often as it occurs; ``label`` for words such
        as ``annotation``, which may be any target; ``validity`` for ``depth_mask``, which marks
        where a depth was measured; ``trimap``, a mask if there is no other; ``cutout`` for masks of
        foregrounds alone; ``eye`` for visualisations; ``other`` for files that are never used. Only
        if there is none of these: ``numbered`` for ``bg_007``, which may be a background or a
        folder of composites on it; ``fg`` for foregrounds; ``picture`` for words such as
        ``images``.
    """
    part = part.lower()
    if _UNUSED_WORDS.search(part):
        return ("other",)
    words = [(match.start(), str(match.lastgroup)) for match in _TARGET_WORDS.finditer(part)]
    words += [(match.start(), "eye") for match in _VISUALIZATION_WORDS.finditer(part)]
    composites = [(match.start(), "fg_bg") for match in _COMPOSITE_WORDS.finditer(part)]
    numbered = _BACKGROUND_NUMBERED.search(part)
    if not composites and not numbered and (background := _BACKGROUND_WORDS.search(part)):
        words.append((background.start(), "bg"))
    words += composites
    if words:
        return tuple(word for _, word in sorted(words))
    if numbered:
        return ("numbered",)
    if _FOREGROUND_WORDS.match(part):
        return ("fg",)
    return ("picture",) if _IMAGE_WORDS.search(part) else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StemShape:
    """Positions in a stem, the same for all stems that differ only in their digits."""

    pieces: tuple[slice, ...]
    """Spans of the stem without words for roles; the stripped stem joins them by ``_``."""

    background: slice | None
    """Span of the background's number in the joined pieces."""

    foreground: slice | None
    """Span of the foreground's number in the joined pieces."""


def parse_stem(stem: str) -> StemShape:
    """Parse a stem in lower case. The result holds for every stem that differs only in digits."""
    pieces = find_pieces(stem)
    text = join_pieces(stem, pieces)
    return StemShape(
        pieces=pieces,
        background=_number_span(_BACKGROUND_NUMBER, text),
        foreground=_number_span(_FOREGROUND_NUMBER, text),
    )


class OutlineCache(Generic[T]):
    """Calls a function of a stem once for each outline: a million stems need a few calls.

    Args:
        parse: ``role_words``, ``parse_stem`` or ``find_pieces``.
    """

    def __init__(self, parse: Callable[[str], T]) -> None:
        self._parse = parse
        self._results: dict[bytes, T] = {}

    def __call__(self, stem: str) -> T:
        """Return the result for a stem in lower case."""
        outline = zero_digits(stem)
        result = self._results.get(outline)
        if result is None:
            result = self._parse(stem)
            if len(self._results) < MAX_CACHED_OUTLINES:
                self._results[outline] = result
        return result


def zero_digits(text: str) -> bytes:
    """Return the outline of a name: UTF-8 with every digit as 0."""
    return text.encode("utf-8", "surrogatepass").translate(_DIGITS_TO_ZERO)


def strip_words(part: str) -> str:
    """Return a folder's name or a stem without words for roles, in lower case.

    Files of one sample share the result: ``mask_fg_015_bg_085_7`` and ``fg_015_bg_085_7`` give the
    same.
    """
    part = part.lower()
    return join_pieces(part, find_pieces(part))


def find_pieces(part: str) -> tuple[slice, ...]:
    """Return the spans of a text in lower case that are neither a role word nor a separator.

    Spans with a single underscore between them are merged.
    """
    blank = _ROLE_WORDS.sub(lambda match: " " * len(match[0]), part)
    pieces: list[slice] = []
    for match in _PART.finditer(blank):
        if pieces and match.start() == pieces[-1].stop + 1 and blank[pieces[-1].stop] == "_":
            pieces[-1] = slice(pieces[-1].start, match.end())
        else:
            pieces.append(slice(*match.span()))
    return tuple(pieces)


def join_pieces(part: str, pieces: Sequence[slice]) -> str:
    """Return the pieces of a text, with ``_`` between them."""
    return "_".join([part[piece] for piece in pieces])


def numbers(text: str) -> list[int]:
    """Return every number in a text, from left to right; of a long one its last 18 digits."""
    return [int(digits[-18:]) for digits in _DIGITS.findall(text)]


def number_words(text: str) -> list[str]:
    """Return the numbers of a text in lower case, without leading zeros, from left to right.

    A hexadecimal name (``e3b0c44298fc``, a UUID) is returned as it is: its digits are no numbers.
    """
    return [
        str(int(word[-18:])) if word.isdecimal() else word for word in _NUMBER_WORDS.findall(text)
    ]


def file_stem(name: str) -> str:
    """Return the file name of a path without folders and extension; empty without a dot."""
    return name.rpartition("/")[2].rpartition(".")[0]


def strip_zeros(text: str) -> str:
    """Return a number without leading zeros; any other text unchanged."""
    return text.lstrip("0") if text.isdecimal() else text


def natural_sort_key(text: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts numbers by value, however long, and before other characters."""
    parts = enumerate(map(strip_zeros, _NUMBER_PARTS.split(text)))
    return [(len(part), part) if place % 2 else (0, part) for place, part in parts], text


def background_number(text: str) -> int:
    """Return the number after ``bg``, ``b``, ``back`` or ``background``; -1 without one.

    Strip role words from ``text`` first, so that ``fg_bg_638`` is not read as background 638.
    """
    span = _number_span(_BACKGROUND_NUMBER, text)
    return int(text[span]) if span else -1


def split_in_path(path: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` by the first such word in a folder path, else None."""
    match = _SPLIT_WORDS.search(path.lower())
    return match.lastgroup if match else None


def safe_key(text: str, *, hashed: str = "") -> str:
    """Return ``text`` as a key: ASCII letters, digits, ``_`` and ``-``; at most 80 characters.

    If it is too long, or ``hashed`` is given, it ends in 16 hexadecimal digits of the SHA-256 of
    ``hashed`` or of the text.
    """
    key = _UNSAFE_CHARACTERS.sub("_", text).strip("_-")
    if 0 < len(key) <= KEY_LIMIT and not hashed:
        return key
    digest = hashlib.sha256((hashed or text).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{key[: KEY_LIMIT - 17]}-{digest}" if key else f"k-{digest}"


def _number_span(pattern: re.Pattern[str], text: str) -> slice | None:
    """Return the span of group 1 in the first match of ``pattern``."""
    match = pattern.search(text)
    return slice(*match.span(1)) if match else None


def unique_keys(names: Sequence[str], members: IntArray, shared: int) -> list[str]:
    """Return a safe key for each file: its stem, or its path if stems repeat.

    Paths that give the same key get digits of their SHA-256. Skips ``shared`` leading folders.
    """
    paths = take(names, members)
    stems = [file_stem(path) for path in paths]
    keys = stems if _all_safe(stems) else list(map(safe_key, stems))
    if len(set(keys)) == len(keys):
        return keys
    keys = [safe_key("/".join(path.split("/")[shared:]).rpartition(".")[0]) for path in paths]
    counts = Counter(keys)
    return [
        safe_key(key, hashed=path) if counts[key] > 1 else key
        for key, path in zip(keys, paths, strict=True)
    ]


def _all_safe(stems: list[str]) -> bool:
    """Whether every stem is a safe key already; fast, and False if in doubt."""
    lines = "\n" + "\n".join(stems) + "\n"
    return (
        all(stems)
        and max(map(len, stems)) <= KEY_LIMIT
        and lines.isascii()
        and not lines.encode().translate(None, _SAFE_BYTES)
        and lines.count("\n") == len(stems) + 1
        and not any(edge in lines for edge in ("\n_", "\n-", "_\n", "-\n"))
    )
