"""Values of a run: position, throughput and summary."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from train.tracking.metrics_log import json_safe


@dataclass(slots=True)
class Position:
    """Position of a run."""

    epoch: int = 0
    """Number of completed epochs, which is the number of the current epoch."""

    step: int = 0
    trained: bool = False
    """Whether all batches of the current epoch were used, and only its validation is missing."""

    best: float | None = None
    """Lowest validation loss (or training loss, without validation) of this stage."""

    stale: int = 0
    """Number of epochs since that loss, for early stopping."""

    cut: dict[int, int] = field(default_factory=dict)
    """Index of each stage that early stopping ended, except the last stage → its epochs."""


class Throughput:
    """Throughput and data-wait of an epoch; the trainer updates the counters."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start the clock and reset the counters."""
        self.steps = 0
        """Optimiser steps of this epoch."""
        self.samples = 0
        """Samples of this epoch, of all ranks."""
        self.waited = 0.0
        """Time spent waiting for the loader. Seconds."""
        self._started = perf_counter()
        self._seconds = 0.0

    def end(self) -> None:
        """Stop the clock."""
        self._seconds = perf_counter() - self._started

    def figures(self) -> dict[str, float]:
        """Return ``samples_per_s``, ``data_wait`` (share of the time) and ``seconds``."""
        seconds = self._seconds
        return {
            "samples_per_s": self.samples / seconds if seconds else 0.0,
            "data_wait": self.waited / seconds if seconds else 0.0,
            "seconds": seconds,
        }

    def seconds_per_step(self) -> float:
        """Return the mean time of this epoch's steps so far; there must be one."""
        return (perf_counter() - self._started) / self.steps

    def __str__(self) -> str:
        seconds = perf_counter() - self._started
        share = 100 * self.waited / seconds
        return f"{self.samples / seconds:.1f} samples/s · data-wait {share:.1f} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Result of a run."""

    out: Path
    steps: int
    ended: str
    """Why the run ended."""

    last: dict[str, Any] | None
    """Record of the last epoch, as in ``metrics.jsonl``; None if no epoch was trained."""

    panel: Path | None
    weights: Path | None
    """Best weights, or else the last; None if none were written."""

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.steps} steps; {self.ended}"]
        if self.last is not None:
            lines.append(f"  data-wait  {100 * self.last['data_wait']:.1f} % of the step time")
            lines.append(f"  throughput {self.last['samples_per_s']:.1f} samples/s")
            lines.append(f"  memory     {self.last['peak_memory_mb']:.0f} MB (peak)")
        lines.append(f"  weights    {self.weights or 'none were written'}")
        if self.panel is not None:
            lines.append(f"  panel      {self.panel}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return one JSON object on one line."""
        weights, panel = (str(path) if path else None for path in (self.weights, self.panel))
        values = {"out": str(self.out), "steps": self.steps, "ended": self.ended, "last": self.last}
        return json.dumps(json_safe({**values, "weights": weights, "panel": panel}))
