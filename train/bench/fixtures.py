"""Shared objects that are slow to create: a loader, a compiled training step, a resident batch.

On a machine with a GPU, starting a loader takes seconds; so do the search for the fastest cuDNN
algorithms and compiling.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from model.losses import Criterion
from model.registry import create
from shardify.loader.batch import Batch, synthetic
from train.optim.compute import choose_precision, set_cudnn_algorithms
from train.optim.step import TrainStep

if TYPE_CHECKING:
    from shardify.loader.loader import Loader

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Settings of a measurement, the same for all cases."""

    shards: str
    split: str = "train"
    res: int | str
    """Side of the images, or ``"HEIGHTxWIDTH"``. Pixels."""

    batch_size: int
    threads: int
    """DALI's, the renderer's and torch's; for other loaders, worker processes."""

    device: str
    model: str = "resunet"
    scratch: str = ""
    """Folder for copies of the data in other libraries' formats; existing copies are used.
    Shardline's own cases need none."""

    order: str | None = None
    cache: str = "disk"

    compile: str = "no"
    """Of the network: no, yes, graphs as in the settings; trace: its graph is captured, no more."""

    hw_decoder_load: float = 1.0
    """Share of the JPEGs for a GPU's decoding engine, in [0, 1]."""


class FixtureCache:
    """Keeps fixtures for the next case with the same settings.

    Cases that share a cache run one after the other, never at the same time.
    """

    def __init__(self) -> None:
        self._loaders: dict[Any, Loader] = {}
        self._steps: dict[Any, Callable[[Batch], object]] = {}
        self._batches: dict[Any, Batch] = {}

    def loader(self, job: BenchConfig, options: dict[str, Any]) -> "Loader":
        """Return the loader of a job; close another one that is open."""
        from shardify.loader.loader import Loader

        key = (dataclasses.replace(job, compile="no", model=""), *sorted(options.items()))
        if key not in self._loaders:
            self.close()
            self._loaders[key] = Loader(
                job.shards,
                split=job.split,
                res=job.res,
                batch_size=job.batch_size,
                threads=job.threads,
                order=job.order,
                cache=job.cache,
                hw_decoder_load=job.hw_decoder_load,
                rank=0,
                world_size=1,
                **options,
            )
        return self._loaders[key]

    def step(self, job: BenchConfig) -> Callable[[Batch], object]:
        """Return the training step of a job's network; drop another one."""
        key = (job.model, job.device, job.res, job.batch_size, job.compile)
        return _get_or_create(self._steps, key, lambda: _train_step(job))

    def batch(self, job: BenchConfig) -> Batch:
        """Return a resident batch for a job's network; a large one takes seconds to draw."""
        key = (job.device, job.res, job.batch_size)
        draw = functools.partial(synthetic, device=job.device, channels_last=True)
        return _get_or_create(self._batches, key, lambda: draw(job.batch_size, job.res))

    def close(self) -> None:
        """Close the loader. A second call does nothing."""
        for loader in self._loaders.values():
            loader.close()
        self._loaders.clear()


def _get_or_create(held: dict[Any, T], key: object, make: Callable[[], T]) -> T:
    """Return the value of a key, created if missing; drop the values of other keys."""
    if key not in held:
        held.clear()
        held[key] = make()
    return held[key]


_COMPILE_OPTIONS: dict[str, dict[str, Any]] = {
    "yes": {"mode": "default"},
    "graphs": {"mode": "reduce-overhead"},
    "trace": {"backend": "eager"},
}


def _train_step(job: BenchConfig) -> Callable[[Batch], object]:
    """Return a step like `train run`'s, without EMA and metrics; at most two steps are queued."""
    torch.manual_seed(0)
    device = torch.device(job.device)
    set_cudnn_algorithms(device)
    model = create(job.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network: torch.nn.Module = model
    if job.compile != "no":
        network = cast(
            torch.nn.Module, torch.compile(model, dynamic=False, **_COMPILE_OPTIONS[job.compile])
        )
    step = TrainStep(
        network,
        Criterion(),
        torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9),
        precision=choose_precision("auto", device),
        clip=0.1,
        clip_by="value",
    )
    model.train()
    under_way: collections.deque[torch.cuda.Event] = collections.deque()

    def run(batch: Batch) -> None:
        step([batch])
        if device.type == "cuda":
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
            under_way.append(done)
            if len(under_way) > 2:
                under_way.popleft().synchronize()

    return run
