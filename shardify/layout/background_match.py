"""The background of every sample: what names state is checked, what they leave open is settled.

Puts what ``claims`` gives, and the guesses of ``backing``, before the pixels of ``settle`` and
judges. A rule is taken when it is the only one that fits; where none does, or pixels do not bear
the names out, the source is refused with the scores of what was tried.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout import background_rules
from shardify.layout.background_candidates import CandidateRule
from shardify.layout.background_rules import (
    BackgroundQuery,
    all_stated,
    by_map,
    files_of,
    is_shifted,
    rule_from_layout_file,
)
from shardify.layout.background_scores import Scores, run_all, score_steps
from shardify.layout.layout_file import Rules

__all__ = ["BackgroundMatch", "match_backgrounds"]

IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

_CHECKED = 48
"""Samples on which a stated background is checked."""

_AGREES = 0.9
_BORNE = 0.1
"""Share of the samples that can be opened which some background must fit at all."""

_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundMatch:
    """The answer."""

    of_sample: IntArray
    """(N,) int32, index into the question's files; -1 where ``lacking`` tells why there is none."""
    description: dict[str, object]
    lacking: dict[int, str] = field(default_factory=dict)
    """Rows of samples whose background does not exist -> what is wrong with it."""
    warnings: tuple[str, ...] = ()
    proof: Generator[None, None, "BackgroundMatch"] | None = None
    """The steps that are left, where the proof was deferred; at their end the same answer, proven,
    or a LayoutError."""


def match_backgrounds(
    question: BackgroundQuery,
    layout: Rules | None,
    read: Read | None,
    *,
    defer: bool = False,
    check: bool = True,
) -> BackgroundMatch:
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
    tried = (
        [rule_from_layout_file(question, layout)] if layout is not None else all_stated(question)
    )
    check = check and (layout is None or layout.check)
    why = ""
    if not check:
        why = "check = false"
    elif read is None:
        why = "only the names were looked at"
    elif "mask" not in question.members:
        why = "without masks, nothing tells where a background shows"
    blind = bool(why)
    for each in tried if blind else ():
        if layout is not None or each.whole or not is_shifted(question, each):
            found = _answer(each, {"proof": f"none: {why}"})
            if not check:
                found.description["settings"] = {**each.settings, "check": False}
            return found
    steps = _decide(question, layout, tried, None if blind else read)
    if defer and len(tried) == 1 and (layout is not None or tried[0].whole):
        # Whatever the pixels say, it is this one or none.
        decided = _answer(tried[0], {})
        return dataclasses.replace(decided, proof=steps)
    return run_all(steps)


def _decide(
    question: BackgroundQuery, layout: Rules | None, tried: list[CandidateRule], read: Read | None
) -> Generator[None, None, BackgroundMatch]:
    """What the pixels say, in small steps."""
    # Numbers that no background has may all be counted otherwise: what they state is a guess.
    doubtful = next((each for each in tried if layout is None and not each.whole), None)
    if tried and read and not doubtful:
        scores = yield from _compare(question, tried, read)
        if len(tried) == 1 and _holds(scores):
            return _answer(tried[0], _proof(scores, 0))
        if len(tried) > 1 and scores.winner is not None:
            return _answer(tried[scores.winner], _proof(scores, scores.winner))
    known = 0 if doubtful else len(tried)
    guesses = background_rules.guessed_rules(
        files_of(question), {**question.slots, **question.runs()}, tried
    )
    if doubtful:
        # Where a name states what is not there, no other number of it is asked instead.
        slot = "bg" if "bg" in question.slots else "folder"
        counts = [each for each in guesses if each.counts(slot)]
        others = [each for each in guesses if not each.counts(slot)]
        partial = [doubtful, *(each for each in counts if not each.whole)]
        guesses = counts + [
            each for each in others if not any(each.extends(other) for other in partial)
        ]
    tried = tried + guesses
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
        _, lacking = by_map(question)
        told = f", {lacking}," if lacking else ","
        if doubtful:
            row = int(np.flatnonzero(doubtful.of_sample < 0)[0])
            told = f" ({doubtful.lacks(row)}),"
        raise LayoutError(
            f"{question.where}: names do not tell the background{told} and the pixels of "
            f"{scores.samples} samples single out no rule: {_ranking(tried, scores)}; expected one "
            f"that fits{_REMEDY}"
        )
    return _answer(tried[scores.winner], _proof(scores, scores.winner))


_REMEDY = "; pass --layout with a rule for backgrounds"


def _answer(candidate: CandidateRule, proof: dict[str, object]) -> BackgroundMatch:
    description = {"rule": candidate.rule, "settings": dict(candidate.settings), **proof}
    return BackgroundMatch(
        of_sample=candidate.of_sample,
        description=description,
        lacking={
            row: f"its background does not exist: {candidate.lacks(row)}"
            for row in np.flatnonzero(candidate.of_sample < 0).tolist()
        },
        warnings=candidate.warnings,
    )


def _compare(
    question: BackgroundQuery, tried: Sequence[CandidateRule], read: Read
) -> Generator[None, None, Scores]:
    return score_steps(
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


def _ranking(tried: Sequence[CandidateRule], scores: Scores) -> str:
    """The best candidates, each with its share of fitting samples and its error."""
    ranked = sorted(
        zip(tried, scores.scores, strict=True), key=lambda pair: (-pair[1].agrees, pair[1].error)
    )
    told = [
        f"{each.rule} fits {found.agrees:.0%} (error {found.error:.1f})"
        for each, found in ranked[:_SHOWN]
    ]
    return ", ".join(told)


def _no_rule(question: BackgroundQuery, tried: Sequence[CandidateRule]) -> str:
    """Why names alone cannot decide, in one line."""
    files = files_of(question)
    _, lacking = by_map(question)
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
    whole = [each for each in tried if each.whole]
    rules = f"{len(whole)} rules are possible, such as {whole[0].rule}" if whole else "no rule fits"
    return f"{question.where}: {what}; expected names or pixels that decide: {rules}{_REMEDY}"
