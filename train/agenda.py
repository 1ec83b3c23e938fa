"""What the suite does, in which order, how long each step may take: the most valuable first.

Pure: says which processes to start, starts none.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["FULL", "ROOT", "TENTH", "Size", "Step", "steps"]

ROOT = Path(__file__).resolve().parents[1]
"""Where the packages and the tests lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything."""

    samples: int
    backgrounds: int
    res: tuple[int, int, int]
    """Small, middle, large: 64, 128 and 256 px in full."""

    batches: tuple[int, int, int]
    """Small, middle, large."""

    epochs: tuple[int, int]
    """Of the training run, at the small and at the large size."""

    windows: int
    seconds: float
    """A window."""

    compile: str
    """How `train.contenders` compiles the network."""

    train_compile: str
    """How `train run` does."""

    budget: float
    """Seconds for the whole."""

    threads: int = 0
    """For each step; 0: as many as there are cores."""

    patience: float = 1.0
    """What every step's limit is multiplied by."""


FULL = Size(
    samples=20_000, backgrounds=100, res=(64, 128, 256), batches=(16, 64, 256), epochs=(4, 2),
    windows=3, seconds=1.0, compile="yes", train_compile="no", budget=9 * 60,
)  # fmt: skip
TENTH = Size(
    samples=2_000, backgrounds=20, res=(16, 32, 48), batches=(2, 4, 8), epochs=(1, 1), windows=2,
    seconds=0.3, compile="trace", train_compile="no", budget=60 * 60, threads=1, patience=4.0,
)  # fmt: skip
"""For a CPU: the same steps, to see that they run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One process."""

    name: str
    command: list[str]
    limit: float
    """Seconds after which it is stopped."""

    needs: tuple[str, ...] = ()
    """Steps without which it makes no sense."""

    least: float = 5.0
    """Seconds that must be left for it to begin."""


def steps(size: Size, *, device: str, out: Path, scratch: Path) -> list[Step]:
    """What is done, the most valuable first.

    Args:
        size: How much.
        device: Where networks compute.
        out: Folder of the results.
        scratch: Folder for data and weights, which are not kept.
    """
    python = [sys.executable, "-m"]
    small, middle, large = size.res
    few, some, many = size.batches
    threads = size.threads or len(os.sched_getaffinity(0))
    zipped, keep, raw = (str(scratch / name) for name in ("data.zip", "keep", "raw"))

    def measure(
        name: str, data: str, res: int, batches: list[int], contenders: list[str], limit: float,
        **more: Any,
    ) -> Step:  # fmt: skip
        shards = {"keep": keep, "raw": raw}[data]
        wanted = {
            "shards": shards, "out": str(out / "figures"), "label": data, "res": res,
            "batches": list(dict.fromkeys(batches)), "contenders": contenders,
            "device": device, "threads": threads, "windows": size.windows,
            "seconds": size.seconds, **more,
        }  # fmt: skip
        return Step(
            name=name, command=[*python, "train.sweep", json.dumps(wanted)], limit=limit,
            needs=(f"build {data}",), least=15,
        )  # fmt: skip

    all_three = ["to device", "model alone", "end to end"]
    network = ["model alone", "end to end"]
    both = [str(size.samples), str(size.backgrounds)]
    training = [
        "--res", f"{small},{large}", "--epochs", ",".join(map(str, size.epochs)),
        "--batch", str(some), "--device", device, "--threads", str(threads), "--keep", "1",
        "--torch-threads", str(size.threads),
        "--compile", size.train_compile, "--no-tensorboard", "--log-steps", "50",
    ]  # fmt: skip
    wanted = [
        Step(
            name="data", limit=100,
            command=[*python, "shardify", "synth", zipped, "--samples", both[0],
                     "--backgrounds", both[1]],
        ),
        Step(
            name="build keep", limit=60, needs=("data",),
            command=[*python, "shardify", "build", zipped, keep, "--val", "0.05"],
        ),
        Step(
            name="tests", limit=150,
            command=[*python, "pytest", "-c", str(ROOT / "tests" / "gpu.ini"), "-m", "gpu",
                     f"--junitxml={out / 'tests.xml'}", *_gpu_tests()],
        ),
        measure(f"{large} px", "keep", large, [some, many, few], all_three, 90),
        measure(f"{large} px, compiled", "keep", large, [some], network, 120, compile=size.compile),
        Step(
            name="training", limit=120, needs=("build keep",), least=30,
            command=[*python, "train", "run", "--shards", keep, "--out", str(scratch / "run"),
                     *training],
        ),
        Step(
            name="build raw", limit=90, needs=("data",), least=20,
            command=[*python, "shardify", "build", zipped, raw, "--val", "0.05", "--codec", "raw",
                     "--res", str(small), "--res", str(large)],
        ),
        measure(f"{large} px, decoder engine", "keep", large, [some], ["decode"], 60,
                loads=[0.0, 0.65, 0.9, 1.0]),
        measure(f"{small} px, raw", "raw", small, [some, many, few], all_three, 90),
        measure(f"{large} px, raw", "raw", large, [some, many], ["to device", "end to end"], 60),
        measure(f"{small} px", "keep", small, [some, many, few], ["to device", "end to end"], 60),
        measure(f"{middle} px", "keep", middle, [some, many, few], all_three, 90),
        measure(f"{small} px, compiled", "raw", small, [many], network, 120, compile=size.compile),
        measure(f"{large} px, compiled, large batch", "keep", large, [many], network, 120,
                compile=size.compile),
        measure(f"{middle} px, compiled", "keep", middle, [some], network, 120,
                compile=size.compile),
    ]  # fmt: skip
    return [replace(one, limit=one.limit * size.patience) for one in wanted]


def _gpu_tests() -> list[str]:
    found = sorted(map(str, (ROOT / "tests").glob("test_gpu_*.py")))
    return found or [str(ROOT / "tests")]
