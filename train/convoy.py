"""Sweeps that take long to get ready and little to measure: compiled networks.

    python -m train.convoy '{"shards": "out", "res": 256, "compile": "yes", …}' …

Each is a process of its own. All get ready at once, on all cores; then one after the other is
measured, in the order given, while the others stand still. Measures nothing itself.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from train.sweep import Sweep

__all__ = ["convoy"]

_POLL = 0.02


def convoy(sweeps: Sequence[Sweep]) -> list[int]:
    """Go through all of them.

    Returns:
        Each one's exit status, in order.
    """
    with tempfile.TemporaryDirectory(prefix="shardline-convoy-") as folder:
        turns = [Path(folder) / str(place) for place in range(len(sweeps))]
        going: list[subprocess.Popen[bytes]] = []
        try:
            for one, turn in zip(sweeps, turns, strict=True):
                going.append(_start(one, turn, len(sweeps)))
            while any(_at_work(*each) for each in zip(going, turns, strict=True)):
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
    words = {**{key: getattr(one, key) for key in one.__slots__}, "turn": str(turn)}
    # Each would start as many compilers as there are cores.
    share = max(2, len(os.sched_getaffinity(0)) * 2 // many)
    return subprocess.Popen(
        [sys.executable, "-m", "train.sweep", json.dumps(words)],
        env={"TORCHINDUCTOR_COMPILE_THREADS": str(share), **os.environ},
    )


def _at_work(process: "subprocess.Popen[bytes]", turn: Path) -> bool:
    """Whether a sweep is still getting ready; one that has ended is not."""
    return process.poll() is None and not turn.with_name(f"{turn.name}.ready").exists()


def main() -> None:
    """Exit 1 if any figure failed; each sweep says which."""
    found = convoy([Sweep(**json.loads(word)) for word in sys.argv[1:]])
    sys.exit(1 if any(found) else 0)


if __name__ == "__main__":
    main()
