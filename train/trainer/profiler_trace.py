"""Write a torch profiler trace of a few training steps.

The first steps are skipped, because they are not typical.
"""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED_STEPS = 3
TRACED_STEPS = 4


class Tracer:
    """Traces ``TRACED_STEPS`` steps after the first ``SKIPPED_STEPS``, then writes the file."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Start the profiler.

        Args:
            path: JSON file to write, for chrome://tracing or Perfetto.
            device: Device of the training.
        """
        self._path = path
        self._written = False
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._left = SKIPPED_STEPS + TRACED_STEPS
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=TRACED_STEPS),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self) -> bool:
        """Count an optimiser step; return whether this call wrote the trace."""
        if self._left == 0:
            return False
        self._left -= 1
        self._profile.step()
        if self._left:
            return False
        self._profile.stop()
        return self._written

    def close(self) -> bool:
        """Stop the profiler; return whether this call wrote a trace, of fewer steps."""
        if not self._left:
            return False
        self._left = 0
        self._profile.stop()
        return self._written

    def _write(self, done: profile) -> None:
        done.export_chrome_trace(str(self._path))
        self._written = True
