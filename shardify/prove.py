"""The background of every sample: what names state is checked, what they leave open is settled.

Puts the rules of ``backing`` before the pixels of ``settle`` and judges. A rule is taken when it
is the only one that fits; where none does, or pixels do not bear the names out, the source is
refused with the scores of what was tried.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardify import backing, naming
from shardify.backing import Candidate, Files, by_rule
from shardify.errors import LayoutError
from shardify.maps import Row
from shardify.pairs import backgrounds_by_map
from shardify.rules import Rules, text_of
from shardify.settle import Scores, drained, scoring

__all__ = ["Decision", "Question", "decide"]

IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

_CHECKED = 48
"""Samples on which a stated background is checked."""

_AGREES = 0.9
_BORNE = 0.1
"""Share of the samples that can be opened which some background must fit at all."""

_SHOWN = 4


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The answer."""

    of_sample: IntArray
    """(N,) int32, index into the question's files."""
    description: dict[str, object]
    warnings: tuple[str, ...] = ()
    proof: Generator[None, None, "Decision"] | None = None
    """The steps that are left, where the proof was deferred; at their end the same answer, proven,
    or a LayoutError."""


def decide(
    question: Question,
    layout: Rules | None,
    read: Read | None,
    *,
    defer: bool = False,
    check: bool = True,
) -> Decision:
    """Find the background of every sample.

    Args:
        question: What is known.
        layout: A layout file's rules; their background rule is the only candidate.
        read: Gives a file's bytes; without it nothing is proven.
        defer: Whether the proof of a background that names state may be left for later.
        check: Whether there is to be a proof at all; the layout may say so as well.

    Raises:
        LayoutError: No rule fits the names, none or several fit the pixels, or the pixels
            contradict what the names state, or no pixel bears it out.
    """
    tried = [_as_told(question, layout)] if layout is not None else _all_stated(question)
    check = check and (layout is None or layout.check)
    why = ""
    if not check:
        why = "check = false"
    elif read is None:
        why = "only the names were looked at"
    elif "mask" not in question.members:
        why = "without masks, nothing tells where a background shows"
    blind = bool(why)
    if tried and blind:
        found = _answer(tried[0], {"proof": f"none: {why}"})
        if not check:
            settings = {**tried[0].settings, "check": False}
            found.description["settings"] = settings
        return found
    steps = _decide(question, layout, tried, None if blind else read)
    if defer and len(tried) == 1:
        # Whatever the pixels say, it is this one or none.
        decided = _answer(tried[0], {})
        return dataclasses.replace(decided, proof=steps)
    return drained(steps)


def _decide(
    question: Question, layout: Rules | None, tried: list[Candidate], read: Read | None
) -> Generator[None, None, Decision]:
    """What the pixels say, in small steps."""
    if tried and read:
        scores = yield from _compare(question, tried, read)
        if len(tried) == 1 and _holds(scores):
            return _answer(tried[0], _proof(scores, 0))
        if len(tried) > 1 and scores.winner is not None:
            return _answer(tried[scores.winner], _proof(scores, scores.winner))
    known = len(tried)
    tried = tried + backing.guesses(_files(question), {**question.slots, **question.runs()}, tried)
    if not tried or read is None:
        raise LayoutError(_no_rule(question, tried))
    scores = yield from _compare(question, tried, read)
    if known:
        if not scores.opened:
            # Who writes the shards meets these files again, and names them.
            proof = f"none: none of {scores.looked} samples can be opened"
            return _answer(tried[0], {"proof": proof})
        borne = scores.samples >= _BORNE * scores.opened
        if borne and scores.scores[0].agrees >= _AGREES:
            return _answer(tried[0], _proof(scores, 0))
        says = "names state" if layout is None else "the layout file states"
        what = f"the pixels contradict: {_ranking(tried, scores)}" if borne else _unborne(scores)
        remedy = "pass --layout with a rule for backgrounds"
        if not borne:
            remedy = "correct backgrounds or masks (are these inverted?), or set check = false"
            remedy += " in a layout file (shardify inspect --no-check)" if layout is None else ""
        elif layout is not None:
            remedy = "correct [background], or set check = false"
        raise LayoutError(
            f"{question.where}: {says} the background ({tried[0].rule}), but {what}; expected "
            f"composites that equal their background outside the mask; {remedy}"
        )
    if scores.winner is None:
        raise LayoutError(
            f"{question.where}: names do not tell the background, and the pixels of "
            f"{scores.samples} samples single out no rule: {_ranking(tried, scores)}; expected one "
            f"that fits{_REMEDY}"
        )
    return _answer(tried[scores.winner], _proof(scores, scores.winner))


_REMEDY = "; pass --layout with a rule for backgrounds"


def _answer(candidate: Candidate, proof: dict[str, object]) -> Decision:
    description = {"rule": candidate.rule, "settings": dict(candidate.settings), **proof}
    return Decision(
        of_sample=candidate.of_sample, description=description, warnings=candidate.warnings
    )


