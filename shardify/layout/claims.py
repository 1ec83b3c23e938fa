"""On which backgrounds samples are said to stand: by their names, by a map, or by a layout file.

Puts the question to ``backing`` and ``pairs`` and gives their candidates. It judges none: whether
a claim holds is ``prove``'s word.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout import filenames
from shardify.layout.background_candidates import Candidate, nearly
from shardify.layout.background_rules import ORDERS, Files, by_rule, stated
from shardify.layout.csv_map import backgrounds_by_map
from shardify.layout.layout_file import Rules, text_of
from shardify.layout.maps import Row

__all__ = ["Question", "all_stated", "as_told", "by_map", "files_of", "is_shifted"]

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
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


def files_of(question: Question) -> Files:
    """The backgrounds, in every order in which somebody may have counted them."""
    return Files([_stem(question.names[index]) for index in question.files])


def all_stated(question: Question) -> list[Candidate]:
    """What names state, or else a map in the source.

    Raises:
        LayoutError: The map's rows contradict each other.
    """
    count = len(question.members["fg_bg"])
    tried = stated(files_of(question), question.slots, _texts(question), count)
    if not any(each.whole for each in tried):
        mapped, _ = by_map(question)
        tried = [mapped, *tried] if mapped else tried
    return tried


def as_told(question: Question, layout: Rules) -> Candidate:
    """The candidate of a layout file's rule.

    Raises:
        LayoutError: The rule does not give nearly every sample a background.
    """
    settings, rule = layout.background, str(layout.background["rule"])
    names = question.names
    stems = [text_of(layout, names[index], "bg") or _stem(names[index]) for index in question.files]
    told: Candidate | None
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
        told = Candidate(rule="the only one", settings=settings, of_sample=only)
        told = told if len(stems) == 1 else None
    else:
        told = by_rule(Files(stems), question.slots, settings)
    if told is None:
        raise LayoutError(
            f"{question.where}: the layout file's background rule ({rule}) does not give every "
            f"sample one of {len(stems)} backgrounds; expected numbers or names that do; correct "
            f"[background] or the patterns"
        )
    return told


def is_shifted(question: Question, candidate: Candidate) -> bool:
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


def by_map(question: Question) -> tuple[Candidate | None, str]:
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
    told = Candidate(
        rule="a map in the source",
        settings={"rule": "map"},
        of_sample=found.of_sample,
        warnings=found.warnings,
    )
    return told, ""


def _texts(question: Question) -> Iterator[list[str]]:
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
