"""Decide the background of every sample, and check the decision by pixels.

A rule is accepted if it is the only one that fits. If none fits, or pixels contradict the names,
the source is refused with a ``LayoutError`` that shows the scores of the rules that were tried.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout import background_rules
from shardify.layout.background_rules import (
    BackgroundQuery,
    CandidateRule,
    all_stated_rules,
    background_files,
    is_shifted,
    rule_from_layout_file,
    rule_from_map,
)
from shardify.layout.background_scores import Scores, run_all, score_steps
from shardify.layout.layout_file import Rules

IntArray = npt.NDArray[np.int32]
Read = Callable[[int], bytes]

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
    read: Read | None,
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
    candidates = (
        [rule_from_layout_file(query, layout)] if layout is not None else all_stated_rules(query)
    )
    check = check and (layout is None or layout.check)
    why = ""
    if not check:
        why = "check = false"
    elif read is None:
        why = "only the names were looked at"
    elif "mask" not in query.members:
        why = "without masks, it is unknown where the background is visible"
    skip_pixels = bool(why)
    for candidate in candidates if skip_pixels else ():
        if layout is not None or candidate.complete or not is_shifted(query, candidate):
            match = _answer(candidate, {"proof": f"none: {why}"})
            if not check:
                match.description["settings"] = {**candidate.settings, "check": False}
            return match
    steps = _decide_by_pixels(query, layout, candidates, None if skip_pixels else read)
    if defer and len(candidates) == 1 and (layout is not None or candidates[0].complete):
        # Pixels can only accept or refuse this one.
        decided = _answer(candidates[0], {})
        return dataclasses.replace(decided, proof=steps)
    return run_all(steps)


def _decide_by_pixels(
    query: BackgroundQuery, layout: Rules | None, candidates: list[CandidateRule], read: Read | None
) -> Generator[None, None, BackgroundMatch]:
    """Decide by pixels; yield after each small step."""
    # If some numbers match no background, all may have an offset: the rule is only a guess.
    doubtful = next(
        (candidate for candidate in candidates if layout is None and not candidate.complete), None
    )
    if candidates and read and not doubtful:
        scores = yield from _compare(query, candidates, read)
        if len(candidates) == 1 and _confirms(scores):
            return _answer(candidates[0], _proof(scores, 0))
        if len(candidates) > 1 and scores.winner is not None:
            return _answer(candidates[scores.winner], _proof(scores, scores.winner))
    known = 0 if doubtful else len(candidates)
    guesses = background_rules.guessed_rules(
        background_files(query), {**query.slots, **query.runs()}, candidates
    )
    if doubtful:
        # Where a stated number has no background, do not try other numbers of the name.
        slot = "bg" if "bg" in query.slots else "folder"
        one_to_one = [candidate for candidate in guesses if candidate.is_one_to_one(slot)]
        others = [candidate for candidate in guesses if not candidate.is_one_to_one(slot)]
        partial = [doubtful, *(candidate for candidate in one_to_one if not candidate.complete)]
        guesses = one_to_one + [
            candidate
            for candidate in others
            if not any(candidate.extends(other) for other in partial)
        ]
    candidates = candidates + guesses
    if not candidates or read is None:
        raise LayoutError(_no_rule_message(query, candidates))
    scores = yield from _compare(query, candidates, read)
    if known:
        if not scores.decoded:
            # The build reads these files again and reports them.
            proof = f"none: none of {scores.examined} samples can be opened"
            return _answer(candidates[0], {"proof": proof})
        matched = scores.samples >= _MIN_MATCHED_SHARE * scores.decoded
        if matched and scores.scores[0].agreement >= _MIN_AGREEMENT:
            return _answer(candidates[0], _proof(scores, 0))
        says = "names state" if layout is None else "the layout file states"
        what = (
            f"the pixels contradict: {_ranked_candidates(candidates, scores)}"
            if matched
            else _no_match_message(scores)
        )
        remedy = "pass --layout with a rule for backgrounds"
        if not matched:
            remedy = "correct backgrounds or masks (are these inverted?), or set check = false"
            remedy += " in a layout file (shardify inspect --no-check)" if layout is None else ""
        elif layout is not None:
            remedy = "correct [background], or set check = false"
        raise LayoutError(
            f"{query.where}: {says} the background ({candidates[0].rule}), but {what}; expected "
            f"composites that equal their background outside the mask; {remedy}"
        )
    if scores.winner is None:
        _, missing = rule_from_map(query)
        reason = f", {missing}," if missing else ","
        if doubtful:
            row = int(np.flatnonzero(doubtful.background_index < 0)[0])
            reason = f" ({doubtful.missing_reason(row)}),"
        raise LayoutError(
            f"{query.where}: names do not tell the background{reason} and the pixels of "
            f"{scores.samples} samples single out no rule: "
            f"{_ranked_candidates(candidates, scores)}; expected one that fits{_REMEDY}"
        )
    return _answer(candidates[scores.winner], _proof(scores, scores.winner))


_REMEDY = "; pass --layout with a rule for backgrounds"


def _answer(candidate: CandidateRule, proof: dict[str, object]) -> BackgroundMatch:
    description = {"rule": candidate.rule, "settings": dict(candidate.settings), **proof}
    return BackgroundMatch(
        background_index=candidate.background_index,
        description=description,
        missing={
            row: f"its background does not exist: {candidate.missing_reason(row)}"
            for row in np.flatnonzero(candidate.background_index < 0).tolist()
        },
        warnings=candidate.warnings,
    )


def _compare(
    query: BackgroundQuery, candidates: Sequence[CandidateRule], read: Read
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


def _confirms(scores: Scores) -> bool:
    """Whether a single candidate fits enough samples to need no comparison with others."""
    return scores.samples * 2 >= scores.examined and scores.scores[0].agreement >= _MIN_AGREEMENT


def _proof(scores: Scores, number: int) -> dict[str, object]:
    best = scores.scores[number]
    proof: dict[str, object] = {
        "proof": "pixels outside the mask",
        "samples": scores.samples,
        "agrees": round(best.agreement, 4),
        "error": round(best.error, 2),
    }
    return proof | ({"margin": round(scores.margin, 2)} if scores.margin else {})


def _no_match_message(scores: Scores) -> str:
    """Describe the pixels of samples that no background fits."""
    known = scores.decoded > scores.covered
    apart = f"it differs by {scores.scores[0].error:.1f} of 255 outside the mask, " if known else ""
    covered = f", {scores.covered} masks leave nothing outside" if scores.covered else ""
    fits = f"any fits {scores.samples} of {scores.decoded} samples"
    return f"no pixels bear it out: {apart}{fits}{covered}"


def _ranked_candidates(candidates: Sequence[CandidateRule], scores: Scores) -> str:
    """List the best candidates, each with its share of fitting samples and its error."""
    ranked = sorted(
        zip(candidates, scores.scores, strict=True),
        key=lambda pair: (-pair[1].agreement, pair[1].error),
    )
    return ", ".join(
        f"{candidate.rule} fits {score.agreement:.0%} (error {score.error:.1f})"
        for candidate, score in ranked[:_MAX_SHOWN_RULES]
    )


def _no_rule_message(query: BackgroundQuery, candidates: Sequence[CandidateRule]) -> str:
    """Explain in one line why names alone do not decide."""
    files = background_files(query)
    _, missing = rule_from_map(query)
    if missing:
        what = f"no name states the background, and {missing}"
    elif "bg" not in query.slots:
        sample = query.names[int(query.members["fg_bg"][0])]
        what = f"names do not state which background a sample has (nothing like bg_012 in {sample})"
    elif files.unnumbered:
        what = f"backgrounds have no unique numbers: {files.unnumbered}"
    else:
        wanted = np.unique(query.slots["bg"]).tolist()
        absent = next((number for number in wanted if number not in files.by_number), wanted[0])
        what = (
            f"samples name background {absent}, but backgrounds are numbered "
            f"{min(files.by_number)} to {max(files.by_number)}"
        )
    complete = [candidate for candidate in candidates if candidate.complete]
    rules = (
        f"{len(complete)} rules are possible, such as {complete[0].rule}"
        if complete
        else "no rule fits"
    )
    return f"{query.where}: {what}; expected names or pixels that decide: {rules}{_REMEDY}"
