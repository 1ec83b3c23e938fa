"""List candidate rules for the background of each sample.

A rule is stated by names, by a map or by a layout file, or it is a guess from numbers in the names.
Pixels decide about guesses, see ``background_match``.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.csv_map import Row, backgrounds_by_map
from shardify.layout.filenames import IntArray, OutlineCache
from shardify.layout.layout_file import Rules, group_text
from shardify.layout.name_patterns import (
    UNGROUPED,
    NamePatterns,
    find_number_spans,
    read_numbers,
)

Settings = Mapping[str, str | int]
"""A rule as the ``[background]`` table of a layout file."""

ONE_TO_ONE_RULES = ("number", "order")
"""Rules that map each number to one background, and no two numbers to the same."""

_MIN_COVERED_SHARE = 0.9
"""Share of the samples to which a rule must give a background; the others are rejected."""

_COMMON_BLOCK_SIZES = (200, 400, 800, 1000, 2000, 4000, 8000)
"""Block sizes that are tried besides those that follow from the counts."""

ORDERS = ("lexicographic", "natural")
"""park1, park10, park2; or park1, park2, park10."""

_SHIFTED_RULES: tuple[Settings, ...] = (
    {"rule": "number", "offset": 1},
    {"rule": "number", "offset": -1},
    *({"rule": "order", "order": order, "first": first} for order in ORDERS for first in (0, 1)),
)
"""Numbers plus or minus one, and numbers as positions in a sorted list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRule:
    """A rule and the background that it gives each sample."""

    rule: str
    """Description for messages."""

    settings: Settings

    background_index: IntArray
    """(N,) int32, index into the background files; -1 where the stated one does not exist."""

    missing_reason: Callable[[int], str] = str
    """Row of a sample without a background -> why it has none."""

    warnings: tuple[str, ...] = ()
    """Warnings for the user about the source of this rule."""

    @property
    def complete(self) -> bool:
        """Whether every sample has a background."""
        return bool((self.background_index >= 0).all())

    def is_one_to_one(self, slot: str) -> bool:
        """Whether each number of ``slot`` means one background, and no two the same."""
        return self.settings["rule"] in ONE_TO_ONE_RULES and self.settings["number"] == slot

    def extends(self, other: "CandidateRule") -> bool:
        """Whether both agree on every sample to which ``other`` gives a background."""
        covered = other.background_index >= 0
        return bool((self.background_index == other.background_index)[covered].all())


def _candidate(
    rule: str,
    settings: Settings,
    background_index: IntArray | list[int],
    missing_reason: Callable[[int], str],
) -> CandidateRule | None:
    """Return the candidate; None if it gives too few samples a background."""
    index = np.asarray(background_index, np.int32)
    if np.count_nonzero(index < 0) > (1 - _MIN_COVERED_SHARE) * len(index) + 1e-9:
        return None
    return CandidateRule(
        rule=rule, settings=settings, background_index=index, missing_reason=missing_reason
    )


class BackgroundFiles:
    """The background files by number, and sorted in each of ``ORDERS``."""

    def __init__(self, stems: Sequence[str]) -> None:
        self.stems = [stem.lower() for stem in stems]
        places = range(len(stems))
        self.order = {
            "lexicographic": sorted(places, key=lambda place: stems[place]),
            "natural": sorted(places, key=lambda place: filenames.natural_sort_key(stems[place])),
        }
        self.by_number: dict[int, int] = {}
        self.unnumbered = ""
        """A stem without a unique number; empty if every file has one."""
        for place, stem in enumerate(stems):
            values = filenames.numbers(stem)
            if not values or self.by_number.setdefault(values[-1], place) != place:
                self.unnumbered = stem

    def __len__(self) -> int:
        return len(self.stems)


