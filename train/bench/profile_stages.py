"""Profile a few batches of each stage: heaviest operators, host and device time, what limits it.

    python -m train.bench.profile_stages '{"shards": "out", "res": 256, "stages": [...], …}'

Writes a JSON file and a trace for each stage. Profiling slows a stage down, so compare its times
only with each other; ``sweep`` measures how fast a stage is.
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
from train.bench.hardware import conditions
from train.bench.sweep import one_line, write_json
from train.optim.memory import release

NETWORK = ("model alone", "end to end")
"""Cases with a network."""

OPERATORS_KEPT = 10
"""Number of operators kept in each list."""

BUSY_SHARE = 0.9
"""A device that computes for at least this share of the time limits the stage."""

WAITING_SHARE = 0.02
"""A loader for which training waits longer than this share of the time limits it."""

_LOADER_BATCH_FACTOR = 4
"""Factor on the batches of a loader alone, as some were prefetched before the profile began."""

_WAITS = ("Synchronize", "cudaStreamWait", "cudaEventQuery")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """Stages to profile, and settings."""

    shards: str
    out: str
    label: str
    res: int | str
    batch: int
    """Batch size of the loader's stages."""

    network_batch: int
    """Batch size of the stages with a network."""

    stages: list[str]
    """Names of ``train.bench.cases``."""

    device: str
    threads: int
    skipped: int = 5
    """Batches before the first that is profiled."""

    batches: int = 6
    compile: str = "no"


def profile_stages(wanted: ProfileConfig) -> list[Path]:
    """Profile every stage; return the JSON files, in order.

    A stage that fails is written with its ``error``; the others go on.
    """
    torch.set_num_threads(wanted.threads)
    with contextlib.closing(FixtureCache()) as fixtures:
        return [_stage(name, wanted, fixtures) for name in wanted.stages]


def _stage(name: str, wanted: ProfileConfig, fixtures: FixtureCache) -> Path:
    size = wanted.network_batch if name in NETWORK else wanted.batch
    job = BenchConfig(
        shards=wanted.shards, res=wanted.res, batch_size=size, threads=wanted.threads,
        device=wanted.device, compile=wanted.compile,
    )  # fmt: skip
    found = {"label": wanted.label, "name": name, "job": dataclasses.asdict(job)}
    found |= conditions(wanted.device, "python -m train.bench.profile_stages")
    path = Path(wanted.out) / f"{wanted.label}-{wanted.res}-{name}".replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    trace = path.with_suffix(".trace.json.gz")
    try:
        found |= _profile(begin(name, job, fixtures), name, wanted, trace)
    except Exception as error:
        found["error"] = one_line(error)
    release()
    return write_json(path.with_suffix(".json"), found)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the total length of the union of some time spans.

    Args:
        spans: (begin, end), in any order.
    """
    total, reached = 0.0, float("-inf")
    for begin_, end in sorted(spans):
        total += max(0.0, end - max(begin_, reached))
        reached = max(reached, end)
    return total


def bound(found: Mapping[str, Any]) -> str:
    """Return a short text on what limits a stage.

    Args:
        found: ``wall_ms``, ``device_ms``, ``host_ms`` a batch, ``cores`` in use, ``threads``,
            ``data_wait`` (None where no network trains) and ``gpu``: whether there is one.
    """
    wall = found["wall_ms"]
    busy = found["device_ms"] / wall
    if found["gpu"] and busy >= BUSY_SHARE:
        # The host may be steps ahead: its waiting is no loss while the GPU computes.
        return f"the GPU: it computes {busy:.0%} of the time"
    if (found["data_wait"] or 0) > WAITING_SHARE:
        return f"the loader: training waits for it {found['data_wait']:.0%} of the time"
    if not found["gpu"]:
        return "the CPU: it does everything here"
    if found["cores"] >= BUSY_SHARE * found["threads"]:
        return f"the CPU: {found['cores']:.1f} cores busy, the GPU idle {1 - busy:.0%}"
    if found["host_ms"] >= BUSY_SHARE * wall:
        return f"the host: it launches the GPU's work too slowly, the GPU idle {1 - busy:.0%}"
    return f"neither GPU (idle {1 - busy:.0%}) nor CPU: copies, the JPEG engine, or waiting"


def _profile(work: RunningCase, name: str, wanted: ProfileConfig, trace: Path) -> dict[str, Any]:
    on_gpu = wanted.device.startswith("cuda")
    count = wanted.batches * (1 if name in NETWORK else _LOADER_BATCH_FACTOR)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with contextlib.closing(work.samples):
        _batches(work, wanted.skipped, on_gpu)
        work.waited.clear()
        with profile(activities=kinds) as seen:
            # Inside, so that the profile's own start and end are not counted.
            before, begun = time.process_time(), time.perf_counter()
            _batches(work, count, on_gpu)
            wall, cpu = time.perf_counter() - begun, time.process_time() - before
    seen.export_chrome_trace(str(trace))
    return _summary(seen, wall=wall, cpu=cpu, waited=work.waited, batches=count, wanted=wanted)


def _batches(work: RunningCase, count: int, on_gpu: bool) -> None:
    for _ in range(count):
        next(work.samples)
    if on_gpu:
        torch.cuda.synchronize()


def _summary(
    seen: Any,
    *,
    wall: float,
    cpu: float,
    waited: list[float],
    batches: int,
    wanted: ProfileConfig,
) -> dict[str, Any]:
    """Return the figures of a profile, whose own times are microseconds."""
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
    """Return the operators that take longest, and their share of the total."""
    whole = sum(spent for _, spent, _ in rows) or 1.0
    best = sorted(rows, key=lambda row: -row[1])[:OPERATORS_KEPT]
    return [
        {"name": name, "ms": spent / each, "share": spent / whole, "calls": calls}
        for name, spent, calls in best
    ]


def main() -> None:
    """Exit 1 if a stage failed, and say which."""
    failed = 0
    for path in profile_stages(ProfileConfig(**json.loads(sys.argv[1]))):
        found = json.loads(path.read_text())
        failed += "error" in found
        print(f"{path.stem}: {found.get('error') or found['bound']}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
