"""How others load the same samples: Pillow and NumPy, plain or behind webdataset.

The yardstick of the benchmark and the reference of the tests. The augmentation is the loader's own
(same draws, same matrices, same noise table), so that a rate compares the way and not the work.
Nothing here is on the training path.
"""

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from shardify.dataset.manifest import Manifest
from shardify.loader.batch import Batch
from shardify.loader.shards import IMAGES
from train.bench.pillow_renderer import Array, Floats, PillowRenderer, open_image, warp

__all__ = [
    "Array",
    "Floats",
    "PillowRenderer",
    "SampleRenderer",
    "ZipFiles",
    "ZipSamples",
    "open_image",
    "stack",
    "warp",
    "webdataset_batches",
    "webdataset_samples",
    "write_zip",
    "zip_batches",
]


def webdataset_batches(
    folder: Path,
    *,
    split: str,
    res: int,
    batch_size: int,
    workers: int,
    augment: bool = True,
    repeat: bool = False,
) -> Iterator[Batch]:
    """One epoch by ``webdataset`` and Pillow, shuffled in a buffer of 1,000 samples.

    Args:
        folder: The data set.
        split: ``train`` or ``val``.
        res: R. Pixels.
        batch_size: Samples a batch.
        workers: Processes; 0: in this one.
        augment: Rotation, colour and noise.
        repeat: Go on without end, in the same processes.
    """
    render = PillowRenderer(folder, res=res, augment=augment)
    shards = [str(folder / shard.name) for shard in render.manifest.splits[split].shards]
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards) if augment else False)
    if augment:
        dataset = dataset.shuffle(1000)
    if repeat:
        dataset = dataset.repeat()
    dataset = dataset.map(SampleRenderer(render)).batched(batch_size, partial=split == "val")
    return iter(
        webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_tensors)
    )


class SampleRenderer:
    """A webdataset sample's bytes to planes; a class, so that a worker process can be given it."""

    def __init__(self, render: PillowRenderer) -> None:
        self._render = render
        self._count = 0

    def __call__(self, sample: dict[str, Any]) -> tuple[Floats, ...]:
        """The planes of one sample."""
        images = {
            name.partition(".")[0]: data for name, data in sample.items() if isinstance(data, bytes)
        }
        self._count += 1
        return self._render.encoded(images, self._render.draws(self._count, seed=0, epoch=0))


def write_zip(folder: Path, split: str, path: Path) -> int:
    """Put a split's images back into one zip, stored: what a user without shards reads from.

    Returns:
        Samples.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        count = 0
        for shard in Manifest.load(folder).splits[split].shards:
            with tarfile.open(folder / shard.name) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    key, role = member.name.split(".")[:2]
                    bundle.writestr(f"{role}/{key}", stream.read())
                    count += role == "bg"
    return count


class ZipFiles:
    """The files of such a zip's samples, by number; each process opens it for itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: zipfile.ZipFile | None = None
        with zipfile.ZipFile(path) as bundle:
            names = bundle.namelist()
        self._keys = [name.partition("/")[2] for name in names if name.startswith("bg/")]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        self._zip = self._zip or zipfile.ZipFile(self._path)
        key = self._keys[index]
        return {role: self._zip.read(f"{role}/{key}") for role in (*IMAGES, "bg")}


class ZipSamples(torch.utils.data.Dataset[tuple[Floats, ...]]):
    """The samples of such a zip, rendered, by number."""

    def __init__(self, path: Path, render: PillowRenderer) -> None:
        self._files = ZipFiles(path)
        self._render = render

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Floats, ...]:
        return self._render.encoded(self._files[index], self._render.draws(index, seed=0, epoch=0))


def zip_batches(
    path: Path,
    folder: Path,
    *,
    res: int,
    batch_size: int,
    workers: int,
    augment: bool = True,
    repeat: bool = False,
) -> Iterator[Batch]:
    """One epoch from a zip of ``write_zip``, by Pillow and torch's ``DataLoader``.

    Args:
        path: The zip.
        folder: The data set, for its manifest and backgrounds.
        res: R. Pixels.
        batch_size: Samples a batch.
        workers: Processes; 0: in this one.
        augment: Rotation, colour and noise; and a random order.
        repeat: Go on almost without end, in the same processes.
    """
    samples = ZipSamples(path, PillowRenderer(folder, res=res, augment=augment))
    rounds = 1_000_000 if repeat else 1
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        samples,
        batch_size=batch_size,
        sampler=torch.utils.data.RandomSampler(samples, num_samples=len(samples) * rounds)
        if augment
        else None,
        num_workers=workers,
        collate_fn=stack,
        drop_last=augment,
    )
    return iter(loader)


def webdataset_samples(folder: Path, split: str) -> Iterator[dict[str, bytes]]:
    """Each sample of a split as written: role to bytes."""
    for shard in Manifest.load(folder).splits[split].shards:
        for sample in webdataset.WebDataset(str(folder / shard.name), shardshuffle=False):
            yield {name.partition(".")[0]: data for name, data in sample.items() if name[0] != "_"}


def stack(samples: list[tuple[Floats, ...]]) -> Batch:
    """A batch of rendered samples."""
    return Batch(*(torch.from_numpy(np.stack(planes)) for planes in zip(*samples, strict=True)))


def _tensors(batch: tuple[Array, ...]) -> Batch:
    return Batch(*(torch.from_numpy(np.asarray(planes)) for planes in batch))
