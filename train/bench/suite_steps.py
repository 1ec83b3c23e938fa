"""Steps of `train bench --suite`: their commands, order and time limits, most valuable first.

Returns the commands; ``suite`` runs them.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.bench.hardware import visible_gpu

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages and the tests."""

LOADER = ["to device"]
NETWORK = ["model alone", "end to end"]
ALL = [*LOADER, *NETWORK]


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteSize:
    """Sizes and counts of a suite."""

    samples: int
    backgrounds: int
    res: tuple[int, int, int]
    """Small, middle, large."""

    batches: tuple[int, int, int]
    """Small, middle, large."""

    network: tuple[int, int, int] | None
    """The one batch that networks take at each resolution; None: all, as the loader's."""

    trained: int
    """Samples, made apart, that the training run is of."""

    train_batch: int
    epochs: tuple[int, int]
    """Of the training run, at the small and at the large size."""

    max_steps: int
    """Of the training run; 0: to its end."""

    windows: int
    seconds: float
    """A window."""

    profiled: int
    """Batches that the profiler looks at, after as many."""

    compile: tuple[str, str]
    """How ``train.bench.cases`` compiles the network: without and with CUDA graphs."""

    budget: float
    """Seconds for the whole."""

    threads: int = 0
    """For each step; 0: as many as there are cores."""

    patience: float = 1.0
    """Factor on every step's time limit."""


FULL = SuiteSize(
    samples=20_000, backgrounds=100, res=(64, 128, 256), batches=(16, 64, 256), network=None,
    trained=6_000, train_batch=64, epochs=(2, 1), max_steps=0, windows=3, seconds=0.4, profiled=6,
    compile=("yes", "graphs"), budget=9 * 60,
)  # fmt: skip
TENTH = SuiteSize(
    samples=2_000, backgrounds=20, res=(64, 128, 256), batches=(16, 64, 256), network=(2, 1, 1),
    trained=20, train_batch=2, epochs=(1, 1), max_steps=9, windows=1, seconds=0.05, profiled=1,
    compile=("trace", "trace"), budget=60 * 60, threads=1, patience=15.0,
)  # fmt: skip
"""For a CPU: the same steps on a tenth of the samples, to see that they run. A network takes 1.4 s
for a sample of 256 pixels there, so its batches are small and its training short. One thread, since
others may be at work there, and patient for the same reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One process."""

    name: str
    command: list[str]
    limit: float | None
    """Seconds after which it is stopped; None: it may take what others have left over."""

    needs: tuple[str, ...] = ()
    """Steps without which it makes no sense."""

    least: float = 5.0
    """Seconds that must be left for it to begin."""


def steps(size: SuiteSize, *, device: str, out: Path, scratch: Path) -> list[Step]:
    """Return the steps, the most valuable first."""
    found = _StepList(size, device, out, scratch).steps()
    return [
        one if one.limit is None else replace(one, limit=one.limit * size.patience) for one in found
    ]


