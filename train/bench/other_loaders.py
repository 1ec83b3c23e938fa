"""Other loaders of the same samples: webdataset, zip, LitData, MosaicML Streaming and FFCV.

All render with ``PillowRenderer``, whose augmentation is the loader's own, so that rates compare
the loading. LitData, Streaming and FFCV are imported on use; each reads a copy of the split in its
own format, written once, in its own random order. Every function yields augmented batches without
end, from the same worker processes (``job.threads`` of them).
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
from train.bench.fixtures import BenchConfig
from train.bench.pillow_renderer import Array, Floats, PillowRenderer, open_image


def webdataset_batches(job: BenchConfig) -> Iterator[Batch]:
    """By ``webdataset``, shuffled in a buffer of 1,000 samples."""
    folder = Path(job.shards)
    render = PillowRenderer(folder, res=job.res)
    shards = [str(folder / shard.name) for shard in render.manifest.splits[job.split].shards]
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).repeat()
    dataset = dataset.map(SampleRenderer(render)).batched(job.batch_size, partial=False)
    loader = webdataset.WebLoader(
        dataset, batch_size=None, num_workers=job.threads, collate_fn=_tensors
    )
    yield from loader


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


def write_zip(folder: Path, split: str, path: Path) -> None:
    """Put a split's images back into one zip, stored: what a user without shards reads from."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        for shard in Manifest.load(folder).splits[split].shards:
            with tarfile.open(folder / shard.name) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    key, role = member.name.split(".")[:2]
                    bundle.writestr(f"{role}/{key}", stream.read())


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


def zipfile_batches(job: BenchConfig) -> Iterator[Batch]:
    """From a zip of ``write_zip``, by torch's ``DataLoader``; almost without end."""
    path = _copy(job, "zipfile")
    if not path.exists():
        write_zip(Path(job.shards), job.split, path)
    samples = ZipSamples(path, PillowRenderer(Path(job.shards), res=job.res))
    endless = torch.utils.data.RandomSampler(samples, num_samples=len(samples) * 1_000_000)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        samples,
        batch_size=job.batch_size,
        sampler=endless,
        num_workers=job.threads,
        collate_fn=stack,
        drop_last=True,
    )
    yield from loader


def webdataset_samples(folder: Path, split: str) -> Iterator[dict[str, bytes]]:
    """Each sample of a split as written: role to bytes."""
    for shard in Manifest.load(folder).splits[split].shards:
        for sample in webdataset.WebDataset(str(folder / shard.name), shardshuffle=False):
            yield {name.partition(".")[0]: data for name, data in sample.items() if name[0] != "_"}


def stack(samples: list[tuple[Floats, ...]]) -> Batch:
    """A batch of rendered samples."""
    return Batch(*(torch.from_numpy(np.stack(planes)) for planes in zip(*samples, strict=True)))


def _copy(job: BenchConfig, library: str) -> Path:
    """Where a library's copy of the split is; each of them writes it if it is not there."""
    return Path(job.scratch) / f"{library}-{job.split}"


def _tensors(batch: tuple[Array, ...]) -> Batch:
    return Batch(*(torch.from_numpy(np.asarray(planes)) for planes in batch))


def litdata_batches(job: BenchConfig) -> Iterator[Batch]:
    """By ``litdata``, from a copy in its format."""
    import litdata
    from litdata.streaming.cache import Cache

    copy = _copy(job, "litdata")
    if not copy.exists():
        cache = Cache(str(copy), chunk_bytes="64MB")
        for index, sample in enumerate(webdataset_samples(Path(job.shards), job.split)):
            cache[index] = sample
        cache.done()
        cache.merge()
    render = SampleRenderer(PillowRenderer(Path(job.shards), res=job.res))

    class Rendered(litdata.StreamingDataset):  # type: ignore[misc]  # the library has no types
        def __getitem__(self, index: Any) -> tuple[Floats, ...]:
            sample = super().__getitem__(index)
            return render({name: bytes(data) for name, data in sample.items()})

    loader = litdata.StreamingDataLoader(
        Rendered(str(copy), shuffle=True, drop_last=True),
        batch_size=job.batch_size,
        num_workers=job.threads,
        collate_fn=stack,
        persistent_workers=job.threads > 0,
    )
    while True:
        yield from loader


def streaming_batches(job: BenchConfig) -> Iterator[Batch]:
    """By MosaicML's ``streaming``, from a copy in its format (MDS)."""
    import streaming

    copy = _copy(job, "streaming")
    if not copy.exists():
        columns = dict.fromkeys((*IMAGES, "bg"), "bytes")
        with streaming.MDSWriter(columns=columns, out=str(copy)) as writer:
            for sample in webdataset_samples(Path(job.shards), job.split):
                writer.write(sample)
    render = PillowRenderer(Path(job.shards), res=job.res)

    class Rendered(streaming.StreamingDataset):  # type: ignore[misc]  # the library has no types
        def __getitem__(self, index: Any) -> tuple[Floats, ...]:
            draws = render.draws(int(index), seed=0, epoch=0)
            return render.encoded(super().__getitem__(index), draws)

    loader = streaming.StreamingDataLoader(
        Rendered(local=str(copy), shuffle=True, batch_size=job.batch_size),
        batch_size=job.batch_size,
        num_workers=job.threads,
        collate_fn=stack,
        drop_last=True,
        persistent_workers=job.threads > 0,
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


def ffcv_batches(job: BenchConfig) -> Iterator[Batch]:
    """By ``ffcv``, from a copy in its format (.beton); Pillow renders in ``job.threads`` threads.

    FFCV decodes: ``fg_bg`` is a JPEG again, of quality 90; it has no grey images, so mask and depth
    are arrays. Its threads fill batches ahead while as many others render.

    Raises:
        DataError: A role's images are not all of one size.
    """
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    folder, copy = Path(job.shards), _copy(job, "ffcv")
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
        write_zip(folder, job.split, bundle)
        DatasetWriter(str(copy), fields, num_workers=max(job.threads, 1)).from_indexed_dataset(
            _Pixels(bundle, depth_mode)
        )
        bundle.unlink()
    render = PillowRenderer(Path(job.shards), res=job.res)
    loader = Loader(
        str(copy),
        batch_size=job.batch_size,
        num_workers=max(job.threads, 1),
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

    with ThreadPoolExecutor(max(job.threads, 1)) as pool:
        while True:
            for batch in loader:
                yield stack(list(pool.map(rendered, *batch)))
