"""On which background a sample stands: every rule that its name allows.

Names and numbers in, candidates out. A candidate that the names state in so many words is marked;
the others are guesses that only pixels can settle (``settle``). Reads no payload.

On which backgrounds samples are said to stand: by their names, by a map, or by a layout file.

Puts the question to ``backing`` and ``pairs`` and gives their candidates. It judges none: whether
a claim holds is ``prove``'s word.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.background_candidates import SINGLE, CandidateRule, nearly
from shardify.layout.csv_map import Row, backgrounds_by_map
from shardify.layout.layout_file import Rules, text_of
from shardify.layout.name_patterns import (
    UNGROUPED,
    NamePatterns,
    NumberSpans,
    numbers_at,
    numbers_of,
)

__all__ = [
    "ORDERS",
    "BackgroundFiles",
    "BackgroundQuery",
    "all_stated",
    "by_map",
    "by_rule",
    "files_of",
    "guessed_rules",
    "is_shifted",
    "rule_from_layout_file",
    "runs_of",
    "slots_of",
    "stated_rules",
]


IntArray = npt.NDArray[np.int32]

_BLOCKS = (200, 400, 800, 1000, 2000, 4000, 8000)
"""Sizes of blocks that are tried besides those that follow from the counts."""

_RUNS = re.compile(r"(\d+)")


class BackgroundFiles:
    """The background files, in every order in which somebody may have counted them."""

    def __init__(self, stems: Sequence[str]) -> None:
        self.stems = [stem.lower() for stem in stems]
        places = range(len(stems))
        self.order = {
            "lexicographic": sorted(places, key=lambda place: stems[place]),
            "natural": sorted(places, key=lambda place: _natural(stems[place])),
        }
        self.of_number: dict[int, int] = {}
        self.unnumbered = ""
        """A stem without a number of its own; empty where every file has one."""
        for place, stem in enumerate(stems):
            found = filenames.numbers(stem)
            if not found or self.of_number.setdefault(found[-1], place) != place:
                self.unnumbered = stem

    def __len__(self) -> int:
        return len(self.stems)


ORDERS = ("lexicographic", "natural")
"""park1, park10, park2, or park1, park2, park10."""


def slots_of(outlines: NamePatterns, members: IntArray, shared: int) -> dict[str, IntArray]:
    """The numbers that a word or a folder gives all samples.

    Args:
        outlines: Of the source's names.
        members: (N,) index of each sample's composite.
        shared: How many leading folders to pass over.

    Returns:
        slot -> (N,) int32, all at least 0. Slots: ``bg`` where a word like ``bg_012`` says what
        the number is, ``fg`` likewise, ``folder`` for the innermost folder's last number.
    """
    shapes, folders = filenames.Shapes(), dict[str, tuple[int, int]]()
    places: dict[int, NumberSpans | None] = {}
    slots = {name: np.full(len(members), -1, np.int32) for name in ("bg", "fg", "folder")}
    bg, fg, folder = slots.values()
    for outline, rows, names in outlines.groups(members):
        if outline not in places:
            places[outline] = None if outline == UNGROUPED else numbers_of(names[0], shared)
        known = places[outline]
        if known is not None:
            for values, where in (
                (bg, known.background), (fg, known.foreground), (folder, known.folder)
            ):  # fmt: skip
                if where is not None:
                    values[rows] = numbers_at(names, where)
            continue
        for row, name in zip(rows.tolist(), names, strict=True):
            path, _, base = name.rpartition("/")
            stem = base.rpartition(".")[0].lower()
            shape, text = shapes.of(stem), shapes.stripped(stem)
            if path not in folders:
                folders[path] = filenames.folder_number(path, shared), _innermost(path, shared)
            stated, folder[row] = folders[path]
            bg[row] = int(text[shape.background]) if shape.background else stated
            if shape.foreground:
                fg[row] = int(text[shape.foreground])
    return {name: values for name, values in slots.items() if (values >= 0).all()}


def runs_of(names: Sequence[str], members: IntArray) -> dict[str, IntArray]:
    """The runs of digits that all samples' stems have, stripped of words for roles.

    Returns:
        ``1``, ``2``, … -> (N,) int32, at most 2**31 - 1.
    """
    shapes = filenames.Shapes()
    runs: list[IntArray] | None = None
    for row, index in enumerate(members.tolist()):
        stem = names[index].rpartition("/")[2].rpartition(".")[0].lower()
        found = filenames.numbers(shapes.stripped(stem))
        if runs is None:
            runs = [np.full(len(members), -1, np.int32) for _ in found]
        for place, value in enumerate(found[: len(runs)]):
            runs[place][row] = min(value, 2**31 - 1)
    numbered = enumerate(runs or (), 1)
    return {str(place): values for place, values in numbered if (values >= 0).all()}


def stated_rules(
    files: BackgroundFiles,
    slots: Mapping[str, IntArray],
    texts: Iterable[Sequence[str]],
    count: int,
) -> list[CandidateRule]:
    """The candidates that names state in so many words, those first that do so more clearly.

    Args:
        files: The backgrounds.
        slots: Numbers of the samples; see ``slots_of``.
        texts: For each sample the words that may be its background's whole name.
        count: N, the number of samples.
    """
    found = [by_rule(files, slots, {"rule": "number", "number": "bg"})]
    if "bg" not in slots:
        found.append(_by_text(files, texts, count))
    if len(files) == 1 and not any(found):
        only = np.zeros(count, np.int32)
        found.append(CandidateRule(rule="the only one", settings={"rule": "only"}, of_sample=only))
    return [each for each in found if each]


def guessed_rules(
    files: BackgroundFiles, slots: Mapping[str, IntArray], before: Sequence[CandidateRule] = ()
) -> list[CandidateRule]:
    """Every rule that names allow and that gives each sample one of the files, or nearly each.

    Args:
        files: The backgrounds.
        slots: Numbers of the samples; see ``slots_of`` and ``runs_of``.
        before: Candidates that there are already.

    Returns:
        No two, also of ``before``, give the same backgrounds to all samples.
    """
    seen = {_digest(each) for each in before}
    found = []
    for slot, values in slots.items():
        for settings in _guesses(files, values) if slot != "fg" else ():
            candidate = by_rule(files, slots, {"number": slot, **settings})
            if candidate is None or not (candidate.whole or settings["rule"] in SINGLE):
                continue
            if (digest := _digest(candidate)) not in seen:
                seen.add(digest)
                found.append(candidate)
    return found


def _digest(candidate: CandidateRule) -> bytes:
    return hashlib.sha256(candidate.of_sample.tobytes()).digest()


def by_rule(
    files: BackgroundFiles,
    slots: Mapping[str, IntArray],
    settings: Mapping[str, str | int],
) -> CandidateRule | None:
    """The candidate of one rule; None where it does not give nearly every sample a file.

    Args:
        files: The backgrounds.
        slots: Numbers of the samples.
        settings: ``rule`` (number, order, block, modulo), ``number`` (which slot), and as the rule
            needs ``offset``, ``order``, ``first``, ``size``.
    """
    rule, slot = str(settings["rule"]), str(settings.get("number", "bg"))
    if slot not in slots or not len(files):
        return None
    values = slots[slot].astype(np.int64)
    where = "the number after bg" if slot == "bg" else f"number {slot}" if slot.isdigit() else slot
    if rule == "number":
        offset = int(settings.get("offset", 0))
        if files.unnumbered:
            return None
        wanted, row = np.unique(values + offset, return_inverse=True)
        table = np.array([files.of_number.get(each, -1) for each in wanted.tolist()], np.int32)
        by = f" {offset:+d}" if offset else ""
        there = f"{len(files)} backgrounds ({min(files.of_number)} to {max(files.of_number)})"
        return nearly(
            f"background numbered as {where}{by}",
            settings,
            table[row],
            lambda row: f"names state number {values[row]}{by}, which none of {there} has",
        )
    order, first = str(settings.get("order", "natural")), int(settings.get("first", 0))
    place = values - first
    words = f"{where}, counted from {first}"
    if rule == "block":
        size = int(settings["size"])
        place, words = place // size, f"blocks of {size} by {words}"
    elif rule == "modulo":
        place, words = place % len(files), f"{words}, modulo {len(files)}"
    ranked = np.array([*files.order[order], -1], np.int32)
    return nearly(
        f"{words}, in {order} order",
        settings,
        ranked[np.where((place < 0) | (place >= len(files)), len(files), place)],
        lambda row: f"number {values[row]} stands for background {place[row] + 1} of {len(files)}",
    )


def _guesses(files: BackgroundFiles, values: IntArray) -> list[dict[str, str | int]]:
    """Rules worth a try for one slot, the likelier first."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    guesses: list[dict[str, str | int]] = [
        {"rule": "number", **({"offset": offset} if offset else {})} for offset in (0, 1, -1)
    ]
    guesses += [
        {"rule": "order", "order": order, "first": first} for order in ORDERS for first in (0, 1)
    ]
    if high >= len(files):
        exact = {-(-(high + 1 - first) // len(files)) for first in (0, 1)} | {
            -(-len(values) // len(files)),
            -(-(high - low + 1) // len(files)),
        }
        sizes = sorted(exact) + [size for size in _BLOCKS if size not in exact]
        guesses += [
            {"rule": "block", "size": size, "order": order, "first": first}
            for size in sizes
            if size > 1
            for order in ORDERS
            for first in (1, 0)
        ]
        guesses += [
            {"rule": "modulo", "order": order, "first": first}
            for order in ORDERS
            for first in (1, 0)
        ]
    return guesses


def _by_text(
    files: BackgroundFiles, texts: Iterable[Sequence[str]], count: int
) -> CandidateRule | None:
    """The background whose whole name is a word of the sample's: its folder, or how it begins."""
    place = {stem: index for index, stem in enumerate(files.stems)}
    if len(place) < len(files):
        return None
    of_sample = np.full(count, -1, np.int32)
    for row, words in enumerate(texts):
        of_sample[row] = next((place[word] for word in words if word in place), -1)
    return nearly(
        "background's name in the sample's",
        {"rule": "name"},
        of_sample,
        lambda _: f"no part of its path is the name of one of {len(files)} backgrounds",
    )


def _innermost(path: str, shared: int) -> int:
    parts = path.split("/")[shared:]
    found = filenames.numbers(filenames.strip_words(parts[-1])) if parts else []
    return min(found[-1], 2**31 - 1) if found else -1


def _natural(stem: str) -> tuple[list[tuple[int, str]], str]:
    """A key by which digits sort as numbers, however long, and before all else."""
    parts = (part.lstrip("0") if part.isdecimal() else part for part in _RUNS.split(stem))
    runs = [(len(part), part) if place % 2 else (0, part) for place, part in enumerate(parts)]
    return runs, stem


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundQuery:
    """All that is known of samples whose backgrounds are sought."""

    names: Sequence[str]
    files: Sequence[int]
    """Indexes of the backgrounds, in the order of their names."""
    members: Mapping[str, IntArray]
    slots: Mapping[str, IntArray]
    runs: Callable[[], Mapping[str, IntArray]]
    """Further numbers, for guesses."""
    shared: int
    maps: Callable[[], list[Row]]
    where: str


def files_of(question: BackgroundQuery) -> BackgroundFiles:
    """The backgrounds, in every order in which somebody may have counted them."""
    return BackgroundFiles([_stem(question.names[index]) for index in question.files])


def all_stated(question: BackgroundQuery) -> list[CandidateRule]:
    """What names state, or else a map in the source.

    Raises:
        LayoutError: The map's rows contradict each other.
    """
    count = len(question.members["fg_bg"])
    tried = stated_rules(files_of(question), question.slots, _texts(question), count)
    if not any(each.whole for each in tried):
        mapped, _ = by_map(question)
        tried = [mapped, *tried] if mapped else tried
    return tried


def rule_from_layout_file(question: BackgroundQuery, layout: Rules) -> CandidateRule:
    """The candidate of a layout file's rule.

    Raises:
        LayoutError: The rule does not give nearly every sample a background.
    """
    settings, rule = layout.background, str(layout.background["rule"])
    names = question.names
    stems = [text_of(layout, names[index], "bg") or _stem(names[index]) for index in question.files]
    told: CandidateRule | None
    if rule == "map":
        told, lacking = by_map(question)
        if lacking:
            raise LayoutError(
                f"{question.where}: {lacking}; expected a row for each sample; complete the map"
            )
    elif rule == "name":
        place = {stem.lower(): number for number, stem in enumerate(stems)}
        texts = [text_of(layout, names[i], "bg") for i in question.members["fg_bg"].tolist()]
        found = [place.get((text or "").lower(), -1) for text in texts]
        told = nearly(
            "the group bg",
            settings,
            np.array(found, np.int32),
            lambda row: f"its name states {texts[row]}, which is none of {len(stems)} backgrounds",
        )
    elif rule == "only":
        only = np.zeros(len(question.members["fg_bg"]), np.int32)
        told = CandidateRule(rule="the only one", settings=settings, of_sample=only)
        told = told if len(stems) == 1 else None
    else:
        told = by_rule(BackgroundFiles(stems), question.slots, settings)
    if told is None:
        raise LayoutError(
            f"{question.where}: the layout file's background rule ({rule}) does not give every "
            f"sample one of {len(stems)} backgrounds; expected numbers or names that do; correct "
            f"[background] or the patterns"
        )
    return told


def is_shifted(question: BackgroundQuery, candidate: CandidateRule) -> bool:
    """Whether the numbers of a candidate that lacks some samples can be counted otherwise.

    They can where, taken as one more or less or as places in a sorted list, they give a background
    to all samples that it covers, and to others.
    """
    files, covered = files_of(question), candidate.of_sample >= 0
    slots = {**question.slots, **question.runs()}
    moved: list[dict[str, str | int]] = [{"rule": "number", "offset": by} for by in (1, -1)]
    moved += [
        {"rule": "order", "order": order, "first": first} for order in ORDERS for first in (0, 1)
    ]
    for slot in slots:
        plain = by_rule(files, slots, {"rule": "number", "number": slot})
        if plain is None or not plain.extends(candidate):
            continue
        for settings in moved:
            other = by_rule(files, slots, {"number": slot, **settings})
            if other is not None:
                more = other.of_sample >= 0
                if more[covered].all() and more.sum() > covered.sum():
                    return True
    return False


def by_map(question: BackgroundQuery) -> tuple[CandidateRule | None, str]:
    """What the source's map says; or, where that is not enough, what it lacks.

    Raises:
        LayoutError: Its rows contradict each other.
    """
    rows = question.maps()
    if not rows:
        return None, ""
    names, members = question.names, question.members
    found = backgrounds_by_map(names, members, question.files, rows, where=question.where)
    lacking = np.flatnonzero(found.of_sample < 0)
    if lacking.size == len(found.of_sample):
        return None, ""
    if lacking.size:
        first = names[int(members["fg_bg"][lacking[0]])]
        return None, (
            f"{rows[0].file} gives {lacking.size} of {len(found.of_sample)} samples no background "
            f"(such as {first})"
        )
    told = CandidateRule(
        rule="a map in the source",
        settings={"rule": "map"},
        of_sample=found.of_sample,
        warnings=found.warnings,
    )
    return told, ""


def _texts(question: BackgroundQuery) -> Iterator[list[str]]:
    """For each sample, what may be its background's name: its folders, and how its name begins."""
    folders: dict[str, list[str]] = {}
    for index in question.members["fg_bg"].tolist():
        path, _, base = question.names[index].lower().rpartition("/")
        if path not in folders:
            parts = path.split("/")[question.shared :]
            folders[path] = [*reversed(parts), *map(filenames.strip_words, reversed(parts))]
        stem = base.rpartition(".")[0]
        cuts = [place for place, mark in enumerate(stem) if mark in "-_ ."]
        yield folders[path] + [stem[:place] for place in reversed(cuts)]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
