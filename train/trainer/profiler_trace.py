"""A trace of a few training steps, for the eye.

Wraps torch's profiler; it looks at steps after the first ones, which are never typical.
"""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

__all__ = ["Tracer"]

SKIPPED = 3
TRACED = 4


class Tracer:
    """Records ``TRACED`` steps of a run after the first ``SKIPPED``, then writes and stops."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Wait for the first step.

        Args:
            path: The JSON to write, for chrome://tracing or Perfetto.
            device: Where training computes.
        """
        self._path = path
        self._written = False
        kinds = [ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self._left = SKIPPED + TRACED
        self._profile = profile(
            activities=kinds,
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=TRACED),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self) -> bool:
        """Count an optimiser step; returns whether the trace has just been written."""
        if self._left == 0:
            return False
        self._left -= 1
        self._profile.step()
        if self._left:
            return False
        self._profile.stop()
        return self._written

    def close(self) -> bool:
        """Stop early; returns whether a trace, of fewer steps, has just been written."""
        if not self._left:
            return False
        self._left = 0
        self._profile.stop()
        return self._written

    def _write(self, done: profile) -> None:
        done.export_chrome_trace(str(self._path))
        self._written = True
