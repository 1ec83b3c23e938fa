"""One loader's work: each step's inputs into the graph, its outputs into a batch.

On a GPU the graph does everything; on a CPU DALI decodes and ``kernel.render`` does the rest, for
DALI's own warps are several times slower there (``kernel="dali"`` runs them all the same, to
compare). A sample that does not decode is found and named here. It keeps no position in an epoch.

Normalisation: from levels of 255 to deviations from the data set's mean.

The figures are the manifest's own; this module measures nothing.
"""

import collections
import contextlib
import itertools
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.augmentation import NOISE_UNIT, affine_matrices, noise_table
from shardify.loader.background_table import background_table
from shardify.loader.batch import ROLES, Batch, fill
from shardify.loader.batch_sampler import BatchSampler, BatchSpec
from shardify.loader.cpu_renderer import Renderer
from shardify.loader.dali_pipeline import AHEAD, decode_faults, graph, own_tensor, reason_of
from shardify.loader.raw_codec import check_sizes, is_raw, size_of

__all__ = ["BatchProducer", "normal_of"]


def normal_of(manifest: Manifest, folder: Path) -> npt.NDArray[np.float32]:
    """How the channels of bg and fg_bg are normalised.

    Args:
        manifest: Holds their mean and deviation, in [0, 1].
        folder: Of the data set, for an error.

    Returns:
        (2, 2, 3) float32: of bg and of fg_bg, scale and shift of each channel; levels of 255 times
        scale plus shift is the output. Of a role that there is not: 1 and 0.

    Raises:
        DataError: The manifest holds no mean and deviation of them.
    """
    rows = []
    for role in ("bg", "fg_bg"):
        if role not in manifest.roles:
            rows.append([np.ones(3), np.zeros(3)])
            continue
        stats = manifest.stats.get(role)
        if stats is None or len(stats.mean) != 3 or len(stats.std) != 3:
            raise DataError(
                f"{folder}: the manifest has no mean and deviation of {role}'s three channels; "
                "build the data set again"
            )
        std = np.maximum(np.array(stats.std), 1 / 255)
        rows.append([1 / (255 * std), -np.array(stats.mean) / std])
    return np.array(rows, np.float32)


Array = npt.NDArray[Any]


