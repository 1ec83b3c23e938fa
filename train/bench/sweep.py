"""Speeds of one data set at several batch sizes, in one process: a JSON file a figure, as it comes.

    python -m train.bench.sweep '{"shards": "out", "res": 256, "batches": [64], …}' …

`train bench` compares contenders with care, in turns, each in a process of its own; this goes
through many settings quickly, for machines whose time is short: contenders of one setting share a
loader and a network. It decides on no setting.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardify.storage.atomic_write import write_text
from train.bench.cases import RunningCase, begin
from train.bench.fixtures import BenchConfig, FixtureCache
from train.bench.hardware import GpuMonitor, driver_version, gpu_of, hardware, versions
from train.bench.timing import window
from train.optim.memory import release


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What to go through: every contender at every batch size, for every share of the engine."""

    shards: str
    out: str
    """Folder for the figures."""

    label: str
    """Begins the name of each figure: which data, in a word or two."""

    res: int
    batches: list[int]
    contenders: list[str]
    device: str
    threads: int
    windows: int
    seconds: float
    compile: str = "no"
    loads: list[float] = dataclasses.field(default_factory=lambda: [1.0])
    """Shares of the JPEGs for the GPU's decoding engine."""

    turn: str = ""
    """A file: get everything ready, leave the file of ``ready``, and measure once it is there."""


def sweep(wanted: Sweep) -> list[Path]:
    """Measure everything; the files of the figures, in order.

    A figure that fails is written with its ``error`` in place of its rates; the others go on.
    """
    torch.set_num_threads(wanted.threads)
    files = []
    shelf = FixtureCache()
    with contextlib.closing(shelf):
        for batch, load in itertools.product(wanted.batches, wanted.loads):
            job = BenchConfig(
                shards=wanted.shards, res=wanted.res, batch_size=batch, threads=wanted.threads,
                device=wanted.device, compile=wanted.compile, hw_decoder_load=load,
            )  # fmt: skip
            if wanted.turn:
                _wait_for_turn(job, wanted, shelf)
            for name in wanted.contenders:
                figure = {"label": wanted.label, "name": name, "job": dataclasses.asdict(job)}
                figure |= about(wanted.device, "sweep")
                try:
                    figure |= _measure(begin(name, job, shelf), wanted)
                except Exception as error:
                    figure["error"] = " ".join(str(error).split()) or type(error).__name__
                files.append(_write(Path(wanted.out), figure))
                release()
    return files


def ready(turn: str | Path) -> Path:
    """The file that says of a sweep with a ``turn`` that it waits for it."""
    return Path(f"{turn}.ready")


def _wait_for_turn(job: BenchConfig, wanted: Sweep, shelf: FixtureCache) -> None:
    """Start what is slow to start, then stand still until it is one's turn.

    What fails here is tried again then, and told of: others may have filled the GPU's memory.
    """
    for name in wanted.contenders:
        with contextlib.suppress(Exception):
            _warm(begin(name, job, shelf), wanted)
        release()
    ready(wanted.turn).touch()
    while not Path(wanted.turn).exists():
        if os.getppid() == 1:
            sys.exit("sweep: whoever gives the turns is gone")
        time.sleep(0.02)


def _warm(work: RunningCase, wanted: Sweep) -> None:
    """A few batches: the first compiles, or looks for algorithms."""
    with contextlib.closing(work.samples):  # type: ignore[type-var]
        for _ in range(3):
            next(work.samples)
        if wanted.device.startswith("cuda"):
            torch.cuda.synchronize()


def _measure(work: RunningCase, wanted: Sweep) -> dict[str, Any]:
    on_gpu = wanted.device.startswith("cuda")
    with contextlib.closing(work.samples):  # type: ignore[type-var]
        next(work.samples)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with GpuMonitor(gpu_of(wanted.device)) as monitor:
            found = [window(work, wanted.seconds, idle=not k) for k in range(wanted.windows)]
    rates = [one["samples"] / one["wall"] for one in found]
    samples, wall = sum(one["samples"] for one in found), sum(one["wall"] for one in found)
    figure: dict[str, Any] = {
        "samples_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "windows": rates,
        "cpu_ms_a_sample": sum(one["cpu"] for one in found) / samples * 1e3,
        "data_wait": sum(one["waited"] for one in found) / wall if "waited" in found[0] else None,
        "gpu_mean": monitor.means(),
        "gpu_peak": monitor.peaks(),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    return figure


def about(device: str, module: str) -> dict[str, Any]:
    """When, where and by which command of this package something was measured."""
    machine = hardware(device)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(
            [f"python -m train.bench.{module}", *(repr(word) for word in sys.argv[1:])]
        ),
        "device": machine["gpu"] or device,
        "driver": driver_version(),
        "hardware": machine,
        "versions": versions(),
    }


def write_json(path: Path, found: dict[str, Any]) -> Path:
    """Write a JSON file whole or not at all; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")
    return path


def _write(out: Path, figure: dict[str, Any]) -> Path:
    """One figure, named by what it is of."""
    job = figure["job"]
    words = [figure["label"], job["res"], f"b{job['batch_size']}", figure["name"]]
    words += [f"compile-{job['compile']}"] if job["compile"] != "no" else []
    words += [f"engine-{job['hw_decoder_load']:g}"] if figure["name"] == "decode" else []
    return write_json(out / ("-".join(map(str, words)).replace(" ", "-") + ".json"), figure)


def main() -> None:
    """One sweep after the other. Exit 1 if any figure failed, and say which."""
    failed = 0
    sweeps = [Sweep(**json.loads(word)) for word in sys.argv[1:]]
    for wanted in sweeps:
        for path in sweep(wanted):
            figure = json.loads(path.read_text())
            failed += "error" in figure
            said = figure.get("error") or f"{figure['samples_per_s']['median']:,.1f} samples/s"
            print(f"{path.stem}: {said}", flush=True)
    if any(wanted.turn for wanted in sweeps):
        # All is written, and others wait for their turn: compilers and libraries end slowly.
        os._exit(1 if failed else 0)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
