"""Sweeps that take long to get ready and little to measure: compiled networks.

    python -m train.bench.sweep_group '{"shards": "out", "res": 256, "compile": "yes", …}' …

Each is a process of its own. They get ready together, as many at once as cores and memory allow;
then one after the other is measured, in the order given, while the others stand still. What is
looked for meanwhile, as the fastest algorithms, is looked for beside the others, and so with less
certainty than alone. Measures nothing itself.
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

__all__ = ["convoy"]

_POLL = 0.02

_MEMORY = 3e9
"""Of the host, that one of them may need to get ready: torch, CUDA, compilers. Bytes."""


def convoy(sweeps: Sequence[Sweep]) -> list[int]:
    """Go through all of them.

    Returns:
        Each one's exit status, in order.
    """
    with tempfile.TemporaryDirectory(prefix="shardline-convoy-") as folder:
        turns = [Path(folder) / str(place) for place in range(len(sweeps))]
        going: list[subprocess.Popen[bytes]] = []
        try:
            most = _together()
            for one, turn in zip(sweeps, turns, strict=True):
                while sum(map(_at_work, going, turns)) >= most:
                    time.sleep(_POLL)
                going.append(_start(one, turn, min(most, len(sweeps))))
            while any(map(_at_work, going, turns)):
                time.sleep(_POLL)
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


def _together() -> int:
    """How many may get ready at once."""
    cores = len(os.sched_getaffinity(0)) * 5 // 8
    return max(1, min(cores, int(available_memory() / _MEMORY)))


def _at_work(process: "subprocess.Popen[bytes]", turn: Path) -> bool:
    """Whether a sweep is still getting ready; one that has ended is not."""
    return process.poll() is None and not ready(turn).exists()


def main() -> None:
    """Exit 1 if any figure failed; each sweep says which."""
    found = convoy([Sweep(**json.loads(word)) for word in sys.argv[1:]])
    sys.exit(1 if any(found) else 0)


if __name__ == "__main__":
    main()