class _StepList:
    """The steps of one size on one device."""

    def __init__(self, size: SuiteSize, device: str, out: Path, scratch: Path) -> None:
        self.size, self.device, self.out, self.scratch = size, device, out, scratch
        self.threads = size.threads or len(os.sched_getaffinity(0))
        self._asked: set[str] = set()

    def steps(self) -> list[Step]:
        """All of them, with the limits of a GPU and 16 cores: docs/gpu.md has the sums."""
        small, middle, large = self.size.res
        few, some, many = self.size.batches
        plain, graphs = self.size.compile
        return [
            self._data("data", self.size.samples, 14),
            self._build("keep", "data", 10),
            self._tests(100),
            self._measure(
                f"{large} px", 60, *self._grid("keep", large, some, many, few),
            ),
            self._build("raw", "data", 22, "--codec", "raw", "--res", str(small),
                        "--res", str(middle), "--res", str(large)),
            self._measure(
                "compiled", 120,
                self._network("keep", large, some, compile=plain),
                self._network("raw", small, some, compile=graphs),
                *(self._network(data, res, batch, compile=plain)
                  for data, res in (("keep", large), ("raw", small), ("keep", middle))
                  for batch in (some, many, few) if (res, batch) != (large, some)),
                group=True,
            ),
            *self._training(small, large, 68),
            self._profile(large, some, 38),
            self._measure(
                "raw", 46, *self._grid("raw", small, some, many, few),
                *self._fed("raw", large, some),
                self._sweep("raw", middle, [some], LOADER),
            ),
            self._measure(
                "decoder engine", 32,
                self._sweep("keep", large, [some], ["decode"], loads=[0.0, 0.65, 0.9, 1.0]),
            ),
            self._measure(
                f"{small} and {middle} px", None,
                *self._fed("keep", small, some),
                *self._grid("keep", middle, some, many, few),
            ),
        ]  # fmt: skip

    def _python(self, *words: str) -> list[str]:
        return [sys.executable, "-m", *words]

    def _data(self, name: str, samples: int, limit: float) -> Step:
        backgrounds = min(self.size.backgrounds, max(2, samples // 5))
        command = self._python(
            "shardify", "synth", str(self.scratch / f"{name}.zip"), "--samples", str(samples),
            "--backgrounds", str(backgrounds),
        )  # fmt: skip
        return Step(name=name, limit=limit, command=command)

    def _build(self, name: str, source: str, limit: float, *options: str) -> Step:
        command = self._python(
            "shardify", "build", str(self.scratch / f"{source}.zip"), str(self.scratch / name),
            "--val", "0.05", *options,
        )  # fmt: skip
        return Step(name=f"build {name}", limit=limit, needs=(source,), command=command)

    def _tests(self, limit: float) -> Step:
        found = sorted(map(str, (ROOT / "tests" / "gpu").glob("test_*.py")))
        index = self.device.partition(":")[2]
        # Tests know one GPU, the first that they may see.
        seen = ["env", f"CUDA_VISIBLE_DEVICES={visible_gpu(int(index))}"] if index else []
        command = seen + self._python(
            "pytest", "-c", str(ROOT / "tests" / "gpu.ini"), "-m", "gpu",
            f"--junitxml={self.out / 'tests.xml'}", *(found or [str(ROOT / "tests")]),
        )  # fmt: skip
        return Step(name="tests", limit=limit, command=command)

    def _training(self, small: int, large: int, limit: float) -> Iterator[Step]:
        size, shards = self.size, "trained"
        yield self._data("few", size.trained, 10)
        yield self._build(shards, "few", 10)
        command = self._python(
            "train", "run", "--shards", str(self.scratch / shards),
            "--out", str(self.out / "run"), "--res", f"{small},{large}",
            "--epochs", ",".join(map(str, size.epochs)), "--batch", str(size.train_batch),
            "--max-steps", str(size.max_steps), "--device", self.device,
            "--threads", str(self.threads), "--torch-threads", str(size.threads),
            "--keep", "1", "--no-tensorboard", "--log-steps", "50",
        )  # fmt: skip
        yield Step(
            name="training", limit=limit, needs=(f"build {shards}",), least=25, command=command
        )

    def _sweep(
        self, data: str, res: int, batches: list[int], contenders: list[str], **more: Any
    ) -> dict[str, Any]:
        """One call of ``train.bench.sweep``."""
        return {
            "shards": str(self.scratch / data), "out": str(self.out / "figures"), "label": data,
            "res": res, "batches": batches, "contenders": contenders, "device": self.device,
            "threads": self.threads, "windows": self.size.windows, "seconds": self.size.seconds,
            **more,
        }  # fmt: skip

    def _network(self, data: str, res: int, batch: int, **more: Any) -> dict[str, Any]:
        return self._sweep(data, res, [self._batch(res, batch)], NETWORK, **more)

    def _grid(self, data: str, res: int, *batches: int) -> Iterator[dict[str, Any]]:
        """Loader, network and both, at every batch size."""
        if self.size.network is None:
            yield self._sweep(data, res, list(batches), ALL)
        else:
            yield self._sweep(data, res, list(batches), LOADER)
            yield self._network(data, res, batches[0])

    def _fed(self, data: str, res: int, batch: int) -> Iterator[dict[str, Any]]:
        """Loader and training, where the network alone is measured elsewhere."""
        yield self._sweep(data, res, [batch], LOADER)
        yield self._sweep(data, res, [self._batch(res, batch)], ["end to end"])

    def _batch(self, res: int, batch: int) -> int:
        """Return the network's batch size where the loader's is ``batch``."""
        if self.size.network is None:
            return batch
        return self.size.network[self.size.res.index(res)]

    def _measure(
        self, name: str, limit: float | None, *sweeps: dict[str, Any], group: bool = False
    ) -> Step:
        # A network's batches may be one at a size: the same sweep twice would say nothing.
        words = [
            word
            for word in dict.fromkeys(json.dumps(one) for one in sweeps)
            if word not in self._asked
        ]
        self._asked |= set(words)
        data = dict.fromkeys(one["label"] for one in sweeps)
        return Step(
            name=name, limit=limit, needs=tuple(f"build {one}" for one in data), least=15,
            command=self._python("train.bench.sweep", *(["--group"] if group else []), *words),
        )  # fmt: skip

    def _profile(self, res: int, batch: int, limit: float) -> Step:
        wanted = {
            "shards": str(self.scratch / "keep"), "out": str(self.out / "profiles"),
            "label": "keep", "res": res, "batch": batch, "network_batch": self._batch(res, batch),
            "stages": ALL, "device": self.device, "threads": self.threads,
            "skipped": self.size.profiled, "batches": self.size.profiled,
        }  # fmt: skip
        return Step(
            name="what bounds", limit=limit, needs=("build keep",), least=15,
            command=self._python("train.bench.profile_stages", json.dumps(wanted)),
        )  # fmt: skip
