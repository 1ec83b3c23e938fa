"""Decide the background of every sample, and check the decision by pixels.

A rule is accepted if it is the only one that fits. If none fits, or pixels contradict the names,
the source is refused with a ``LayoutError`` that shows the scores of the rules that were tried.
"""

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from shardify.errors import LayoutError
from shardify.layout.background_rules import (
    BackgroundQuery,
    CandidateRule,
    guessed_rules,
    is_shifted,
    rule_from_layout_file,
    rule_from_map,
    stated_rules,
)
from shardify.layout.background_scores import Scores, run_all, score_steps
from shardify.layout.filenames import IntArray
from shardify.layout.layout_file import Rules
from shardify.layout.thumbnails import ReadFile

_REMEDY = "pass --layout with a rule for backgrounds"

_CHECKED_SAMPLES = 48
"""Number of samples on which a stated background is checked."""

_MIN_AGREEMENT = 0.9
"""Share of the decisive samples that a stated rule must fit."""

_MIN_MATCHED_SHARE = 0.1
"""Share of the decoded samples that at least one background must fit."""

_MAX_SHOWN_RULES = 4
"""Number of rules that an error message lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundMatch:
    """The background of every sample, and how it was found."""

    background_index: IntArray
    """(N,) int32, index into the query's files; -1 for the samples in ``missing``."""
    description: dict[str, object]
    """Rule, settings and proof; can be written as JSON."""
    missing: dict[int, str] = field(default_factory=dict)
    """Row of each sample whose background does not exist -> the reason."""
    warnings: tuple[str, ...] = ()
    proof: Generator[None, None, "BackgroundMatch"] | None = None
    """Remaining steps of a deferred check. Returns the same match with its proof, or raises
    LayoutError."""


def match_backgrounds(
    query: BackgroundQuery,
    layout: Rules | None,
    read: ReadFile | None,
    *,
    defer: bool = False,
    check: bool = True,
) -> BackgroundMatch:
    """Find the background of every sample.

    Args:
        query: The samples and the background files.
        layout: A layout file's rules; their background rule is the only candidate.
        read: Returns the bytes of the file with an index; without it nothing is checked.
        defer: Whether the check of stated backgrounds may be returned as ``proof``.
        check: Whether to check by pixels; the layout file can turn it off as well.

    Raises:
        LayoutError: No rule fits the names, none or several fit the pixels, or the pixels do not
            confirm what the names state.
    """
    if layout is not None:
        candidates = [rule_from_layout_file(query, layout)]
        check = check and layout.check
    else:
        candidates = stated_rules(query)
    reason = ""
    if not check:
        reason = "check = false"
    elif read is None:
        reason = "only the names were looked at"
    elif "mask" not in query.members:
        reason = "without masks, it is unknown where the background is visible"
    if reason:
        read = None
        for candidate in candidates:
            if layout is not None or candidate.complete or not is_shifted(query, candidate):
                match = _match(candidate, {"proof": f"none: {reason}"})
                if not check:
                    match.description["settings"] = {**candidate.settings, "check": False}
                return match
    steps = _decide_by_pixels(query, layout, candidates, read)
    if defer and len(candidates) == 1 and (layout is not None or candidates[0].complete):
        # Pixels can only accept or refuse this one.
        return dataclasses.replace(_match(candidates[0], {}), proof=steps)
    return run_all(steps)


def _decide_by_pixels(
    query: BackgroundQuery,
    layout: Rules | None,
    candidates: list[CandidateRule],
    read: ReadFile | None,
) -> Generator[None, None, BackgroundMatch]:
    """Decide by pixels; yield after each small step."""
    # If some numbers match no background, all may have an offset: the rule is only a guess.
    doubtful = next(
        (candidate for candidate in candidates if layout is None and not candidate.complete), None
    )
    if candidates and read and not doubtful:
        scores = yield from _compare(query, candidates, read)
        # A single candidate that fits enough samples is not compared with others.
        enough = 2 * scores.samples >= scores.examined
        confirmed = enough and scores.agreement[0] >= _MIN_AGREEMENT
        if len(candidates) == 1 and confirmed:
            return _match(candidates[0], _proof(scores, 0))
        if len(candidates) > 1 and scores.winner is not None:
            return _match(candidates[scores.winner], _proof(scores, scores.winner))
    stated = bool(candidates) and not doubtful
    slots = query.slots if layout is not None else query.all_slots
    guesses = guessed_rules(query.background_files, slots, candidates)
    if doubtful:
        guesses = _guesses_beside(doubtful, guesses, "bg" if "bg" in query.slots else "folder")
    candidates = candidates + guesses
    if not candidates or read is None:
        raise LayoutError(_no_rule_message(query, candidates))
    scores = yield from _compare(query, candidates, read)
    if stated:
        if not scores.decoded:
            # The build reads these files again and reports them.
            proof = f"none: none of {scores.examined} samples can be opened"
            return _match(candidates[0], {"proof": proof})
        matched = scores.samples >= _MIN_MATCHED_SHARE * scores.decoded
        if not matched or scores.agreement[0] < _MIN_AGREEMENT:
            raise LayoutError(_refuted_message(query, layout, candidates, scores, matched=matched))
        return _match(candidates[0], _proof(scores, 0))
    if scores.winner is None:
        _, reason = rule_from_map(query)
        reason = f", {reason}," if reason else ","
        if doubtful:
            row = int(np.flatnonzero(doubtful.background_index < 0)[0])
            reason = f" ({doubtful.missing_reason(row)}),"
        raise LayoutError(
            f"{query.where}: names do not tell the background{reason} and the pixels of "
            f"{scores.samples} samples single out no rule: "
            f"{_ranked_candidates(candidates, scores)}; expected one that fits; {_REMEDY}"
        )
    return _match(candidates[scores.winner], _proof(scores, scores.winner))