def number_slots(patterns: NamePatterns, members: IntArray, shared: int) -> dict[str, IntArray]:
    """Return the numbers that all samples have after a word or in a folder.

    Args:
        patterns: Patterns of the source's names.
        members: (N,) int32, index of each sample's composite.
        shared: Number of leading folders to skip.

    Returns:
        slot -> (N,) int32, all at least 0. Slots: ``bg`` for the number in a word like ``bg_012``,
        ``fg`` likewise, ``folder`` for the last number of the innermost folder.
    """
    stem_shape = OutlineCache(filenames.parse_stem)
    folder_numbers = cache(_folder_numbers)
    spans: dict[int, dict[str, slice] | None] = {}
    slots = {slot: np.full(len(members), -1, np.int32) for slot in ("bg", "fg", "folder")}
    bg, fg, folder = slots.values()
    for outline, rows, names in patterns.groups(members):
        if outline not in spans:
            spans[outline] = None if outline == UNGROUPED else find_number_spans(names[0], shared)
        outline_spans = spans[outline]
        if outline_spans is not None:
            for slot, span in outline_spans.items():
                slots[slot][rows] = read_numbers(names, span)
            continue
        for row, name in zip(rows.tolist(), names, strict=True):
            bg[row], folder[row] = folder_numbers(name.rpartition("/")[0], shared)
            stem = filenames.file_stem(name).lower()
            shape = stem_shape(stem)
            text = filenames.join_pieces(stem, shape.pieces)
            if shape.background:
                bg[row] = int(text[shape.background])
            if shape.foreground:
                fg[row] = int(text[shape.foreground])
    return {slot: values for slot, values in slots.items() if (values >= 0).all()}


def _folder_numbers(path: str, shared: int) -> tuple[int, int]:
    """Return the innermost folder's background number, and its last number; -1 without one.

    If it has no background number, that of the next folder outwards counts.
    """
    folders = [filenames.strip_words(folder) for folder in path.split("/")[shared:]][::-1]
    backgrounds = map(filenames.background_number, folders)
    background = next((number for number in backgrounds if number >= 0), -1)
    numbers = filenames.numbers(folders[0]) if folders else []
    return background, min(numbers[-1], filenames.MAX_INT32) if numbers else -1


def digit_runs(names: Sequence[str], members: IntArray) -> dict[str, IntArray]:
    """Return the numbers at each position of the stems, without words for roles.

    Returns:
        ``1``, ``2``, … (position) -> (N,) int32, at most 2**31 - 1; only positions that all
        samples have.
    """
    stem_pieces = OutlineCache(filenames.find_pieces)
    runs: list[IntArray] | None = None
    for row, index in enumerate(members.tolist()):
        stem = filenames.file_stem(names[index]).lower()
        values = filenames.numbers(filenames.join_pieces(stem, stem_pieces(stem)))
        if runs is None:
            runs = [np.full(len(members), -1, np.int32) for _ in values]
        for run, value in zip(runs, values, strict=False):
            run[row] = min(value, filenames.MAX_INT32)
    return {str(place): run for place, run in enumerate(runs or (), 1) if (run >= 0).all()}


def guessed_rules(
    files: BackgroundFiles, slots: Mapping[str, IntArray], known: Sequence[CandidateRule] = ()
) -> list[CandidateRule]:
    """Return every rule that gives each sample, or nearly each, one of the files.

    Args:
        files: The backgrounds.
        slots: Numbers of the samples; see ``number_slots`` and ``digit_runs``.
        known: Existing candidates.

    Returns:
        Candidates that differ from each other and from the known ones.
    """
    digests = set(map(_digest, known))
    candidates = []
    for slot, values in slots.items():
        for settings in _possible_settings(files, values) if slot != "fg" else ():
            candidate = rule_from_settings(files, slots, {"number": slot, **settings})
            if candidate is None or not (candidate.complete or candidate.is_one_to_one(slot)):
                continue
            if (digest := _digest(candidate)) not in digests:
                digests.add(digest)
                candidates.append(candidate)
    return candidates


def _digest(candidate: CandidateRule) -> bytes:
    return hashlib.sha256(candidate.background_index.tobytes()).digest()


