"""Measure one window of a running case: samples, seconds, CPU time and memory of its processes.

Reads Linux's ``/proc``.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.bench.cases import RunningCase

_TICK = os.sysconf("SC_CLK_TCK")
_WARM_UP_SECONDS = 0.4
"""Seconds of work discarded before each window, to use up prefetched batches."""


def window(work: RunningCase, seconds: float, *, idle: bool = True) -> dict[str, float]:
    """Run a case for some seconds, after prefetched batches are used up; return its figures.

    Args:
        work: The case.
        seconds: How long, at least.
        idle: Whether the case was idle until now, and may have prefetched batches.

    Returns:
        ``samples``, ``wall`` and ``cpu`` (seconds), ``memory`` (bytes), and ``waited`` (seconds)
        where a network trains.
    """
    begun = time.perf_counter()
    while idle and time.perf_counter() - begun < min(_WARM_UP_SECONDS, seconds):
        next(work.samples)
    work.waited.clear()
    family = tree(os.getpid())
    cpu, begun, samples = _cpu(family), time.perf_counter(), 0
    while (wall := time.perf_counter() - begun) < seconds:
        samples += next(work.samples)
    found = {
        "samples": float(samples),
        "wall": wall,
        "cpu": _cpu(family) - cpu,
        "memory": _memory(family),
    }
    if work.waited:
        found["waited"] = sum(work.waited)
    return found


def summary(windows: Sequence[Mapping[str, float]]) -> tuple[list[float], float, float | None]:
    """Return the rate of each window (samples a second), the CPU time (ms a sample) and data-wait.

    Data-wait is a share of the time; None where no network trains.
    """
    rates = [one["samples"] / one["wall"] for one in windows]
    samples, wall, cpu = (sum(one[key] for one in windows) for key in ("samples", "wall", "cpu"))
    waits = [one["waited"] for one in windows if "waited" in one]
    return rates, cpu / samples * 1e3, sum(waits) / wall if waits else None


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _cpu(pids: list[int]) -> float:
    """Return the CPU seconds that processes have used."""
    total = 0
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(words[11]) + int(words[12])
    return total / _TICK


def _memory(pids: list[int]) -> float:
    """Return the memory of processes (PSS): shared pages count once. Bytes."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024.0
