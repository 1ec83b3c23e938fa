"""A candidate rule that gives each sample, or nearly each, a background."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

ONE_TO_ONE_RULES = ("number", "order")
"""Rules that map each number to one background, and no two numbers to the same."""

_MIN_COVERED_SHARE = 0.9
"""Share of the samples to which a rule must give a background; the others are rejected."""


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
