"""One window of a contender at work: samples, seconds, CPU time and memory of all its processes.

Keeps time for one piece of work in this process; ``bench`` and ``sweep`` say of which, and how
often. Reads Linux's ``/proc``.
"""

import os
import time
from pathlib import Path

from train.bench.cases import RunningCase

__all__ = ["tree", "window"]

_TICK = os.sysconf("SC_CLK_TCK")
_AHEAD = 0.4
"""Seconds of work that are thrown away before each window: what had been made ahead."""


def window(work: RunningCase, seconds: float, *, idle: bool = True) -> dict[str, float]:
    """Let a contender work for some seconds, once what was made ahead is used up.

    Args:
        work: The contender.
        seconds: How long, at least.
        idle: Whether it stood still until now, and may have made something ahead.

    Returns:
        ``samples``, ``wall`` and ``cpu`` (seconds), ``memory`` (bytes), and ``waited`` (seconds)
        where a network trains.
    """
    begun = time.perf_counter()
    while idle and time.perf_counter() - begun < min(_AHEAD, seconds):
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


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
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
    """Seconds of CPU that processes have used."""
    total = 0
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(words[11]) + int(words[12])
    return total / _TICK


def _memory(pids: list[int]) -> float:
    """Bytes that processes hold, what they share counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024.0
