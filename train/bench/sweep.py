"""Speeds of one data set at several batch sizes, in one process: a JSON file a figure, as it comes.

    python -m train.bench.sweep '{"shards": "out", "res": 256, "batches": [64], …}' …
    python -m train.bench.sweep --group '{"shards": "out", "res": 256, "compile": "yes", …}' …

`train bench` compares cases with care, in turns, each in a process of its own; this goes through
many settings quickly, for machines whose time is short: cases of one setting share a loader and a
network.

``--group`` is for compiled networks: each sweep is a process. They prepare in parallel, as many at
once as cores and memory allow. Then each is measured in turn, in the order given, while the others
are idle. The search for the fastest algorithms runs in parallel too, so it is less reliable than
alone.
"""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from shardify.storage.atomic_write import write_text
from shardify.storage.free_memory import available_memory
from train.bench.cases import RunningCase, begin
from train.bench.fixtures import BenchConfig, FixtureCache
from train.bench.hardware import GpuMonitor, conditions, gpu_of
from train.bench.timing import summary, window
from train.optim.memory import release

_MEMORY_PER_SWEEP = 3e9
"""Of the host, that one of a group may need to get ready: torch, CUDA, compilers. Bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What to go through: every case at every batch size, for every share of the engine."""

    shards: str
    out: str
    label: str
    """Begins the name of each figure: which data, in a word or two."""

    res: int | str
    batches: list[int]
    contenders: list[str]
    """Names of ``train.bench.cases``."""

    device: str
    threads: int
    windows: int
    seconds: float
    compile: str = "no"
    loads: list[float] = dataclasses.field(default_factory=lambda: [1.0])
    """Shares of the JPEGs for the GPU's decoding engine."""


def sweep(wanted: Sweep, await_turn: Callable[[], object] | None = None) -> bool:
    """Measure everything, and write and print each figure.

    A figure that fails is written with its ``error`` in place of its rates; the others go on.
    ``await_turn`` is called when everything is ready to be measured.

    Returns:
        Whether no figure failed.
    """
    torch.set_num_threads(wanted.threads)
    good = True
    with contextlib.closing(FixtureCache()) as fixtures:
        for batch, load in itertools.product(wanted.batches, wanted.loads):
            job = BenchConfig(
                shards=wanted.shards, res=wanted.res, batch_size=batch, threads=wanted.threads,
                device=wanted.device, compile=wanted.compile, hw_decoder_load=load,
            )  # fmt: skip
            if await_turn is not None:
                _warm_up(job, wanted, fixtures)
                await_turn()
            for name in wanted.contenders:
                figure: dict[str, Any] = {
                    "label": wanted.label, "name": name, "job": dataclasses.asdict(job),
                    **conditions(wanted.device, "python -m train.bench.sweep"),
                }  # fmt: skip
                try:
                    figure |= _measure(begin(name, job, fixtures), wanted)
                    said = f"{figure['samples_per_s']['median']:,.1f} samples/s"
                except Exception as error:
                    figure["error"] = said = one_line(error)
                    good = False
                path = write_json(Path(wanted.out) / _file_name(figure), figure)
                print(f"{path.stem}: {said}", flush=True)
                release()
    return good


def measure_group(sweeps: Sequence[Sweep]) -> list[int]:
    """Prepare all sweeps in parallel, then measure them in turn; return each one's exit status."""
    cores = len(os.sched_getaffinity(0))
    most = max(1, min(cores * 5 // 8, int(available_memory() / _MEMORY_PER_SWEEP)))
    # Each would start as many compilers as there are cores.
    share = max(2, cores * 2 // min(most, len(sweeps)))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(share))
    context = multiprocessing.get_context("spawn")
    going = []
    preparing: set[Any] = set()  # A pipe can be read once its sweep is ready, or has ended.
    try:
        for one in sweeps:
            if len(preparing) >= most:
                preparing.difference_update(wait(preparing))
            pipe, theirs = context.Pipe()
            process = context.Process(target=_measure_in_turn, args=(one, theirs))
            process.start()
            theirs.close()
            going.append((process, pipe))
            preparing.add(pipe)
        while preparing:
            preparing.difference_update(wait(preparing))
        for process, pipe in going:
            with contextlib.suppress(OSError):  # It has ended.
                pipe.send("your turn")
            process.join()
        return [process.exitcode or 0 for process, _ in going]
    finally:
        for process, _ in going:
            process.kill()
            process.join()


def _measure_in_turn(wanted: Sweep, pipe: Connection) -> None:
    def await_turn() -> None:
        pipe.send("ready")
        pipe.recv()  # EOFError: the process that gives the turns is gone.

    good = sweep(wanted, await_turn)
    # All is written, and others wait for their turn: compilers and libraries end slowly.
    os._exit(0 if good else 1)


def _warm_up(job: BenchConfig, wanted: Sweep, fixtures: FixtureCache) -> None:
    """Run a few batches of each case: the first compiles, or looks for algorithms.

    What fails is tried again when it is measured: others may have filled the GPU's memory.
    """
    for name in wanted.contenders:
        with contextlib.suppress(Exception):
            work = begin(name, job, fixtures)
            with contextlib.closing(work.samples):
                for _ in range(3):
                    next(work.samples)
                if wanted.device.startswith("cuda"):
                    torch.cuda.synchronize()
        release()


def _measure(work: RunningCase, wanted: Sweep) -> dict[str, Any]:
    on_gpu = wanted.device.startswith("cuda")
    with contextlib.closing(work.samples):
        next(work.samples)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with GpuMonitor(gpu_of(wanted.device)) as monitor:
            found = [window(work, wanted.seconds, idle=not k) for k in range(wanted.windows)]
    rates, cpu_ms, waited = summary(found)
    return {
        "samples_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "windows": rates,
        "cpu_ms_a_sample": cpu_ms,
        "data_wait": waited,
        "gpu_mean": monitor.means(),
        "gpu_peak": monitor.peaks(),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }


def one_line(error: Exception) -> str:
    """Return an error's message, or its type, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def write_json(path: Path, found: dict[str, Any]) -> Path:
    """Write a JSON file whole or not at all; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")
    return path


def _file_name(figure: dict[str, Any]) -> str:
    job = figure["job"]
    words = [figure["label"], job["res"], f"b{job['batch_size']}", figure["name"]]
    words += [f"compile-{job['compile']}"] if job["compile"] != "no" else []
    words += [f"engine-{job['hw_decoder_load']:g}"] if figure["name"] == "decode" else []
    return "-".join(map(str, words)).replace(" ", "-") + ".json"


def main() -> None:
    """Run the sweeps of the command line. Exit 1 if any figure failed."""
    group = sys.argv[1] == "--group"
    sweeps = [Sweep(**json.loads(word)) for word in sys.argv[1 + group :]]
    failed = measure_group(sweeps) if group else [not sweep(one) for one in sweeps]
    sys.exit(any(failed))


if __name__ == "__main__":
    main()
