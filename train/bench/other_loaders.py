"""Loaders of other libraries, where they are installed: LitData, MosaicML Streaming, FFCV.

Each reads a copy of the split in that library's own format, written here once, in its own random
order, and renders with ``baselines.PillowRenderer``, so that a rate compares the way to a sample
and not the work done on it. No library is imported before it is asked for.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.loader.shards import IMAGES
from train.bench.baselines import (
    Array,
    Floats,
    PillowRenderer,
    SampleRenderer,
    ZipFiles,
    open_image,
    stack,
    webdataset_samples,
    write_zip,
)

__all__ = ["ffcv_batches", "litdata_batches", "streaming_batches"]


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