def _compare(
    question: Question, tried: Sequence[Candidate], read: Read
) -> Generator[None, None, Scores]:
    return scoring(
        [each.of_sample for each in tried],
        composites=question.members["fg_bg"],
        masks=question.members["mask"],
        files=question.files,
        read=read,
        samples=_CHECKED if len(tried) == 1 else 2 * _CHECKED,
    )


def _holds(scores: Scores) -> bool:
    """Whether a lone candidate fits so many samples that no other can be meant."""
    return scores.samples * 2 >= scores.looked and scores.scores[0].agrees >= _AGREES


def _proof(scores: Scores, number: int) -> dict[str, object]:
    best = scores.scores[number]
    proof: dict[str, object] = {
        "proof": "pixels outside the mask",
        "samples": scores.samples,
        "agrees": round(best.agrees, 4),
        "error": round(best.error, 2),
    }
    return proof | ({"margin": round(scores.margin, 2)} if scores.margin else {})


def _unborne(scores: Scores) -> str:
    """What there is instead of agreement, where no background fits."""
    known = scores.opened > scores.covered
    apart = f"it differs by {scores.scores[0].error:.1f} of 255 outside the mask, " if known else ""
    covered = f", {scores.covered} masks leave nothing outside" if scores.covered else ""
    fits = f"any fits {scores.samples} of {scores.opened} samples"
    return f"no pixels bear it out: {apart}{fits}{covered}"


def _ranking(tried: Sequence[Candidate], scores: Scores) -> str:
    """The best candidates, each with its share of fitting samples and its error."""
    ranked = sorted(
        zip(tried, scores.scores, strict=True), key=lambda pair: (-pair[1].agrees, pair[1].error)
    )
    told = [
        f"{each.rule} fits {found.agrees:.0%} (error {found.error:.1f})"
        for each, found in ranked[:_SHOWN]
    ]
    return ", ".join(told)


def _files(question: Question) -> backing.Files:
    return backing.Files([_stem(question.names[index]) for index in question.files])


def _all_stated(question: Question) -> list[Candidate]:
    count = len(question.members["fg_bg"])
    tried = backing.stated(_files(question), question.slots, _texts(question), count)
    if not tried:
        mapped, _ = _by_map(question)
        tried = [mapped] if mapped else []
    return tried


def _as_told(question: Question, layout: Rules) -> Candidate:
    """The candidate of a layout file's rule."""
    settings, rule = layout.background, str(layout.background["rule"])
    names = question.names
    stems = [text_of(layout, names[index], "bg") or _stem(names[index]) for index in question.files]
    told: Candidate | None
    if rule == "map":
        told, lacking = _by_map(question)
        if lacking:
            raise LayoutError(
                f"{question.where}: {lacking}; expected a row for each sample; complete the map"
            )
    elif rule == "name":
        place = {stem.lower(): number for number, stem in enumerate(stems)}
        texts = [text_of(layout, names[i], "bg") for i in question.members["fg_bg"].tolist()]
        found = [place.get((text or "").lower(), -1) for text in texts]
        told = None if min(found) < 0 else _stated("the group bg", settings, found)
    elif rule == "only":
        count = len(question.members["fg_bg"])
        told = _stated("the only one", settings, [0] * count) if len(stems) == 1 else None
    else:
        told = by_rule(Files(stems), question.slots, settings)
    if told is None:
        raise LayoutError(
            f"{question.where}: the layout file's background rule ({rule}) does not give every "
            f"sample one of {len(stems)} backgrounds; expected numbers or names that do; correct "
            f"[background] or the patterns"
        )
    return told


def _stated(rule: str, settings: Mapping[str, str | int], found: list[int]) -> Candidate:
    return Candidate(rule=rule, settings=settings, of_sample=np.array(found, np.int32))


def _by_map(question: Question) -> tuple[Candidate | None, str]:
    """What the source's map says; or, where that is not enough, what it lacks."""
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


def _no_rule(question: Question, tried: Sequence[Candidate]) -> str:
    """Why names alone cannot decide, in one line."""
    files = _files(question)
    _, lacking = _by_map(question)
    if lacking:
        what = f"no name tells the background, and {lacking}"
    elif "bg" not in question.slots:
        sample = question.names[int(question.members["fg_bg"][0])]
        what = f"names do not tell which background a sample has (nothing like bg_012 in {sample})"
    elif files.unnumbered:
        what = f"backgrounds cannot be told by number: {files.unnumbered} has none of its own"
    else:
        wanted = np.unique(question.slots["bg"]).tolist()
        absent = next((each for each in wanted if each not in files.of_number), wanted[0])
        what = (
            f"samples name background {absent}, but backgrounds are numbered "
            f"{min(files.of_number)} to {max(files.of_number)}"
        )
    rules = f"{len(tried)} rules are possible, such as {tried[0].rule}" if tried else "no rule fits"
    return f"{question.where}: {what}; expected names or pixels that decide: {rules}{_REMEDY}"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
