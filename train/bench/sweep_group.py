"""Prepare several sweeps in parallel, then measure them in turn: for compiled networks.

    python -m train.bench.sweep_group '{"shards": "out", "res": 256, "compile": "yes", …}' …

Each sweep is a process. They prepare in parallel, as many at once as cores and memory allow. Then
each is measured in turn, in the order given, while the others are idle. The search for the fastest
algorithms runs in parallel too, so it is less reliable than alone.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shardify.storage.free_memory import available_memory
from train.bench.sweep import Sweep, ready

_POLL_SECONDS = 0.02

_MEMORY_PER_SWEEP = 3e9
"""Of the host, that one of them may need to get ready: torch, CUDA, compilers. Bytes."""


def measure_group(sweeps: Sequence[Sweep]) -> list[int]:
    """Run all sweeps.

    Returns:
        Each one's exit status, in order.
    """
    with tempfile.TemporaryDirectory(prefix="shardline-sweeps-") as folder:
        turns = [Path(folder) / str(place) for place in range(len(sweeps))]
        going: list[subprocess.Popen[bytes]] = []
        try:
            most = _max_parallel()
            for one, turn in zip(sweeps, turns, strict=True):
                while sum(map(_is_preparing, going, turns)) >= most:
                    time.sleep(_POLL_SECONDS)
                going.append(_start(one, turn, min(most, len(sweeps))))
            while any(map(_is_preparing, going, turns)):
                time.sleep(_POLL_SECONDS)
            found = []
            for process, turn in zip(going, turns, strict=True):
                turn.touch()
                found.append(process.wait())
            return found
        finally:
            for process in going:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()


def _start(one: Sweep, turn: Path, many: int) -> "subprocess.Popen[bytes]":
    words = dataclasses.asdict(dataclasses.replace(one, turn=str(turn)))
    # Each would start as many compilers as there are cores.
    share = max(2, len(os.sched_getaffinity(0)) * 2 // many)
    return subprocess.Popen(
        [sys.executable, "-m", "train.bench.sweep", json.dumps(words)],
        env={"TORCHINDUCTOR_COMPILE_THREADS": str(share), **os.environ},
    )


def _max_parallel() -> int:
    """How many may get ready at once."""
    cores = len(os.sched_getaffinity(0)) * 5 // 8
    return max(1, min(cores, int(available_memory() / _MEMORY_PER_SWEEP)))


def _is_preparing(process: "subprocess.Popen[bytes]", turn: Path) -> bool:
    """Whether a sweep is still getting ready; one that has ended is not."""
    return process.poll() is None and not ready(turn).exists()


def main() -> None:
    """Exit 1 if any figure failed; each sweep says which."""
    found = measure_group([Sweep(**json.loads(word)) for word in sys.argv[1:]])
    sys.exit(1 if any(found) else 0)


if __name__ == "__main__":
    main()
