"""Other loaders of the same samples: webdataset, zip, LitData, MosaicML Streaming and FFCV.

All render with ``PillowRenderer``, whose augmentation is the loader's own, so that rates compare
the loading. LitData, Streaming and FFCV are imported on use; each reads a copy of the split in its
own format, written once, in its own random order.
"""

import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.loader.shards import IMAGES
from train.bench.pillow_renderer import Array, Floats, PillowRenderer, open_image


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


def litdata_batches(
    copy: Path, folder: Path, *, split: str, res: int, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Augmented epochs without end by ``litdata`` and Pillow, in the same processes.

    Args:
        copy: The split in that library's format; written here if it is not there.
        folder: The data set.
        split: ``train`` or ``val``.
        res: R. Pixels.
        batch_size: Samples a batch.
        workers: Processes.
    """
    import litdata
    from litdata.streaming.cache import Cache

    if not copy.exists():
        cache = Cache(str(copy), chunk_bytes="64MB")
        for index, sample in enumerate(webdataset_samples(folder, split)):
            cache[index] = sample
        cache.done()
        cache.merge()
    render = SampleRenderer(PillowRenderer(folder, res=res))

    class Rendered(litdata.StreamingDataset):  # type: ignore[misc]  # the library has no types
        def __getitem__(self, index: Any) -> tuple[Floats, ...]:
            sample = super().__getitem__(index)
            return render({name: bytes(data) for name, data in sample.items()})

    loader = litdata.StreamingDataLoader(
        Rendered(str(copy), shuffle=True, drop_last=True),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=stack,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def streaming_batches(
    copy: Path, folder: Path, *, split: str, res: int, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Augmented epochs without end by MosaicML's ``streaming`` and Pillow.

    Args:
        copy: The split in that library's format (MDS); written here if it is not there.
        folder: The data set.
        split: ``train`` or ``val``.
        res: R. Pixels.
        batch_size: Samples a batch.
        workers: Processes.
    """
    import streaming

    if not copy.exists():
        columns = dict.fromkeys((*IMAGES, "bg"), "bytes")
        with streaming.MDSWriter(columns=columns, out=str(copy)) as writer:
            for sample in webdataset_samples(folder, split):
                writer.write(sample)
    render = PillowRenderer(folder, res=res)

    class Rendered(streaming.StreamingDataset):  # type: ignore[misc]  # the library has no types
        def __getitem__(self, index: Any) -> tuple[Floats, ...]:
            draws = render.draws(int(index), seed=0, epoch=0)
            return render.encoded(super().__getitem__(index), draws)

    loader = streaming.StreamingDataLoader(
        Rendered(local=str(copy), shuffle=True, batch_size=batch_size),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=stack,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


class _Pixels:
    """A split's samples decoded, by number, as FFCV's writer takes them: a tuple of fields."""

    def __init__(self, bundle: Path, depth_mode: str) -> None:
        self._bundle = ZipFiles(bundle)
        self._depth_mode = depth_mode

    def __len__(self) -> int:
        return len(self._bundle)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        files = self._bundle[int(index)]
        return (
            np.array(open_image(files["fg_bg"], "RGB")),
            np.array(open_image(files["mask"], "L")),
            # Torch has no unsigned 16 bits, and FFCV warns of them: the same bits, signed.
            np.array(open_image(files["depth"], self._depth_mode)).view(_DEPTHS[self._depth_mode]),
            int(files["bg"]),
            int(index),
        )


_DEPTHS = {"L": np.dtype(np.uint8), "I;16": np.dtype(np.int16)}


def ffcv_batches(
    copy: Path, folder: Path, *, split: str, res: int, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Augmented epochs without end by ``ffcv``, rendered by Pillow in threads.

    FFCV decodes: ``fg_bg`` is a JPEG again, of quality 90; it has no grey images, so mask and depth
    are arrays. Its threads fill batches ahead while as many others render.

    Args:
        copy: The split in that library's format (a .beton file); written here if it is not there.
        folder: The data set.
        split: ``train`` or ``val``.
        res: R. Pixels.
        batch_size: Samples a batch.
        workers: Threads, of FFCV and again of the renderer.

    Raises:
        DataError: A role's images are not all of one size.
    """
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    roles = Manifest.load(folder).roles
    for role in IMAGES:
        if len(roles[role].sizes) > 1:
            raise DataError(
                f"{folder}: {role} has images of {len(roles[role].sizes)} sizes; FFCV's arrays "
                "are of one; build the data set at one size (`shardify build --res`)"
            )
    depth_mode = "L" if roles["depth"].bits == 8 else "I;16"
    if not copy.exists():
        shape = {role: roles[role].sizes[0][1::-1] for role in IMAGES}
        fields = {
            "fg_bg": RGBImageField(write_mode="jpg", jpeg_quality=90),
            "mask": NDArrayField(np.dtype(np.uint8), tuple(shape["mask"])),
            "depth": NDArrayField(_DEPTHS[depth_mode], tuple(shape["depth"])),
            "bg": IntField(),
            "index": IntField(),
        }
        bundle = copy.with_suffix(".zip")
        write_zip(folder, split, bundle)
        DatasetWriter(str(copy), fields, num_workers=max(workers, 1)).from_indexed_dataset(
            _Pixels(bundle, depth_mode)
        )
        bundle.unlink()
    render = PillowRenderer(folder, res=res)
    loader = Loader(
        str(copy),
        batch_size=batch_size,
        num_workers=max(workers, 1),
        order=OrderOption.RANDOM,
        seed=0,
        drop_last=True,
        pipelines={
            "fg_bg": [SimpleRGBImageDecoder()],
            "mask": [NDArrayDecoder()],
            "depth": [NDArrayDecoder()],
            "bg": [IntDecoder()],
            "index": [IntDecoder()],
        },
    )

    def rendered(fg_bg: Array, mask: Array, depth: Array, bg: Array, index: Array) -> Any:
        return render(
            Image.fromarray(fg_bg),
            Image.fromarray(mask),
            Image.fromarray(depth.view(np.uint16) if depth_mode == "I;16" else depth),
            int(bg[0]),
            render.draws(int(index[0]), seed=0, epoch=0),
        )

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        while True:
            for batch in loader:
                yield stack(list(pool.map(rendered, *batch)))
