"""The cases that `train bench` compares: stages of the loader, the network, and other loaders.

Each case is a generator that yields, without end, the number of samples it has just finished.
``runner`` runs each case in its own process, so that threads, caches and peak memory are separate.
``sweep`` runs them in one process with shared fixtures.
"""

import importlib.util
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from shardify.loader.batch import Batch
from train.bench.fixtures import BenchConfig, FixtureCache


class RunningCase:
    """A case that has been started."""

    samples: Generator[int, None, None]
    """Yields the number of samples of each finished batch."""

    def __init__(self, fixtures: FixtureCache) -> None:
        self.fixtures = fixtures
        self.waited: list[float] = []
        """Seconds of waiting for data, one number a batch; only where a network trains."""


def _read(job: BenchConfig, _work: RunningCase) -> Generator[int, None, None]:
    """Copy the bytes of the three images out of the shards, in training order."""
    from shardify.loader.batch_sampler import BatchSampler
    from shardify.loader.shards import load_manifest, open_split

    folder, manifest = load_manifest(Path(job.shards), res=job.res)
    feed = BatchSampler(
        open_split(folder, manifest, job.split, cache=job.cache),
        backgrounds=len(manifest.backgrounds),
        batch_size=job.batch_size,
        rank=0,
        world_size=1,
        seed=0,
        kind=job.order or "permuted",
        drop_last=True,
        augmentation=None,
    )
    for epoch in itertools.count():
        for step in feed.steps(epoch, 0):
            for role in feed.shards.images:
                for payload in feed.shards.payloads(step.indexes, role):
                    payload.tobytes()
            yield len(step.indexes)


def _batches(job: BenchConfig, work: RunningCase, **options: Any) -> Generator[Batch, None, None]:
    """Yield the loader's batches, epoch after epoch, as in training."""
    loader = work.fixtures.loader(job, options)
    while True:
        yield from loader


def _decode(job: BenchConfig, work: RunningCase) -> Generator[int, None, None]:
    for _ in _batches(job, work, kernel="none", device=job.device):
        yield job.batch_size


def _augment(job: BenchConfig, work: RunningCase) -> Generator[int, None, None]:
    for batch in _batches(job, work):
        yield len(batch.bg)


def _to_device(job: BenchConfig, work: RunningCase) -> Generator[int, None, None]:
    for batch in _batches(job, work, device=job.device, channels_last=True):
        if batch.bg.is_cuda:
            torch.cuda.synchronize()
        yield len(batch.bg)


def _model(job: BenchConfig, work: RunningCase) -> Generator[int, None, None]:
    step = work.fixtures.step(job)
    batch = work.fixtures.batch(job)
    while True:
        step(batch)
        yield job.batch_size


def _train(job: BenchConfig, work: RunningCase) -> Generator[int, None, None]:
    step = work.fixtures.step(job)
    batches = _batches(job, work, device=job.device, channels_last=True)
    while True:
        begun = time.perf_counter()
        batch = next(batches)
        work.waited.append(time.perf_counter() - begun)
        step(batch)
        yield len(batch.bg)


def _other_loader(library: str) -> "Case":
    """Return the case of a function of ``other_loaders``."""

    def case(job: BenchConfig, _work: RunningCase) -> Generator[int, None, None]:
        from train.bench import other_loaders

        for batch in getattr(other_loaders, f"{library}_batches")(job):
            yield len(batch.bg)

    return case


Case = Callable[[BenchConfig, RunningCase], Generator[int, None, None]]

OWN: dict[str, Case] = {
    "read": _read,
    "decode": _decode,
    "augment": _augment,
    "to device": _to_device,
    "model alone": _model,
    "end to end": _train,
}
"""Each stage includes the stages before it, except the model alone."""

_LIBRARIES = {
    "webdataset + Pillow": "webdataset",
    "zip + Pillow": "zipfile",
    "LitData + Pillow": "litdata",
    "Streaming + Pillow": "streaming",
    "FFCV + Pillow": "ffcv",
}

PEERS = {name: _other_loader(library) for name, library in _LIBRARIES.items()}
"""Other loaders; they yield the same batches as ``augment``."""


def available(name: str) -> bool:
    """Whether a case's library is installed and can be imported."""
    library = _LIBRARIES.get(name)
    if library is None:
        return True
    if importlib.util.find_spec(library) is None:
        return False
    # Its own dependencies may be missing. Import it in another process, to keep this one clean.
    trial = subprocess.run([sys.executable, "-c", f"import {library}"], capture_output=True)
    return trial.returncode == 0


def begin(name: str, job: BenchConfig, fixtures: FixtureCache | None = None) -> RunningCase:
    """Start a case; it begins to work at the first ``next``.

    ``fixtures`` are shared with other cases, and closed by the caller; by default the case's own.
    """
    if job.device.startswith("cuda:"):
        # Events and synchronisation use the current GPU.
        torch.cuda.set_device(int(job.device.partition(":")[2]))
    work = RunningCase(fixtures or FixtureCache())
    work.samples = {**OWN, **PEERS}[name](job, work)
    return work
