"""Measure wall time, CPU time and memory of a process, and describe the machine.

For benchmarks. It keeps little in memory itself: what this process has counts as its children's
until they have begun.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# As after an installation: modules are compiled once, not at every start.
_ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One process and its children, measured from outside."""

    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """Seconds, user and system, of the process and its children."""
    memory: int
    """Largest resident size of any one of its processes. Bytes."""


def run_measured(words: list[str], output: IO[bytes] | None = None) -> Run:
    """Run the interpreter with ``words`` and wait for it.

    Memory is that of the largest of the process and all its descendants that were waited for: the
    kernel hands it up from child to parent.

    Args:
        words: Arguments to the interpreter.
        output: Where standard output goes; nowhere without it.

    Raises:
        RuntimeError: It failed.
    """
    os.sync()  # What the one before left to be written is not this one's to wait for.
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_ENV,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(words)}: exit code {process.returncode}: {errors.decode()[-500:]}"
        )
    return Run(wall=wall, cpu=usage.ru_utime + usage.ru_stime, memory=usage.ru_maxrss * 1024)


def conditions(load: float) -> dict[str, Any]:
    """Machine and versions, for a benchmark's JSON.

    Args:
        load: Load average before the start.
    """
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_before": load,
            "python": platform.python_version(),
        },
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("shardline", "numpy", "numba", "isal", "deflate", "webdataset")
        },
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
