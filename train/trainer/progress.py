"""How far a run is, how fast it goes, and what it came to: plain values.

Nothing here trains, and nothing but the clock is read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from train.tracking.metrics_log import plain

__all__ = ["Position", "Summary", "Throughput"]


@dataclass(slots=True)
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Epochs that are wholly done; the number of the one at work."""

    step: int = 0
    """Optimiser steps done in all."""

    trained: bool = False
    """Whether the epoch at work has seen all its batches, and only its judgement is missing."""

    best: float | None = None
    """Lowest watched loss at this resolution; None before the first."""


class Throughput:
    """How fast an epoch goes: whoever trains counts, the clock runs."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start the clock of an epoch."""
        self.steps = 0
        """Optimiser steps since then."""
        self.samples = 0
        """Samples since then, of all ranks."""
        self.waited = 0.0
        """Of that time, in the loader. Seconds."""
        self._started = perf_counter()
        self._seconds = 0.0

    def end(self) -> None:
        """Stop the clock."""
        self._seconds = perf_counter() - self._started

    def figures(self) -> dict[str, float]:
        """``samples_per_s``, ``data_wait`` (a share) and ``seconds`` of the time clocked."""
        seconds = self._seconds
        return {
            "samples_per_s": self.samples / seconds if seconds else 0.0,
            "data_wait": self.waited / seconds if seconds else 0.0,
            "seconds": seconds,
        }

    def __str__(self) -> str:
        seconds = perf_counter() - self._started
        share = 100 * self.waited / seconds
        return f"{self.samples / seconds:.1f} samples/s · data-wait {share:.1f} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run came to."""

    out: Path
    """Its folder."""

    steps: int
    """Optimiser steps in all."""

    last: dict[str, Any] | None
    """The record of the last epoch, as in ``metrics.jsonl``; None if there was nothing to do."""

    panel: Path | None
    """The last panel; None if none was drawn."""

    weights: Path | None
    """The best weights, or else the last; None if none could be written."""

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.steps} steps"]
        if self.last is not None:
            lines.append(f"  data-wait  {100 * self.last['data_wait']:.1f} % of the step time")
            lines.append(f"  throughput {self.last['samples_per_s']:.1f} samples/s")
            lines.append(f"  memory     {self.last['peak_memory_mb']:.0f} MB at the peak")
        lines.append(f"  weights    {self.weights or 'none could be written'}")
        if self.panel is not None:
            lines.append(f"  panel      {self.panel}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """One JSON object on one line."""
        weights, panel = (str(path) if path else None for path in (self.weights, self.panel))
        found = {"out": str(self.out), "steps": self.steps, "last": self.last}
        return json.dumps(plain({**found, "weights": weights, "panel": panel}))
