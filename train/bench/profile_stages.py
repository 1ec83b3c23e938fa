"""What bounds a stage: a profile of a few batches, its heaviest operators, host against device.

    python -m train.bench.profile_stages '{"shards": "out", "res": 256, "stages": [...], …}'

Leaves a JSON file and a trace for each stage. A profile slows what it looks at, so its times are
for comparison with each other; how fast a stage is, ``sweep`` says.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch lists it nowhere
from torch.profiler import ProfilerActivity, profile

from train.bench.cases import RunningCase, begin
from train.bench.fixtures import BenchConfig, FixtureCache
from train.bench.sweep import about, write_json
from train.optim.memory import release

__all__ = ["ProfileConfig", "bound", "covered", "dissect"]

NETWORK = ("model alone", "end to end")
"""Contenders that train."""

SHOWN = 10
"""Operators kept of each list."""

BUSY = 0.9
"""A device that computes for this share of the time is what the time goes into."""

WAITING = 0.02
"""A loader that training waits for longer than this share of the time is."""

_AHEAD = 4
"""Times as many batches of a loader alone: some were made ahead while the profile began."""

_WAITS = ("Synchronize", "cudaStreamWait", "cudaEventQuery")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """Which stages to look at."""

    shards: str
    out: str
    """Folder for what is found."""

    label: str
    res: int
    batch: int
    """Of the loader's stages."""

    network_batch: int
    """Of those with a network."""

    stages: list[str]
    """Names of ``train.bench.cases``."""

    device: str
    threads: int
    skipped: int = 5
    """Batches before the first that is looked at."""

    batches: int = 6
    compile: str = "no"


def dissect(wanted: ProfileConfig) -> list[Path]:
    """Look at every stage; the files, in order.

    A stage that fails is written with its ``error``; the others go on.
    """
    torch.set_num_threads(wanted.threads)
    shelf = FixtureCache()
    with contextlib.closing(shelf):
        return [_stage(name, wanted, shelf) for name in wanted.stages]


def _stage(name: str, wanted: ProfileConfig, shelf: FixtureCache) -> Path:
    size = wanted.network_batch if name in NETWORK else wanted.batch
    job = BenchConfig(
        shards=wanted.shards, res=wanted.res, batch_size=size, threads=wanted.threads,
        device=wanted.device, compile=wanted.compile,
    )  # fmt: skip
    found = {"label": wanted.label, "name": name, "job": dataclasses.asdict(job)}
    found |= about(wanted.device, "dissect")
    path = Path(wanted.out) / f"{wanted.label}-{wanted.res}-{name}".replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found |= _look(begin(name, job, shelf), name, wanted, path.with_suffix(".trace.json.gz"))
    except Exception as error:
        found["error"] = " ".join(str(error).split()) or type(error).__name__
    release()
    return write_json(path.with_suffix(".json"), found)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of some spans of time lasted, overlaps counted once.

    Args:
        spans: (begin, end), in any order.
    """
    total, reached = 0.0, float("-inf")
    for begin_, end in sorted(spans):
        total += max(0.0, end - max(begin_, reached))
        reached = max(reached, end)
    return total


def bound(found: Mapping[str, Any]) -> str:
    """What holds a stage up, in a few words.

    Args:
        found: ``wall_ms``, ``device_ms``, ``host_ms`` a batch, ``cores`` in use, ``threads``,
            ``data_wait`` (None where no network trains) and ``gpu``: whether there is one.
    """
    wall = found["wall_ms"]
    busy = found["device_ms"] / wall
    if found["gpu"] and busy >= BUSY:
        # The host may be steps ahead: its waiting is no loss while the GPU computes.
        return f"the GPU: it computes {busy:.0%} of the time"
    if (found["data_wait"] or 0) > WAITING:
        return f"the loader: training waits for it {found['data_wait']:.0%} of the time"
    if not found["gpu"]:
        return "the CPU: it does everything here"
    if found["cores"] >= BUSY * found["threads"]:
        return f"the CPU: {found['cores']:.1f} cores at work, the GPU idle {1 - busy:.0%}"
    if found["host_ms"] >= BUSY * wall:
        return f"the host: it starts the GPU's work too slowly, the GPU idle {1 - busy:.0%}"
    return f"neither GPU (idle {1 - busy:.0%}) nor CPU: copies, the JPEG engine, or waiting"


def _look(work: RunningCase, name: str, wanted: ProfileConfig, trace: Path) -> dict[str, Any]:
    on_gpu = wanted.device.startswith("cuda")
    count = wanted.batches * (1 if name in NETWORK else _AHEAD)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with contextlib.closing(work.samples):  # type: ignore[type-var]
        _batches(work, wanted.skipped, on_gpu)
        work.waited.clear()
        with profile(activities=kinds) as seen:
            # Inside, so that the profile's own start and end are not counted.
            before, begun = time.process_time(), time.perf_counter()
            _batches(work, count, on_gpu)
            wall, cpu = time.perf_counter() - begun, time.process_time() - before
    seen.export_chrome_trace(str(trace))
    return _found(seen, wall=wall, cpu=cpu, waited=work.waited, batches=count, wanted=wanted)


def _batches(work: RunningCase, count: int, on_gpu: bool) -> None:
    for _ in range(count):
        next(work.samples)
    if on_gpu:
        torch.cuda.synchronize()


def _found(
    seen: Any,
    *,
    wall: float,
    cpu: float,
    waited: list[float],
    batches: int,
    wanted: ProfileConfig,
) -> dict[str, Any]:
    """What a profile says. Its own times are microseconds."""
    on_device = [
        (one.time_range.start, one.time_range.end)
        for one in seen.events()
        if one.device_type != DeviceType.CPU and not one.is_user_annotation
    ]
    # An annotation ("Optimizer.step#…") spans the operators that are counted by themselves.
    rows = [one for one in seen.key_averages() if not one.is_user_annotation]
    host = [
        (one.key, one.self_cpu_time_total, one.count)
        for one in rows
        if one.self_cpu_time_total > 0 and not any(word in one.key for word in _WAITS)
    ]
    device = [
        (one.key, one.self_device_time_total, one.count)
        for one in rows
        if one.device_type != DeviceType.CPU and one.self_device_time_total > 0
    ]
    each = 1e3 * batches
    found: dict[str, Any] = {
        "batches": batches,
        "wall_ms": wall * 1e3 / batches,
        "device_ms": covered(on_device) / each,
        "host_ms": sum(spent for _, spent, _ in host) / each,
        "cores": cpu / wall,
        "threads": wanted.threads,
        "data_wait": sum(waited) / wall if waited else None,
        "gpu": wanted.device.startswith("cuda"),
        "device_operators": _heaviest(device, each),
        "host_operators": _heaviest(host, each),
    }
    found["bound"] = bound(found)
    return found


def _heaviest(rows: list[tuple[str, float, int]], each: float) -> list[dict[str, Any]]:
    """The operators that take longest, and their share of all of their kind."""
    whole = sum(spent for _, spent, _ in rows) or 1.0
    best = sorted(rows, key=lambda row: -row[1])[:SHOWN]
    return [
        {"name": name, "ms": spent / each, "share": spent / whole, "calls": calls}
        for name, spent, calls in best
    ]


def main() -> None:
    """Exit 1 if a stage failed, and say which."""
    failed = 0
    for path in dissect(ProfileConfig(**json.loads(sys.argv[1]))):
        found = json.loads(path.read_text())
        failed += "error" in found
        print(f"{path.stem}: {found.get('error') or found['bound']}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
