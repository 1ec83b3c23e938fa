"""List candidate rules for the background of each sample.

A rule is stated by names, by a map or by a layout file, or it is a guess from numbers in the names.
Pixels decide about guesses, see ``background_match``.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.csv_map import Row, backgrounds_by_map
from shardify.layout.layout_file import Rules, group_text
from shardify.layout.name_patterns import (
    UNGROUPED,
    NamePatterns,
    NumberSpans,
    find_number_spans,
    read_numbers,
)

IntArray = npt.NDArray[np.int32]

ONE_TO_ONE_RULES = ("number", "order")
"""Rules that map each number to one background, and no two numbers to the same."""

_MIN_COVERED_SHARE = 0.9
"""Share of the samples to which a rule must give a background; the others are rejected."""

_COMMON_BLOCK_SIZES = (200, 400, 800, 1000, 2000, 4000, 8000)
"""Block sizes that are tried besides those that follow from the counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRule:
    """A rule and the background that it gives each sample."""

    rule: str
    """Description for messages."""

    settings: Mapping[str, str | int]
    """The rule as the ``[background]`` table of a layout file."""

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
        return bool(
            (self.background_index == other.background_index)[other.background_index >= 0].all()
        )


def make_candidate(
    rule: str,
    settings: Mapping[str, str | int],
    background_index: IntArray,
    missing_reason: Callable[[int], str],
) -> CandidateRule | None:
    """Return the candidate; None if it gives too few samples a background."""
    if (
        np.count_nonzero(background_index < 0)
        > (1 - _MIN_COVERED_SHARE) * len(background_index) + 1e-9
    ):
        return None
    return CandidateRule(
        rule=rule,
        settings=settings,
        background_index=background_index,
        missing_reason=missing_reason,
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


ORDERS = ("lexicographic", "natural")
"""park1, park10, park2; or park1, park2, park10."""


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
    stems, folders = filenames.StemCache(), dict[str, tuple[int, int]]()
    places: dict[int, NumberSpans | None] = {}
    slots = {name: np.full(len(members), -1, np.int32) for name in ("bg", "fg", "folder")}
    bg, fg, folder = slots.values()
    for outline, rows, names in patterns.groups(members):
        if outline not in places:
            places[outline] = None if outline == UNGROUPED else find_number_spans(names[0], shared)
        known = places[outline]
        if known is not None:
            for values, where in (
                (bg, known.background), (fg, known.foreground), (folder, known.folder)
            ):  # fmt: skip
                if where is not None:
                    values[rows] = read_numbers(names, where)
            continue
        for row, name in zip(rows.tolist(), names, strict=True):
            path, _, base = name.rpartition("/")
            stem = base.rpartition(".")[0].lower()
            shape, text = stems.shape(stem), stems.stripped(stem)
            if path not in folders:
                folders[path] = (
                    filenames.folder_number(path, shared),
                    _last_folder_number(path, shared),
                )
            stated, folder[row] = folders[path]
            bg[row] = int(text[shape.background]) if shape.background else stated
            if shape.foreground:
                fg[row] = int(text[shape.foreground])
    return {name: values for name, values in slots.items() if (values >= 0).all()}


def digit_runs(names: Sequence[str], members: IntArray) -> dict[str, IntArray]:
    """Return the numbers at each position of the stems, without words for roles.

    Returns:
        ``1``, ``2``, … (position) -> (N,) int32, at most 2**31 - 1; only positions that all
        samples have.
    """
    stems = filenames.StemCache()
    runs: list[IntArray] | None = None
    for row, index in enumerate(members.tolist()):
        stem = filenames.file_stem(names[index]).lower()
        values = filenames.numbers(stems.stripped(stem))
        if runs is None:
            runs = [np.full(len(members), -1, np.int32) for _ in values]
        for place, value in enumerate(values[: len(runs)]):
            runs[place][row] = min(value, filenames.MAX_INT32)
    numbered = enumerate(runs or (), 1)
    return {str(place): values for place, values in numbered if (values >= 0).all()}


def stated_rules(
    files: BackgroundFiles,
    slots: Mapping[str, IntArray],
    texts: Iterable[Sequence[str]],
    count: int,
) -> list[CandidateRule]:
    """Return the candidates that names state explicitly, the clearest first.

    Args:
        files: The backgrounds.
        slots: Numbers of the samples; see ``slots_of``.
        texts: For each sample, the texts that may be the whole name of its background.
        count: N, the number of samples.
    """
    candidates = [rule_from_settings(files, slots, {"rule": "number", "number": "bg"})]
    if "bg" not in slots:
        candidates.append(_rule_from_names(files, texts, count))
    if len(files) == 1 and not any(candidates):
        only = np.zeros(count, np.int32)
        candidates.append(
            CandidateRule(rule="the only one", settings={"rule": "only"}, background_index=only)
        )
    return [each for each in candidates if each]


def guessed_rules(
    files: BackgroundFiles, slots: Mapping[str, IntArray], before: Sequence[CandidateRule] = ()
) -> list[CandidateRule]:
    """Return every rule that gives each sample, or nearly each, one of the files.

    Args:
        files: The backgrounds.
        slots: Numbers of the samples; see ``slots_of`` and ``runs_of``.
        before: Existing candidates.

    Returns:
        Candidates that differ from each other and from those of ``before``.
    """
    seen = {_digest(each) for each in before}
    candidates = []
    for slot, values in slots.items():
        for settings in _possible_settings(files, values) if slot != "fg" else ():
            candidate = rule_from_settings(files, slots, {"number": slot, **settings})
            if candidate is None or not (
                candidate.complete or settings["rule"] in ONE_TO_ONE_RULES
            ):
                continue
            if (digest := _digest(candidate)) not in seen:
                seen.add(digest)
                candidates.append(candidate)
    return candidates


def _digest(candidate: CandidateRule) -> bytes:
    return hashlib.sha256(candidate.background_index.tobytes()).digest()


def rule_from_settings(
    files: BackgroundFiles,
    slots: Mapping[str, IntArray],
    settings: Mapping[str, str | int],
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
    where = "the number after bg" if slot == "bg" else f"number {slot}" if slot.isdigit() else slot
    if rule == "number":
        offset = int(settings.get("offset", 0))
        if files.unnumbered:
            return None
        wanted, row = np.unique(values + offset, return_inverse=True)
        table = np.array([files.by_number.get(each, -1) for each in wanted.tolist()], np.int32)
        by = f" {offset:+d}" if offset else ""
        there = f"{len(files)} backgrounds ({min(files.by_number)} to {max(files.by_number)})"
        return make_candidate(
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
    return make_candidate(
        f"{words}, in {order} order",
        settings,
        ranked[np.where((place < 0) | (place >= len(files)), len(files), place)],
        lambda row: f"number {values[row]} stands for background {place[row] + 1} of {len(files)}",
    )


def _possible_settings(files: BackgroundFiles, values: IntArray) -> list[dict[str, str | int]]:
    """Return the settings to try for one slot, the likelier first."""
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
        sizes = sorted(exact) + [size for size in _COMMON_BLOCK_SIZES if size not in exact]
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


def _rule_from_names(
    files: BackgroundFiles, texts: Iterable[Sequence[str]], count: int
) -> CandidateRule | None:
    """Match backgrounds whose whole name is a folder or the beginning of the sample's name."""
    place = {stem: index for index, stem in enumerate(files.stems)}
    if len(place) < len(files):
        return None
    background_index = np.full(count, -1, np.int32)
    for row, words in enumerate(texts):
        background_index[row] = next((place[word] for word in words if word in place), -1)
    return make_candidate(
        "background's name in the sample's",
        {"rule": "name"},
        background_index,
        lambda _: f"no part of its path is the name of one of {len(files)} backgrounds",
    )


def _last_folder_number(path: str, shared: int) -> int:
    parts = path.split("/")[shared:]
    values = filenames.numbers(filenames.strip_words(parts[-1])) if parts else []
    return min(values[-1], filenames.MAX_INT32) if values else -1


@dataclass(frozen=True, kw_only=True, slots=True)
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
    runs: Callable[[], Mapping[str, IntArray]]
    """Returns further numbers, for guesses; see ``digit_runs``."""
    shared_folders: int
    """Number of leading folders that all names share."""
    read_maps: Callable[[], list[Row]]
    """Returns the rows of the source's maps."""
    united: Mapping[int, Sequence[int]]
    """Index of a mask -> indexes of further masks of its sample."""
    where: str
    """Name of the source in errors."""


def background_files(query: BackgroundQuery) -> BackgroundFiles:
    """Return the background files of a query, numbered and sorted."""
    return BackgroundFiles([filenames.file_stem(query.names[index]) for index in query.files])


def all_stated_rules(query: BackgroundQuery) -> list[CandidateRule]:
    """Return the rules that names state; if none is complete, also that of a map in the source.

    Raises:
        LayoutError: The map's rows contradict each other.
    """
    count = len(query.members["fg_bg"])
    candidates = stated_rules(background_files(query), query.slots, _possible_names(query), count)
    if not any(each.complete for each in candidates):
        mapped, _ = rule_from_map(query)
        candidates = [mapped, *candidates] if mapped else candidates
    return candidates


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
        place = {stem.lower(): number for number, stem in enumerate(stems)}
        texts = [group_text(layout, names[i], "bg") for i in query.members["fg_bg"].tolist()]
        indexes = [place.get((text or "").lower(), -1) for text in texts]
        candidate = make_candidate(
            "the group bg",
            settings,
            np.array(indexes, np.int32),
            lambda row: f"its name states {texts[row]}, which is none of {len(stems)} backgrounds",
        )
    elif rule == "only":
        only = np.zeros(len(query.members["fg_bg"]), np.int32)
        candidate = CandidateRule(rule="the only one", settings=settings, background_index=only)
        candidate = candidate if len(stems) == 1 else None
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

    Tries the numbers plus or minus one, and as positions in a sorted list. The other counting must
    give a background to all samples that the candidate covers, and to more.
    """
    files, covered = background_files(query), candidate.background_index >= 0
    slots = {**query.slots, **query.runs()}
    shifted: list[dict[str, str | int]] = [{"rule": "number", "offset": by} for by in (1, -1)]
    shifted += [
        {"rule": "order", "order": order, "first": first} for order in ORDERS for first in (0, 1)
    ]
    for slot in slots:
        plain = rule_from_settings(files, slots, {"rule": "number", "number": slot})
        if plain is None or not plain.extends(candidate):
            continue
        for settings in shifted:
            other = rule_from_settings(files, slots, {"number": slot, **settings})
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


def _possible_names(query: BackgroundQuery) -> Iterator[list[str]]:
    """Yield, for each sample, texts that may name its background: folders, name beginnings."""
    folders: dict[str, list[str]] = {}
    for index in query.members["fg_bg"].tolist():
        path, _, base = query.names[index].lower().rpartition("/")
        if path not in folders:
            parts = path.split("/")[query.shared_folders :]
            folders[path] = [*reversed(parts), *map(filenames.strip_words, reversed(parts))]
        stem = base.rpartition(".")[0]
        cuts = [place for place, mark in enumerate(stem) if mark in "-_ ."]
        yield folders[path] + [stem[:place] for place in reversed(cuts)]
