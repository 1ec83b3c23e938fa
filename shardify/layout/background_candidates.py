"""A candidate: one way to find every sample's background, or nearly every one's.

Holds and counts; it proposes no rule and judges none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SINGLE", "CandidateRule", "nearly"]

IntArray = npt.NDArray[np.int32]

SINGLE = ("number", "order")
"""Rules by which a number means one background, and no two the same."""

_NEARLY = 0.9
"""Share of the samples to which a rule must give a background; the others are left out by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRule:
    """One way to find every sample's background."""

    rule: str
    """In words, for people."""

    settings: Mapping[str, str | int]
    """The same as a layout file's ``[background]`` would say it."""

    of_sample: IntArray
    """(N,) int32, index into the background files; -1 where the one that is meant is not there."""

    lacks: Callable[[int], str] = str
    """What the name of such a sample states instead, by its row."""

    warnings: tuple[str, ...] = ()
    """What a user should know of where it comes from."""

    @property
    def whole(self) -> bool:
        """Whether every sample has one."""
        return bool((self.of_sample >= 0).all())

    def counts(self, slot: str) -> bool:
        """Whether each value of a slot means one background, and no two the same."""
        return self.settings["rule"] in SINGLE and self.settings["number"] == slot

    def extends(self, other: "CandidateRule") -> bool:
        """Whether it gives every sample that has one by ``other`` the same."""
        return bool((self.of_sample == other.of_sample)[other.of_sample >= 0].all())


def nearly(
    rule: str,
    settings: Mapping[str, str | int],
    of_sample: IntArray,
    lacks: Callable[[int], str],
) -> CandidateRule | None:
    """A candidate, unless it gives so few samples a background that it is no rule at all."""
    if np.count_nonzero(of_sample < 0) > (1 - _NEARLY) * len(of_sample) + 1e-9:
        return None
    return CandidateRule(rule=rule, settings=settings, of_sample=of_sample, lacks=lacks)
