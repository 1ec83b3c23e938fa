"""Run the DALI pipeline of one loader: feed each step's inputs, turn its outputs into a batch.

On a GPU the DALI graph does all the work. On a CPU, DALI decodes and ``cpu_kernels.render`` does
the rest, because DALI's warps are several times slower there (``kernel="dali"`` runs them for
comparison). If DALI fails, the sample that does not decode is found and named here.
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
from shardify.loader.batch import ROLES, Batch, RenderSettings, RoleStats, fill
from shardify.loader.batch_sampler import BatchSampler, BatchSpec
from shardify.loader.cpu_renderer import Renderer
from shardify.loader.dali_pipeline import (
    QUEUE_DEPTH,
    build_graph,
    copy_output,
    decode_faults,
    error_reason,
)
from shardify.loader.raw_codec import check_sizes, image_size, is_raw
from shardify.loader.reduction import reduce_table
from shardify.loader.scaled_decode import ScaledDecoder, is_much_larger

Array = npt.NDArray[Any]


def normalisation(
    manifest: Manifest, folder: Path, stats: RoleStats | None = None
) -> npt.NDArray[np.float32]:
    """Return scale and shift that normalise the channels of bg and fg_bg.

    Returns:
        (2, 2, 3) float32: for bg and fg_bg, scale and shift of each channel; the output is levels
        of 255 times scale plus shift. 1 and 0 for a role that the data set lacks.

    Raises:
        DataError: There are no mean and standard deviation of a role.
    """
    rows = []
    if stats is None:
        stats = {role: (found.mean, found.std) for role, found in manifest.stats.items()}
    for role in ("bg", "fg_bg"):
        if role not in manifest.roles:
            rows.append([np.ones(3), np.zeros(3)])
            continue
        mean, std = map(np.array, stats.get(role, ([], [])))
        if len(mean) != 3 or len(std) != 3:
            raise DataError(
                f"{folder}: the manifest has no mean and deviation of {role}'s three channels; "
                "build the data set again"
            )
        std = np.maximum(std, 1 / 255)
        rows.append([1 / (255 * std), -mean / std])
    return np.array(rows, np.float32)


class BatchProducer:
    """Produce batches from steps, through one DALI pipeline."""

    def __init__(
        self,
        sampler: BatchSampler,
        manifest: Manifest,
        settings: RenderSettings,
        *,
        kernel: str,
        hw_decoder_load: float,
    ) -> None:
        self._sampler = sampler
        self._manifest = manifest
        self._settings = settings
        raw = is_raw(manifest)
        if raw:
            check_sizes(sampler.shards, manifest)
        self._decode_only = kernel != "dali"
        self._steps: Iterator[BatchSpec] = iter(())
        self._next: BatchSpec | None = None
        self._empty_step: BatchSpec | None = None
        self._iteration = 0
        self._inputs: list[Array] = []
        self._in_flight: collections.deque[tuple[BatchSpec | None, list[Array]]] = (
            collections.deque()
        )
        self._images = sampler.shards.images
        sizes = {
            role: image_size(manifest, role) if len(manifest.roles[role].sizes) == 1 else None
            for role in self._images
        }
        width, height = sizes["fg_bg"] or (1, 1)  # Of several sizes, the graph knows each.
        self._aspect = width / height
        folder = sampler.shards.folder
        table = reduce_table(
            background_table(folder, manifest, threads=settings.threads), settings.res
        )
        self._backgrounds: Any = table
        self._renderer = Renderer(settings) if kernel == "fused" else None
        scaled = kernel == "fused" and not raw and len(self._images) > 1
        scaled = scaled and is_much_larger(manifest.roles["fg_bg"], settings.res)
        self._scaled = ScaledDecoder(settings.res, settings.threads) if scaled else None
        # fg_bg is the first of the images.
        self._in_graph = self._images[1:] if scaled else self._images
        stream: Any = torch.cuda.Stream
        device = settings.device
        # High priority: copies of a few batches must not wait for a training step.
        self._stream = stream(device, priority=-1) if device.type == "cuda" else None
        self._closed = False
        self._pipe: Any = None
        if raw and self._decode_only:
            return
        with_noise = settings.augment and not self._decode_only
        self._pipe = build_graph(
            self._graph_inputs,
            settings,
            shards=sampler.shards.buffers,
            backgrounds=None if self._decode_only or not len(table) else table,
            noise=noise_table(settings.res) if with_noise else None,
            roles=self._in_graph,
            extensions={role: frozenset(manifest.roles[role].extensions) for role in self._images},
            sizes=sizes,
            raw=raw,
            decode_only=self._decode_only,
            hw_decoder_load=hw_decoder_load,
        )

    def batches(self, steps: Iterator[BatchSpec]) -> Generator[tuple[Batch, int], None, None]:
        """Yield each step's batch, with the number of samples of the epoch used after it."""
        if self._closed:
            raise RuntimeError("the loader is closed; open another")
        if self._pipe is None:
            for step in steps:
                batch = self._empty_batch() if self._renderer is None else self._render_raw(step)
                yield batch, step.used
            return
        self._steps = steps
        try:
            self._fetch_next()
            while self._in_flight or self._next is not None:
                depth = QUEUE_DEPTH[self._settings.device.type]
                while len(self._in_flight) < depth and self._next is not None:
                    self._pipe.schedule_run()
                if (result := self._finish_oldest()) is not None:
                    yield result
            if self._empty_step is not None:
                yield self._empty_batch(), self._empty_step.used
        finally:
            while self._in_flight:
                self._in_flight.popleft()
                with contextlib.suppress(RuntimeError):
                    self._pipe.share_outputs()
                self._pipe.release_outputs()

    def _graph_inputs(self, iteration: int) -> list[Array]:
        """Return the graph's inputs of one iteration; each input source calls this in turn.

        DALI may ask for one iteration more than there are steps. It then gets the last inputs
        again, and the result is dropped.
        """
        if iteration == self._iteration:
            if (step := self._next) is not None:
                inputs = self._input_arrays(step)
                self._fetch_next()
                self._inputs = inputs
            # The inputs stay referenced until their iteration is over: DALI reads them in place.
            self._in_flight.append((step, self._inputs))
            self._iteration += 1
        return self._inputs

    def _fetch_next(self) -> None:
        """Fetch the next step; a step without samples is kept apart, as there is nothing to run."""
        self._next, self._empty_step = next(self._steps, None), None
        if self._next is not None and not len(self._next.indexes):
            self._next, self._empty_step = None, self._next

    def close(self) -> None:
        """Free the pipeline and the threads."""
        if self._renderer is not None:
            self._renderer.close()
        if self._scaled is not None:
            self._scaled.close()
        self._closed, self._pipe = True, None

    def _input_arrays(self, step: BatchSpec) -> list[Array]:
        """Return a step's arrays in the order of the graph's inputs."""
        own = slice(-len(self._in_graph), None)
        arrays: list[Array] = [
            step.shards, *step.offsets[own, :, None], *step.sizes[own, :, None]
        ]  # fmt: skip
        if self._decode_only:
            return arrays
        draws = step.draws
        # The matrix on the unit square; the graph scales it to each image's size.
        unit, res = np.ones((1, 1, 2)), self._settings.res
        arrays.append(affine_matrices(draws.rotation, unit, res=res, aspect=self._aspect)[:, 0])
        if self._settings.augment:
            arrays += [draws.colour, draws.noise / np.float32(NOISE_UNIT)]
        if len(self._backgrounds):
            arrays.append(step.backgrounds)
        if self._settings.augment:
            arrays.append(draws.place)
        return arrays

    def _finish_oldest(self) -> tuple[Batch, int] | None:
        """Finish the oldest iteration; return None if it was the surplus one."""
        step, _ = self._in_flight[0]
        try:
            try:
                outputs = self._pipe.share_outputs()
            except RuntimeError as error:
                if step is not None:
                    raise self._find_fault(error) from error
            if step is None:
                return None
            if self._renderer is not None:
                return self._render(self._renderer, step, outputs), step.used
            batch = self._empty_batch() if self._decode_only else self._copy_outputs(outputs)
            return batch, step.used
        finally:
            self._in_flight.popleft()
            self._pipe.release_outputs()

    def _render(self, renderer: Renderer, step: BatchSpec, outputs: Any) -> Batch:
        images = self._image_table(step)
        aspect = None
        if self._scaled is not None:
            payloads = self._sampler.shards.payloads(step.indexes, "fg_bg")
            composites = self._scaled(payloads)  # Kept until the renderer has read them.
            aspect = np.ones(len(composites))
            for place, composite in enumerate(composites):
                if isinstance(composite, str):
                    raise self._decode_error(int(step.indexes[place]), "fg_bg", composite)
                pixels, width, height = composite
                aspect[place] = width / height
                images[place, 1] = pixels.__array_interface__["data"][0], *pixels.shape[1::-1]
        for role, decoded in zip(self._in_graph, outputs, strict=True):
            column = ROLES.index(role)
            for place, shape in enumerate(decoded.shape()):
                if min(shape[:2]) < 2:
                    raise DataError(
                        f"{self._sampler.shards.where(int(step.indexes[place]))}: {role} has "
                        f"{shape[1]}x{shape[0]} pixels; expected 2x2 or more; leave it out"
                    )
                images[place, column] = decoded[place].data_ptr(), shape[1], shape[0]
        return renderer(images, step.draws, aspect=aspect)

    def _render_raw(self, step: BatchSpec) -> Batch:
        """Render a batch straight from the shards' bytes."""
        assert self._renderer is not None
        shards = self._sampler.shards
        images = self._image_table(step)
        first = shards.base[step.shards]
        for member, role in enumerate(self._images):
            column = ROLES.index(role)
            images[:, column, 0] = first + step.offsets[member]
            images[:, column, 1:] = image_size(self._manifest, role)
        return self._renderer(images, step.draws, packed=np.ascontiguousarray(images[:, 1:3, 0]))

    def _image_table(self, step: BatchSpec) -> npt.NDArray[np.int64]:
        """Return (n, 4, 3) address, width and height of each image; here only the backgrounds'."""
        images = np.zeros((len(step.indexes), 4, 3), np.int64)
        if len(table := self._backgrounds):
            images[:, 0, 0] = table.__array_interface__["data"][0]
            images[:, 0, 0] += step.backgrounds * table.strides[0]
            images[:, 0, 1:] = table.shape[2], table.shape[1]
        return images

    def _copy_outputs(self, outputs: Any) -> Batch:
        """Copy the graph's outputs, on the device, into tensors that own their memory."""
        context = (
            torch.cuda.stream(self._stream)
            if self._stream is not None
            else contextlib.nullcontext()
        )
        with context:
            tensors = {}
            roles = [role for role in ROLES if role in self._sampler.shards.members]
            for role, output in zip(roles, outputs[: len(roles)], strict=True):
                tensor = copy_output(output, self._settings.dtype)
                channels_last = self._settings.channels_last
                tensors[role] = tensor.permute(0, 3, 1, 2) if channels_last else tensor
            valid = {
                role: copy_output(output, torch.bool).permute(0, 3, 1, 2)
                for role, output in zip(self._settings.invalid, outputs[len(roles) :], strict=True)
            }
            batch = fill(tensors, len(tensors["fg_bg"]), self._settings, valid)
            if self._stream:
                self._stream.synchronize()
        return batch

    def _empty_batch(self) -> Batch:
        return fill({}, 0, self._settings)

    def _find_fault(self, error: RuntimeError) -> DataError:
        """Return an error that names the image that does not decode.

        DALI rarely names it, so decode the images of every step in flight one by one: an image
        of a later step can also fail the pipeline.
        """
        steps = [step for step, _ in self._in_flight if step is not None]
        if re.search(r"out of memory|bad_alloc|[Cc]an't allocate|allocation failed", str(error)):
            return DataError(
                f"{self._sampler.shards.folder}: memory ran out while DALI made a batch at "
                f"{self._settings.res} px ({error_reason(error)}); use a smaller one"
            )
        for step, role in itertools.product(steps, self._images):
            reasons = decode_faults(self._sampler.shards.payloads(step.indexes, role), role)
            for index, reason in zip(step.indexes.tolist(), reasons, strict=True):
                if reason is not None:
                    return self._decode_error(index, role, reason)
        return DataError(f"{self._sampler.shards.folder}: DALI failed: {error_reason(error)}")

    def _decode_error(self, index: int, role: str, reason: str) -> DataError:
        shards = self._sampler.shards
        remedy = f"run `shardify verify --decode {shards.folder}`, then build it again"
        if shards.changed(index):
            reason += "; the shard is not the one that the manifest describes"
        elif shards.split == "train":
            # The rest of the shard is what was built: only this sample is lost.
            (key,) = shards.keys(np.array([index]))
            remedy += f", or train without it (--exclude {key})"
        return DataError(f"{shards.where(index)}: {role} does not decode ({reason}); {remedy}")