def rule_from_settings(
    files: BackgroundFiles, slots: Mapping[str, IntArray], settings: Settings
) -> CandidateRule | None:
    """Return the candidate of one rule; None if too few samples get a file.

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
    number = "the number after bg" if slot == "bg" else f"number {slot}" if slot.isdigit() else slot
    if rule == "number":
        if files.unnumbered:
            return None
        offset = int(settings.get("offset", 0))
        shift = f" {offset:+d}" if offset else ""
        wanted, inverse = np.unique(values + offset, return_inverse=True)
        table = np.array([files.by_number.get(value, -1) for value in wanted.tolist()], np.int32)
        present = f"{len(files)} backgrounds ({min(files.by_number)} to {max(files.by_number)})"
        return _candidate(
            f"background numbered as {number}{shift}",
            settings,
            table[inverse],
            lambda row: f"names state number {values[row]}{shift}, which none of {present} has",
        )
    order, first = str(settings.get("order", "natural")), int(settings.get("first", 0))
    place = values - first
    description = f"{number}, counted from {first}"
    if rule == "block":
        size = int(settings["size"])
        place, description = place // size, f"blocks of {size} by {description}"
    elif rule == "modulo":
        place, description = place % len(files), f"{description}, modulo {len(files)}"
    ranked = np.array([*files.order[order], -1], np.int32)
    return _candidate(
        f"{description}, in {order} order",
        settings,
        ranked[np.where((place < 0) | (place >= len(files)), len(files), place)],
        lambda row: f"number {values[row]} stands for background {place[row] + 1} of {len(files)}",
    )


def _possible_settings(files: BackgroundFiles, values: IntArray) -> list[Settings]:
    """Return the settings to try for one slot, the likelier first."""
    guesses: list[Settings] = [{"rule": "number"}, *_SHIFTED_RULES]
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if high >= len(files):
        counts = (high, high + 1, len(values), high - low + 1)
        exact = {-(-count // len(files)) for count in counts}
        sizes = sorted(exact) + [size for size in _COMMON_BLOCK_SIZES if size not in exact]
        counts_from = [{"order": order, "first": first} for order in ORDERS for first in (1, 0)]
        for size in sizes:
            if size > 1:
                guesses += [{"rule": "block", "size": size, **count} for count in counts_from]
        guesses += [{"rule": "modulo", **count} for count in counts_from]
    return guesses


@dataclass(frozen=True, kw_only=True)
class BackgroundQuery:
    """The samples whose backgrounds are wanted, and the background files."""

    names: Sequence[str]
    """All names of the source."""
    files: Sequence[int]
    """Indexes of the backgrounds, in the order of their names."""
    members: Mapping[str, IntArray]
    """role -> (N,) int32, index of each sample's file."""
    slots: Mapping[str, IntArray]
    """Numbers of the samples; see ``number_slots``."""
    shared_folders: int
    """Number of leading folders that all names share."""
    read_maps: Callable[[], list[Row]]
    """Returns the rows of the source's maps."""
    united: Mapping[int, Sequence[int]]
    """Index of a mask -> indexes of further masks of its sample."""
    where: str
    """Name of the source in errors."""

    @cached_property
    def background_files(self) -> BackgroundFiles:
        """The background files, numbered and sorted."""
        return BackgroundFiles([filenames.file_stem(self.names[index]) for index in self.files])

    @cached_property
    def all_slots(self) -> Mapping[str, IntArray]:
        """Numbers of the samples, with those for guesses; see ``digit_runs``."""
        return {**self.slots, **digit_runs(self.names, self.members["fg_bg"])}


def stated_rules(query: BackgroundQuery) -> list[CandidateRule]:
    """Return the rules that names state, the clearest first.

    If none of them is complete, a map in the source comes before them.

    Raises:
        LayoutError: The map's rows contradict each other.
    """
    files = query.background_files
    candidates = [rule_from_settings(files, query.slots, {"rule": "number", "number": "bg"})]
    if "bg" not in query.slots:
        candidates.append(_rule_from_names(query))
    if len(files) == 1 and not any(candidates):
        candidates.append(_only_rule(query, {"rule": "only"}))
    stated = [candidate for candidate in candidates if candidate]
    if not any(candidate.complete for candidate in stated):
        mapped, _ = rule_from_map(query)
        stated = [mapped, *stated] if mapped else stated
    return stated


def _only_rule(query: BackgroundQuery, settings: Settings) -> CandidateRule:
    only = np.zeros(len(query.members["fg_bg"]), np.int32)
    return CandidateRule(rule="the only one", settings=settings, background_index=only)


