"""The cases that `train bench` compares: stages of the loader, the network, and other loaders.

Each case is a generator that yields, without end, the number of samples it has just finished.
``runner`` runs each case in its own process, so that threads, caches and peak memory are separate.
``sweep`` runs them in one process with shared fixtures.
"""

import contextlib
import importlib.util
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shardify.loader.batch import Batch
from train.bench.fixtures import BenchConfig, FixtureCache


@dataclass(kw_only=True, slots=True)
class RunningCase:
    """A case that has been started."""

    samples: Iterator[int]
    """Yields the number of samples of each finished batch."""

    waited: list[float]
    """Seconds of waiting for data, one number a batch; only where a network trains."""

    shelf: FixtureCache = field(default_factory=FixtureCache)


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
    loader = work.shelf.loader(job, options)
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
    step = work.shelf.step(job)
    batch = work.shelf.batch(job)
    while True:
        step(batch)
        yield job.batch_size


def _train(job: BenchConfig, work: RunningCase) -> Generator[int, None, None]:
    step = work.shelf.step(job)
    batches = _batches(job, work, device=job.device, channels_last=True)
    while True:
        begun = time.perf_counter()
        batch = next(batches)
        work.waited.append(time.perf_counter() - begun)
        step(batch)
        yield len(batch.bg)


def _webdataset(job: BenchConfig, _work: RunningCase) -> Generator[int, None, None]:
    from train.bench.other_loaders import webdataset_batches

    for batch in webdataset_batches(
        Path(job.shards),
        split=job.split,
        res=job.res,
        batch_size=job.batch_size,
        workers=job.threads,
        repeat=True,
    ):
        yield len(batch.bg)


def _zip(job: BenchConfig, _work: RunningCase) -> Generator[int, None, None]:
    from train.bench.other_loaders import write_zip, zip_batches

    path = Path(job.scratch) / f"{job.split}.zip"
    if not path.exists():
        write_zip(Path(job.shards), job.split, path)
    for batch in zip_batches(
        path,
        Path(job.shards),
        res=job.res,
        batch_size=job.batch_size,
        workers=job.threads,
        repeat=True,
    ):
        yield len(batch.bg)


def _copy_reader(name: str) -> Callable[[BenchConfig, RunningCase], Generator[int, None, None]]:
    """Return a case that reads a copy in a library's own format."""

    def contender(job: BenchConfig, _work: RunningCase) -> Generator[int, None, None]:
        from train.bench import other_loaders

        for batch in getattr(other_loaders, f"{name}_batches")(
            Path(job.scratch) / f"{name}-{job.split}",
            Path(job.shards),
            split=job.split,
            res=job.res,
            batch_size=job.batch_size,
            workers=job.threads,
        ):
            yield len(batch.bg)

    return contender


Contender = Callable[[BenchConfig, RunningCase], Generator[int, None, None]]

OWN: dict[str, Contender] = {
    "read": _read,
    "decode": _decode,
    "augment": _augment,
    "to device": _to_device,
    "model alone": _model,
    "end to end": _train,
}
"""Each stage includes the stages before it, except the model alone."""

PEERS: dict[str, Contender] = {
    "webdataset + Pillow": _webdataset,
    "zip + Pillow": _zip,
    "LitData + Pillow": _copy_reader("litdata"),
    "Streaming + Pillow": _copy_reader("streaming"),
    "FFCV + Pillow": _copy_reader("ffcv"),
}
"""Other loaders; they yield the same batches as ``augment``."""

_LIBRARIES = {
    "LitData + Pillow": "litdata",
    "Streaming + Pillow": "streaming",
    "FFCV + Pillow": "ffcv",
}


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


def begin(name: str, job: BenchConfig, shelf: FixtureCache | None = None) -> RunningCase:
    """Start a case; it begins to work at the first ``next``.

    Args:
        name: From ``OWN`` or ``PEERS``.
        job: Settings.
        shelf: Cache of fixtures, closed by the caller. None: the case has its own cache and closes
            it at its end.
    """
    if job.device.startswith("cuda:"):
        # Events and synchronisation use the current GPU.
        torch.cuda.set_device(int(job.device.partition(":")[2]))
    work = RunningCase(samples=iter(()), waited=[], shelf=shelf or FixtureCache())
    samples = {**OWN, **PEERS}[name](job, work)
    work.samples = samples if shelf else _closing(samples, work.shelf)
    return work


def _closing(
    samples: Generator[int, None, None], shelf: FixtureCache
) -> Generator[int, None, None]:
    with contextlib.closing(shelf), contextlib.closing(samples):
        yield from samples


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """Return a temporary folder for ``BenchConfig.scratch``."""
    return tempfile.TemporaryDirectory(prefix="shardline-bench-")
