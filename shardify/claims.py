"""On which backgrounds samples are said to stand: by their names, by a map, or by a layout file.

Puts the question to ``backing`` and ``pairs`` and gives their candidates. It judges none: whether
a claim holds is ``prove``'s word.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify import naming
from shardify.backing import Candidate, Files, by_rule, stated
from shardify.errors import LayoutError
from shardify.maps import Row
from shardify.pairs import backgrounds_by_map
from shardify.rules import Rules, text_of

__all__ = ["Question", "all_stated", "as_told", "by_map", "files_of"]

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
    if not tried:
        mapped, _ = by_map(question)
        tried = [mapped] if mapped else []
    return tried


def as_told(question: Question, layout: Rules) -> Candidate:
    """The candidate of a layout file's rule.

    Raises:
        LayoutError: The rule does not give every sample a background.
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
        told = None if min(found) < 0 else _candidate("the group bg", settings, found)
    elif rule == "only":
        count = len(question.members["fg_bg"])
        told = _candidate("the only one", settings, [0] * count) if len(stems) == 1 else None
    else:
        told = by_rule(Files(stems), question.slots, settings)
    if told is None:
        raise LayoutError(
            f"{question.where}: the layout file's background rule ({rule}) does not give every "
            f"sample one of {len(stems)} backgrounds; expected numbers or names that do; correct "
            f"[background] or the patterns"
        )
    return told


def _candidate(rule: str, settings: Mapping[str, str | int], found: list[int]) -> Candidate:
    return Candidate(rule=rule, settings=settings, of_sample=np.array(found, np.int32))


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
            folders[path] = [*reversed(parts), *map(naming.strip_words, reversed(parts))]
        stem = base.rpartition(".")[0]
        cuts = [place for place, mark in enumerate(stem) if mark in "-_ ."]
        yield folders[path] + [stem[:place] for place in reversed(cuts)]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