class BatchProducer:
    """The DALI pipeline of one loader, and what is done with its outputs."""

    def __init__(
        self,
        feed: BatchSampler,
        manifest: Manifest,
        *,
        folder: Path,
        res: int,
        batch_size: int,
        augment: bool,
        device: str,
        threads: int,
        dtype: torch.dtype,
        channels_last: bool,
        kernel: str,
        hw_decoder_load: float,
    ) -> None:
        self._feed = feed
        self._manifest = manifest
        self._raw = is_raw(manifest)
        if self._raw:
            check_sizes(feed.shards, manifest)
        self._res = res
        self._augment = augment
        self._device = torch.device(device)
        self._dtype = dtype
        self._channels_last = channels_last
        self._decode_only = kernel != "dali"
        self._steps: Iterator[BatchSpec] = iter(())
        self._next: BatchSpec | None = None
        self._tail: BatchSpec | None = None
        self._iteration = 0
        self._inputs: list[Array] = []
        self._waiting: collections.deque[tuple[BatchSpec | None, list[Array]]] = collections.deque()
        self._images = feed.shards.images
        depth_bits = manifest.roles["depth"].bits if "depth" in manifest.roles else 8
        threshold = float(("mask" in manifest.roles and manifest.roles["mask"].threshold) or 128)
        normal = normal_of(manifest, folder)
        table = background_table(folder, manifest, threads=threads)
        self._renderer: Renderer | None = None
        self._backgrounds: Any = table
        if kernel == "fused":
            self._renderer = Renderer(
                res=res,
                normal=normal,
                threshold=threshold,
                depth_bits=depth_bits,
                roles=feed.shards.members,
                augment=augment,
                threads=threads,
                dtype=dtype,
                channels_last=channels_last,
            )
        stream: Any = torch.cuda.Stream
        # Of high priority: copies of a few batches must not wait for a training step.
        self._stream = stream(self._device, priority=-1) if self._device.type == "cuda" else None
        self._closed = False
        self._pipe: Any = None
        if self._raw and self._decode_only:
            return
        self._pipe = graph(
            self._inputs_of,
            shards=feed.shards.buffers,
            backgrounds=None if self._decode_only or not len(table) else table,
            noise=None if self._decode_only or not augment else noise_table(res),
            roles=self._images,
            extensions={role: frozenset(manifest.roles[role].extensions) for role in self._images},
            sizes={
                role: size_of(manifest, role) if len(manifest.roles[role].sizes) == 1 else None
                for role in self._images
            },
            raw=self._raw,
            device=self._device,
            decode_only=self._decode_only,
            batch_size=batch_size,
            threads=threads,
            res=res,
            normal=normal,
            threshold=threshold,
            depth_bits=depth_bits,
            channels_last=channels_last,
            half=dtype != torch.float32,
            hw_decoder_load=hw_decoder_load,
        )

    def batches(self, steps: Iterator[BatchSpec]) -> Generator[tuple[Batch, int], None, None]:
        """Each step's batch, with the samples of the epoch used after it."""
        if self._closed:
            raise RuntimeError("the loader is closed; open another")
        if self._pipe is None:
            for step in steps:
                batch = self._empty() if self._renderer is None else self._render_raw(step)
                yield batch, step.used
            return
        self._steps = steps
        try:
            self._pull()
            while self._waiting or self._next is not None:
                while len(self._waiting) < AHEAD[self._device.type] and self._next is not None:
                    self._pipe.schedule_run()
                if (made := self._collect()) is not None:
                    yield made
            if self._tail is not None:
                yield self._empty(), self._tail.used
        finally:
            while self._waiting:
                self._waiting.popleft()
                with contextlib.suppress(RuntimeError):
                    self._pipe.share_outputs()
                self._pipe.release_outputs()

    def _inputs_of(self, iteration: int) -> list[Array]:
        """What the graph takes in one of its iterations; its sources ask in their turn.

        DALI may ask for one iteration more than there are steps: it gets the last one again, and
        what comes of it is dropped.
        """
        if iteration == self._iteration:
            if (step := self._next) is not None:
                inputs = self._arrays(step)
                self._pull()
                self._inputs = inputs
            # The inputs stay referenced until their iteration is over: DALI reads them in place.
            self._waiting.append((step, self._inputs))
            self._iteration += 1
        return self._inputs

    def _pull(self) -> None:
        """Fetch the next step; one without samples is kept apart, for there is nothing to run."""
        self._next, self._tail = next(self._steps, None), None
        if self._next is not None and not len(self._next.indexes):
            self._next, self._tail = None, self._next

    def close(self) -> None:
        """Free the pipeline and the threads."""
        if self._renderer is not None:
            self._renderer.close()
        self._closed, self._pipe = True, None

    def _arrays(self, step: BatchSpec) -> list[Array]:
        """What the graph takes, in the order of its inputs."""
        arrays: list[Array] = [step.shards, *step.begins[..., None], *step.sizes[..., None]]
        if self._decode_only:
            return arrays
        draws = step.draws
        # The unit square's matrix; the graph scales it to each image's size.
        arrays.append(affine_matrices(draws.turn, np.ones((1, 1, 2)), res=self._res)[:, 0])
        if self._augment:
            arrays += [draws.colour, draws.noise / np.float32(NOISE_UNIT)]
        if len(self._backgrounds):
            arrays.append(step.backgrounds)
        if self._augment:
            arrays.append(draws.place)
        return arrays

    def _collect(self) -> tuple[Batch, int] | None:
        """Finish the oldest iteration; None if it was one too many."""
        step, _ = self._waiting[0]
        try:
            try:
                outputs = self._pipe.share_outputs()
            except RuntimeError as error:
                if step is not None:
                    raise self._culprit(error) from error
            if step is None:
                return None
            if self._renderer is not None:
                return self._render(self._renderer, step, outputs), step.used
            return self._empty() if self._decode_only else self._hand_over(outputs), step.used
        finally:
            self._waiting.popleft()
            self._pipe.release_outputs()

    def _render(self, renderer: Renderer, step: BatchSpec, outputs: Any) -> Batch:
        images = self._places(step)
        for role, decoded in zip(self._images, outputs, strict=True):
            column = ROLES.index(role)
            for place, shape in enumerate(decoded.shape()):
                if min(shape[:2]) < 2:
                    raise DataError(
                        f"{self._feed.shards.where(int(step.indexes[place]))}: {role} has "
                        f"{shape[1]}x{shape[0]} pixels; expected 2x2 or more; leave it out"
                    )
                images[place, column] = decoded[place].data_ptr(), shape[1], shape[0]
        return renderer(images, step.draws)

    def _render_raw(self, step: BatchSpec) -> Batch:
        """Render a batch straight from the shards' bytes."""
        assert self._renderer is not None
        shards = self._feed.shards
        images = self._places(step)
        first = shards.base[step.shards]
        for member, role in enumerate(self._images):
            column = ROLES.index(role)
            images[:, column, 0] = first + step.begins[member]
            images[:, column, 1:] = size_of(self._manifest, role)
        return self._renderer(images, step.draws, packed=np.ascontiguousarray(images[:, 1:3, 0]))

    def _places(self, step: BatchSpec) -> npt.NDArray[np.int64]:
        """(n, 4, 3) address, width and height of each image, so far of the backgrounds only."""
        images = np.zeros((len(step.indexes), 4, 3), np.int64)
        if len(table := self._backgrounds):
            images[:, 0, 0] = table.__array_interface__["data"][0]
            images[:, 0, 0] += step.backgrounds * table.strides[0]
            images[:, 0, 1:] = table.shape[2], table.shape[1]
        return images

    def _hand_over(self, outputs: Any) -> Batch:
        """Copy the graph's outputs, device to device, into tensors of their own."""
        context = (
            torch.cuda.stream(self._stream)
            if self._stream is not None
            else contextlib.nullcontext()
        )
        with context:
            tensors = {}
            roles = [role for role in ROLES if role in self._feed.shards.members]
            for role, output in zip(roles, outputs, strict=True):
                tensor = own_tensor(output, self._dtype)
                tensors[role] = tensor.permute(0, 3, 1, 2) if self._channels_last else tensor
            batch = self._filled(tensors, len(tensors["fg_bg"]))
            if self._stream:
                self._stream.synchronize()
        return batch

    def _empty(self) -> Batch:
        return self._filled({}, 0)

    def _filled(self, found: dict[str, torch.Tensor], count: int) -> Batch:
        return fill(
            found, count, self._res, device=self._device, dtype=self._dtype,
            channels_last=self._channels_last,
        )  # fmt: skip

    def _culprit(self, error: RuntimeError) -> DataError:
        """Which image does not decode: DALI seldom says, so try them one by one.

        Those of every step under way: one that fails ahead of its turn fails the whole pipeline.
        """
        steps = [step for step, _ in self._waiting if step is not None]
        if re.search(r"out of memory|bad_alloc|[Cc]an't allocate|allocation failed", str(error)):
            return DataError(
                f"{self._feed.shards.folder}: memory ran out while DALI made a batch at "
                f"{self._res} px ({reason_of(error)}); use a smaller one"
            )
        for step, role in itertools.product(steps, self._images):
            reasons = decode_faults(self._feed.shards.payloads(step.indexes, role), role)
            for index, reason in zip(step.indexes.tolist(), reasons, strict=True):
                if reason is not None:
                    return self._undecodable(index, role, reason)
        return DataError(f"{self._feed.shards.folder}: DALI failed: {reason_of(error)}")

    def _undecodable(self, index: int, role: str, reason: str) -> DataError:
        shards = self._feed.shards
        remedy = f"run `shardify verify --decode {shards.folder}`, then build it again"
        if shards.changed(index):
            reason += "; the shard is not the one that the manifest describes"
        elif shards.split == "train":
            # The rest of the shard is what was built: only this sample is lost.
            (key,) = shards.keys(np.array([index]))
            remedy += f", or train without it (--exclude {key})"
        return DataError(f"{shards.where(index)}: {role} does not decode ({reason}); {remedy}")