def _guesses_beside(
    doubtful: CandidateRule, guesses: Sequence[CandidateRule], slot: str
) -> list[CandidateRule]:
    """Leave out guesses that only add samples to the doubtful rule, or to its like.

    Where a stated number has no background, other numbers of the name are not tried.
    """
    one_to_one = [guess for guess in guesses if guess.is_one_to_one(slot)]
    partial = [doubtful, *(guess for guess in one_to_one if not guess.complete)]
    return one_to_one + [
        guess
        for guess in guesses
        if not guess.is_one_to_one(slot) and not any(map(guess.extends, partial))
    ]


def _match(candidate: CandidateRule, proof: dict[str, object]) -> BackgroundMatch:
    return BackgroundMatch(
        background_index=candidate.background_index,
        description={"rule": candidate.rule, "settings": dict(candidate.settings), **proof},
        missing={
            row: f"its background does not exist: {candidate.missing_reason(row)}"
            for row in np.flatnonzero(candidate.background_index < 0).tolist()
        },
        warnings=candidate.warnings,
    )


def _compare(
    query: BackgroundQuery, candidates: Sequence[CandidateRule], read: ReadFile
) -> Generator[None, None, Scores]:
    return score_steps(
        [candidate.background_index for candidate in candidates],
        composites=query.members["fg_bg"],
        masks=query.members["mask"],
        united=query.united,
        files=query.files,
        read=read,
        samples=_CHECKED_SAMPLES if len(candidates) == 1 else 2 * _CHECKED_SAMPLES,
    )


def _proof(scores: Scores, number: int) -> dict[str, object]:
    proof: dict[str, object] = {
        "proof": "pixels outside the mask",
        "samples": scores.samples,
        "agrees": round(scores.agreement[number], 4),
        "error": round(scores.errors[number], 2),
    }
    return proof | ({"margin": round(scores.margin, 2)} if scores.margin else {})


def _refuted_message(
    query: BackgroundQuery,
    layout: Rules | None,
    candidates: Sequence[CandidateRule],
    scores: Scores,
    *,
    matched: bool,
) -> str:
    """Describe pixels that contradict the stated rule; if not ``matched``, that fit none."""
    if matched:
        what = f"the pixels contradict: {_ranked_candidates(candidates, scores)}"
        remedy = "correct [background], or set check = false" if layout else _REMEDY
    else:
        what = "no pixels bear it out: "
        if scores.decoded > scores.covered:
            what += f"it differs by {scores.errors[0]:.1f} of 255 outside the mask, "
        what += f"any fits {scores.samples} of {scores.decoded} samples"
        if scores.covered:
            what += f", {scores.covered} masks leave nothing outside"
        remedy = "correct backgrounds or masks (are these inverted?), or set check = false"
        if layout is None:
            remedy += " in a layout file (shardify inspect --no-check)"
    subject = "the layout file states" if layout else "names state"
    return (
        f"{query.where}: {subject} the background ({candidates[0].rule}), but {what}; expected "
        f"composites that equal their background outside the mask; {remedy}"
    )


def _ranked_candidates(candidates: Sequence[CandidateRule], scores: Scores) -> str:
    """List the best candidates, each with its share of fitting samples and its error."""
    ranked = sorted(
        zip(candidates, scores.agreement, scores.errors, strict=True),
        key=lambda scored: (-scored[1], scored[2]),
    )
    return ", ".join(
        f"{candidate.rule} fits {agreement:.0%} (error {error:.1f})"
        for candidate, agreement, error in ranked[:_MAX_SHOWN_RULES]
    )


def _no_rule_message(query: BackgroundQuery, candidates: Sequence[CandidateRule]) -> str:
    """Explain in one line why names alone do not decide."""
    files = query.background_files
    _, map_gap = rule_from_map(query)
    if map_gap:
        what = f"no name states the background, and {map_gap}"
    elif "bg" not in query.slots:
        sample = query.names[int(query.members["fg_bg"][0])]
        what = f"names do not state which background a sample has (nothing like bg_012 in {sample})"
    elif files.unnumbered:
        what = f"backgrounds have no unique numbers: {files.unnumbered}"
    else:
        stated = np.unique(query.slots["bg"]).tolist()
        absent = next((number for number in stated if number not in files.by_number), stated[0])
        what = (
            f"samples name background {absent}, but backgrounds are numbered "
            f"{min(files.by_number)} to {max(files.by_number)}"
        )
    complete = [candidate for candidate in candidates if candidate.complete]
    rules = "no rule fits"
    if complete:
        rules = f"{len(complete)} rules are possible, such as {complete[0].rule}"
    return f"{query.where}: {what}; expected names or pixels that decide: {rules}; {_REMEDY}"