def rule_from_layout_file(query: BackgroundQuery, layout: Rules) -> CandidateRule:
    """Return the candidate of a layout file's rule.

    Raises:
        LayoutError: The rule does not give nearly every sample a background.
    """
    settings, rule = layout.background, str(layout.background["rule"])
    names = query.names
    stems = [
        group_text(layout, names[index], "bg") or filenames.file_stem(names[index])
        for index in query.files
    ]
    candidate: CandidateRule | None
    if rule == "map":
        candidate, missing = rule_from_map(query)
        if missing:
            raise LayoutError(
                f"{query.where}: {missing}; expected a row for each sample; complete the map"
            )
    elif rule == "name":
        numbers = {stem.lower(): number for number, stem in enumerate(stems)}
        texts = [group_text(layout, names[i], "bg") for i in query.members["fg_bg"].tolist()]
        indexes = [numbers.get((text or "").lower(), -1) for text in texts]
        candidate = _candidate(
            "the group bg",
            settings,
            indexes,
            lambda row: f"its name states {texts[row]}, which is none of {len(stems)} backgrounds",
        )
    elif rule == "only":
        candidate = _only_rule(query, settings) if len(stems) == 1 else None
    else:
        candidate = rule_from_settings(BackgroundFiles(stems), query.slots, settings)
    if candidate is None:
        raise LayoutError(
            f"{query.where}: the layout file's background rule ({rule}) does not give every "
            f"sample one of {len(stems)} backgrounds; expected numbers or names that do; correct "
            f"[background] or the patterns"
        )
    return candidate


def is_shifted(query: BackgroundQuery, candidate: CandidateRule) -> bool:
    """Whether another counting of a candidate's numbers gives more samples a background.

    The other counting must give a background to all samples that the candidate covers, and to more.
    """
    files, covered = query.background_files, candidate.background_index >= 0
    for slot in query.all_slots:
        plain = rule_from_settings(files, query.all_slots, {"rule": "number", "number": slot})
        if plain is None or not plain.extends(candidate):
            continue
        for settings in _SHIFTED_RULES:
            other = rule_from_settings(files, query.all_slots, {"number": slot, **settings})
            if other is not None:
                more = other.background_index >= 0
                if more[covered].all() and more.sum() > covered.sum():
                    return True
    return False


def rule_from_map(query: BackgroundQuery) -> tuple[CandidateRule | None, str]:
    """Return the candidate of the source's map; or None and what the map lacks.

    Raises:
        LayoutError: Its rows contradict each other.
    """
    rows = query.read_maps()
    if not rows:
        return None, ""
    names, members = query.names, query.members
    mapped = backgrounds_by_map(names, members, query.files, rows, where=query.where)
    missing = np.flatnonzero(mapped.background_index < 0)
    if missing.size == len(mapped.background_index):
        return None, ""
    if missing.size:
        first = names[int(members["fg_bg"][missing[0]])]
        return None, (
            f"{rows[0].file} gives {missing.size} of {len(mapped.background_index)} samples "
            f"no background (such as {first})"
        )
    candidate = CandidateRule(
        rule="a map in the source",
        settings={"rule": "map"},
        background_index=mapped.background_index,
        warnings=mapped.warnings,
    )
    return candidate, ""


def _rule_from_names(query: BackgroundQuery) -> CandidateRule | None:
    """Match backgrounds whose whole name is a folder or the beginning of the sample's name."""
    stems = query.background_files.stems
    numbers = {stem: number for number, stem in enumerate(stems)}
    if len(numbers) < len(stems):
        return None
    indexes = [
        next((numbers[text] for text in texts if text in numbers), -1)
        for texts in _possible_names(query)
    ]
    return _candidate(
        "background's name in the sample's",
        {"rule": "name"},
        indexes,
        lambda _: f"no part of its path is the name of one of {len(stems)} backgrounds",
    )


def _possible_names(query: BackgroundQuery) -> Iterator[list[str]]:
    """Yield, for each sample, texts that may name its background: folders, name beginnings."""
    folder_texts: dict[str, list[str]] = {}
    for index in query.members["fg_bg"].tolist():
        path, _, base = query.names[index].lower().rpartition("/")
        if path not in folder_texts:
            folders = path.split("/")[query.shared_folders :][::-1]
            folder_texts[path] = [*folders, *map(filenames.strip_words, folders)]
        stem = base.rpartition(".")[0]
        cuts = [place for place, character in enumerate(stem) if character in "-_ ."]
        yield folder_texts[path] + [stem[:place] for place in reversed(cuts)]
