"""The loader: from a split's shards to augmented batches on the training device.

    (seed, epoch, step) ─► feed.py: samples, bytes, draws ─► DALI: decode ─► one warp to R x R
                                          ─► colour ─► noise ─► normalise ─► Batch

One function, ``_graph``, says what DALI does, on a CPU and on a GPU. On a GPU it is everything;
on a CPU DALI decodes and ``kernel.render`` does the rest, for DALI's own warps are several times
slower there (``kernel="dali"`` runs them all the same, to compare). What lies outside an image
turned by the augmentation is that image's nearest edge pixel, for all four roles alike.

This is the only module that imports DALI. It knows no loss and takes no training step.
"""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

from shardify.manifest import Manifest
from train.batch import ROLES, Batch, fill
from train.draws import NOISE_UNIT, Augmentation, matrices, noise_table
from train.errors import DataError
from train.feed import Feed, Step
from train.fused import Renderer
from train.order import Indexes
from train.prefetch import Ahead
from train.raw import check_sizes, is_raw, pixels, size_of
from train.shards import Bytes, background_payloads, load_manifest, open_split

__all__ = ["Loader"]

_AHEAD = 2
"""Steps that DALI works on while an earlier one is finished."""
_ONE_BY_ONE = {"prefetch_queue_depth": 1, "exec_pipelined": False, "exec_async": False}
"""A pipeline that asks for a batch when it is run, and not before."""
_TABLE_BATCH = 8
"""Backgrounds decoded at a time: a large one takes tens of megabytes until it is squashed."""


class Loader:
    """Batches of one split for one rank, epoch after epoch.

    The loader has no state but (seed, epoch, samples used). A ``for`` runs one epoch, or what is
    left of it after ``load_state_dict``; the next ``for`` runs the next one, also where the first
    was left early. Batches are made ahead in a thread; there are no child processes.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        split: str = "train",
        res: int = 256,
        batch_size: int = 16,
        augment: bool = True,
        seed: int = 0,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        order: str | None = None,
        augmentation: Augmentation | None = None,
        kernel: str | None = None,
        cache: str = "disk",
        verify: bool = False,
        exclude: Sequence[str] = (),
        prefetch: int = 2,
        hw_decoder_load: float = 0.65,
    ) -> None:
        """Open a split, decode its backgrounds, build the graph.

        Args:
            data: The folder that ``shardify build`` left.
            split: ``train``: the last global batch is dropped where it is not full. ``val``:
                samples as written, each exactly once; the last batches may be short or empty.
            res: Width and height of the batches. Pixels.
            batch_size: Samples a batch, on each rank.
            augment: Rotation, colour and noise. Off: a plain resize.
            seed: Of order and augmentation. 0 or more.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            rank: Of this process.
            world_size: Processes that share the split.
            threads: For decoding, and as many for what follows.
            dtype: float32, bfloat16 or float16.
            channels_last: Memory order NHWC.
            order: ``permuted``, ``block`` or ``sequential``; None: permuted in training, else
                sequential.
            augmentation: How far the draws go.
            kernel: ``fused`` or ``dali``; None: fused on a CPU. A GPU runs ``dali``. ``none``:
                images are decoded and dropped, and batches come empty: to measure decoding.
            cache: ``disk`` or ``ram``, see ``shards.open_split``.
            verify: Check every shard's digest first: reads every byte.
            exclude: Keys of samples to train without. Not for ``val``: its figures would no longer
                be those of the split.
            prefetch: Finished batches kept ready.
            hw_decoder_load: Share of the JPEGs for a GPU's decoding engine, in [0, 1].

        Raises:
            DataError: The data set, or a setting for it, is at fault: the message names which.
            ValueError: An argument is out of range.
        """
        kernel = kernel or ("fused" if device == "cpu" else "dali")
        if (kernel == "fused" and device != "cpu") or kernel not in ("fused", "dali", "none"):
            raise ValueError(f"kernel {kernel!r} on {device}: expected fused (CPU), dali or none")
        if min(res, batch_size, threads, prefetch) < 1 or not 0 <= rank < world_size or seed < 0:
            raise ValueError(
                "expected res, batch_size, threads, prefetch >= 1, rank < world_size, seed >= 0"
            )
        if split != "train" and exclude:
            raise ValueError(f"exclude: only in training, not for split {split!r}")
        if cache not in ("disk", "ram"):
            raise ValueError(f"cache {cache!r}: expected disk or ram")
        folder, self.manifest = load_manifest(Path(data), res=res)
        self.res = res
        self.batch_size = batch_size
        self._feed = Feed(
            open_split(folder, self.manifest, split, cache=cache, verify=verify),
            backgrounds=len(self.manifest.backgrounds),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
            kind=order or ("permuted" if split == "train" else "sequential"),
            drop_last=split == "train",
            augmentation=(augmentation or Augmentation()) if augment else None,
            exclude=exclude,
        )
        self._epoch = 0
        self._consumed = 0
        self._begun = False
        self._ahead: Ahead[tuple[Batch, int]] | None = None
        self._prefetch = prefetch
        self._engine = _Engine(
            self._feed,
            self.manifest,
            folder=folder,
            res=res,
            batch_size=batch_size,
            augment=augment,
            device=device,
            threads=threads,
            dtype=dtype,
            channels_last=channels_last,
            kernel=kernel,
            hw_decoder_load=hw_decoder_load,
        )

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._feed.left(0)

    @property
    def samples(self) -> int:
        """In the split, without those excluded."""
        return self._feed.samples

    @property
    def roles(self) -> frozenset[str]:
        """Of bg, fg_bg, mask and depth, those that the data set has.

        The others are zeros in every batch: an image of the mean, targets without meaning.
        """
        return frozenset(self._feed.shards.members)

    @property
    def seed(self) -> int:
        """Of order and augmentation."""
        return self._feed.seed

    @property
    def epoch(self) -> int:
        """The epoch that the next ``for`` runs, or goes on with."""
        return self._epoch + self._begun

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._stop()
        self._epoch, self._consumed, self._begun = epoch, 0, False

    def samples_of(self, epoch: int, step: int) -> Indexes:
        """The samples of this rank's batch ``step`` of an epoch that is run from its start."""
        return self._feed.samples_of(epoch, step)

    def keys(self, indexes: Indexes) -> list[str]:
        """The keys of some samples, as in the shards."""
        return self._feed.shards.keys(indexes)

    def __iter__(self) -> Iterator[Batch]:
        self._stop()
        self._epoch, self._consumed = (
            (self._epoch + 1, 0) if self._begun else (self._epoch, self._consumed)
        )
        self._begun = True
        steps = self._feed.steps(self._epoch, self._consumed)
        self._ahead = Ahead(self._engine.batches(steps), depth=self._prefetch)
        return self._hand_out(self._ahead)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: JSON, the same on every rank.

        Counts the batches that were handed out, not those made ahead.
        """
        epoch, consumed = self._epoch, self._consumed
        if not self._feed.left(consumed):
            epoch, consumed = epoch + 1, 0
        return {
            "version": 1,
            "split": self._feed.shards.split,
            "samples": self.samples,
            "fingerprint": self._feed.fingerprint,
            "order": self._feed.kind,
            "seed": self._feed.seed,
            "epoch": epoch,
            "consumed": consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader was, whatever its batch size and number of ranks.

        Args:
            state: From ``state_dict``; its seed replaces this loader's.

        Raises:
            DataError: It is the state of other data, or no state.
        """
        here = self.state_dict()
        for field in ("version", "split", "order", "samples", "fingerprint"):
            if state.get(field) != here[field]:
                raise DataError(
                    f"{self._feed.shards.folder}: the saved position is of data with {field} "
                    f"{state.get(field)!r}; this is {here[field]!r}; go on with the data the run "
                    "was started on, or start a new run"
                )
        self._stop()
        self._feed.seed = int(state["seed"])
        self._epoch, self._consumed, self._begun = (
            int(state["epoch"]),
            int(state["consumed"]),
            False,
        )

    def close(self) -> None:
        """Stop what is under way and free the graph. Does nothing the second time."""
        self._stop()
        self._engine.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _hand_out(self, ahead: Ahead[tuple[Batch, int]]) -> Generator[Batch, None, None]:
        with contextlib.closing(ahead):
            for batch, used in ahead:
                self._consumed = used
                if batch.bg.is_cuda:
                    # Made on the engine's stream; its memory must outlive the taker's use of it.
                    for tensor in batch:
                        tensor.record_stream(torch.cuda.current_stream(tensor.device))
                yield batch
                del batch
        if self._ahead is ahead:
            self._epoch, self._consumed, self._begun = self._epoch + 1, 0, False


class _Engine:
    """The DALI pipeline of one loader, and what is done with its outputs."""

    def __init__(
        self,
        feed: Feed,
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
        self._steps: Iterator[Step] = iter(())
        self._next: Step | None = None
        self._tail: Step | None = None
        self._iteration = 0
        self._inputs: list[list[Any]] = []
        self._waiting: collections.deque[tuple[Step | None, list[list[Any]]]] = collections.deque()
        self._images = feed.shards.images
        depth_bits = manifest.roles["depth"].bits if "depth" in manifest.roles else 8
        threshold = float(("mask" in manifest.roles and manifest.roles["mask"].threshold) or 128)
        normal = _normal(manifest, folder)
        payloads = background_payloads(folder, manifest)
        if not payloads:
            table = np.empty((0, 0, 0, 3), np.uint8)
        elif self._raw:
            table = np.stack([pixels(payload, manifest, "bg") for payload in payloads])
        else:
            table = _background_table(
                payloads,
                [f"{folder}: background {one.id}" for one in manifest.backgrounds],
                size=size_of(manifest, "fg_bg"),
                threads=threads,
            )
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
        elif kernel == "dali":
            on_gpu = self._device.type == "cuda"
            noise = np.ascontiguousarray(noise_table(res).transpose(1, 2, 0))
            if on_gpu:
                self._backgrounds = torch.from_numpy(table).to(self._device)
            self._noise: Any = torch.from_numpy(noise).to(self._device) if on_gpu else noise
            stream: Any = torch.cuda.Stream
            self._stream = stream(self._device) if on_gpu else None
        self._pipe: Any = None
        if self._raw and self._decode_only:
            return
        self._pipe = _graph(
            self._inputs_of,
            roles=self._images,
            raw={role: size_of(manifest, role) for role in self._images} if self._raw else None,
            device=self._device,
            decode_only=self._decode_only,
            batch_size=batch_size,
            threads=threads,
            res=res,
            normal=normal,
            threshold=threshold,
            depth_bits=depth_bits,
            augment=augment,
            channels_last=channels_last,
            half=dtype != torch.float32,
            hw_decoder_load=hw_decoder_load,
            bg_size=(table.shape[2], table.shape[1]) if len(table) else None,
        )

    def batches(self, steps: Iterator[Step]) -> Generator[tuple[Batch, int], None, None]:
        """Each step's batch, with the samples of the epoch used after it."""
        if self._pipe is None:
            for step in steps:
                batch = self._empty() if self._renderer is None else self._render_raw(step)
                yield batch, step.used
            return
        self._steps = steps
        try:
            self._pull()
            while self._waiting or self._next is not None:
                while len(self._waiting) < _AHEAD and self._next is not None:
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

    def _inputs_of(self, iteration: int) -> list[list[Any]]:
        """What the graph takes in one of its iterations; its sources ask in their turn.

        DALI may ask for one iteration more than there are steps: it gets the last one again, and
        what comes of it is dropped.
        """
        if iteration == self._iteration:
            step = self._next
            if step is not None:
                inputs = self._lists(step)
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
        self._pipe = None

    def _lists(self, step: Step) -> list[list[Any]]:
        """What the graph takes, in the order of its inputs: a list of n arrays each."""
        lists: list[list[Any]] = [step.payloads[role] for role in self._images]
        if self._decode_only:
            return lists
        if self._raw:
            for role, payloads in zip(self._images, lists, strict=True):
                payloads[:] = [pixels(payload, self._manifest, role) for payload in payloads]
        draws = step.draws
        # The unit square's matrix; the graph scales it to each image's size.
        lists.append(list(matrices(draws.angle, width=1, height=1, res=self._res)))
        if self._augment:
            lists.append(list(draws.colour))
            lists.append(list(draws.noise / np.float32(NOISE_UNIT)))
            lists.append(list(draws.place))
        if len(self._backgrounds):
            lists.append([self._backgrounds[index] for index in step.backgrounds.tolist()])
        if self._augment:
            lists.append([self._noise] * len(step.indexes))
        return lists

    def _collect(self) -> tuple[Batch, int] | None:
        """Finish the oldest iteration; None if it was one too many."""
        step, _ = self._waiting[0]
        try:
            try:
                outputs = self._pipe.share_outputs()
            except RuntimeError as error:
                if step is not None:
                    raise self._culprit(step, error) from error
            if step is None:
                return None
            if self._renderer is not None:
                return self._render(self._renderer, step, outputs), step.used
            return self._empty() if self._decode_only else self._hand_over(outputs), step.used
        finally:
            self._waiting.popleft()
            self._pipe.release_outputs()

    def _render(self, renderer: Renderer, step: Step, outputs: Any) -> Batch:
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

    def _render_raw(self, step: Step) -> Batch:
        """Render a batch straight from the shards' bytes."""
        assert self._renderer is not None
        shards = self._feed.shards
        images = self._places(step)
        first = shards.base[shards.shard_of(step.indexes)]
        for member, role in enumerate(self._images):
            column = ROLES.index(role)
            images[:, column, 0] = first + shards.offsets[step.indexes, member]
            images[:, column, 1:] = size_of(self._manifest, role)
        return self._renderer(images, step.draws, packed=np.ascontiguousarray(images[:, 1:3, 0]))

    def _places(self, step: Step) -> npt.NDArray[np.int64]:
        """(n, 4, 3) address, width and height of each image, so far of the backgrounds only."""
        table = self._backgrounds
        images = np.zeros((len(step.indexes), 4, 3), np.int64)
        if not len(table):
            return images
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
                tensor = to_torch_tensor(output.as_tensor(), copy=True)
                if self._channels_last:
                    tensor = tensor.permute(0, 3, 1, 2)
                tensors[role] = tensor.to(self._dtype)
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

    def _culprit(self, step: Step, error: RuntimeError) -> DataError:
        """Which image of a step does not decode: DALI seldom says, so try them one by one."""
        shards = self._feed.shards
        for role in self._images:
            reasons = _decode_faults(step.payloads[role], role)
            for index, reason in zip(step.indexes.tolist(), reasons, strict=True):
                if reason is None:
                    continue
                remedy = f"run `shardify verify --decode {shards.folder}`, then build it again"
                if shards.changed(index):
                    reason += "; the shard is not the one that the manifest describes"
                elif shards.split == "train":
                    # The rest of the shard is what was built: only this sample is lost.
                    (key,) = shards.keys(np.array([index]))
                    remedy += f", or train without it (--exclude {key})"
                return DataError(
                    f"{shards.where(index)}: {role} does not decode ({reason}); {remedy}"
                )
        return DataError(f"{shards.folder}: DALI failed: {_reason(error)}")


def _graph(
    source: Callable[[int], list[list[Any]]],
    *,
    device: torch.device,
    decode_only: bool,
    batch_size: int,
    threads: int,
    res: int,
    normal: npt.NDArray[np.float32],
    threshold: float,
    depth_bits: int,
    augment: bool,
    channels_last: bool,
    half: bool,
    hw_decoder_load: float,
    roles: Sequence[str],
    bg_size: tuple[int, int] | None,
    raw: dict[str, tuple[int, int]] | None,
) -> Any:
    """The DALI graph, for both devices.

    ``source(iteration)`` gives a list of n <= batch_size arrays for each input: the encoded images
    of ``roles`` (fg_bg, mask, depth or fewer); then, unless ``decode_only``, the unit square's
    matrix (2 x 3); if ``augment``, the colour matrix (3 x 4), the noise's strength and its place
    (2); then, on the device, with a ``bg_size`` the background (H x W x 3 uint8) and, if
    ``augment``, the noise table (S x S x 3 int8).
    With ``raw``, the sizes of raw images, the first inputs are no files but pixels (H x W x C).
    Outputs: the decoded images; or bg, fg_bg, mask and depth as a batch has them, without those
    that there are not.
    """
    gpu = device.type == "cuda"
    # All that differs between the devices:
    place = "gpu" if gpu else "cpu"
    decoder: dict[str, Any] = (
        {"device": "mixed", "hw_decoder_load": hw_decoder_load} if gpu else {"device": "cpu"}
    )

    def images(role: str, encoded: Any) -> Any:
        return fn.decoders.image(
            encoded,
            output_type=types.RGB if role == "fg_bg" else types.GRAY,
            dtype=types.UINT16 if role == "depth" and depth_bits == 16 else types.UINT8,
            adjust_orientation=False,
            **decoder,
        )

    def inputs(first: int, last: int, where: str) -> list[Any]:
        if first == last:
            return []
        return list(
            fn.external_source(
                lambda info: source(info.iteration)[first:last],
                num_outputs=last - first,
                device=where,
                batch=True,
                batch_info=True,
                no_copy=True,
            )
        )

    def constant(size: tuple[int, int]) -> Any:
        """A shape as ``peek_image_shape`` gives it."""
        return types.Constant([size[1], size[0], 3], dtype=types.INT64, device="cpu")

    def warp(image: Any, shape: Any, turn: Any) -> Any:
        """Resize and rotation in one interpolation; pixels outside repeat the edge."""
        size = fn.stack(shape[1], shape[0])
        matrix = turn * fn.reshape(fn.cast(size, dtype=types.FLOAT), shape=[2, 1])
        return fn.warp_affine(
            image,
            matrix=matrix,
            size=[res, res],
            interp_type=types.INTERP_LINEAR,
            dtype=types.FLOAT,
        )

    def dress(image: Any, mean: list[float], std: list[float]) -> Any:
        return fn.crop_mirror_normalize(
            fn.reinterpret(image, layout="HWC"),
            mean=mean,
            std=std,
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC" if channels_last else "CHW",
        )

    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=_AHEAD,
        exec_dynamic=False,
    )
    with pipe:
        encoded = inputs(0, len(roles), "cpu")
        if raw is None:
            decoded = [images(role, one) for role, one in zip(roles, encoded, strict=True)]
            shapes = [fn.peek_image_shape(one, adjust_orientation=False) for one in encoded]
        else:
            decoded = [one.gpu() if gpu else one for one in encoded]
            shapes = [constant(raw[role]) for role in roles]
        if decode_only:
            pipe.set_outputs(*decoded)
            pipe.build()
            return pipe
        if depth_bits == 16:
            # The warp knows no unsigned words.
            decoded[-1] = fn.cast(decoded[-1], dtype=types.FLOAT)
        first = len(roles) + (4 if augment else 1)
        turn, *drawn = inputs(len(roles), first, "cpu")
        tables = inputs(first, first + (bg_size is not None) + augment, place)
        made = {
            role: warp(image, shape, turn)
            for role, image, shape in zip(roles, decoded, shapes, strict=True)
        }
        if bg_size is not None:
            made["bg"] = warp(tables[0], constant(bg_size), turn)
        if augment:
            colour, strength, corner = drawn
            # By name: a GPU's operator would take a place given as an input from the GPU.
            noise = fn.slice(tables[-1], start=corner, shape=[res, res], axes=(0, 1))
            grain = noise * (strength.gpu() if gpu else strength)
            for role in ("bg", "fg_bg"):
                if role in made:
                    coloured = fn.coord_transform(made[role], M=colour[:, :3], T=colour[:, 3])
                    made[role] = dali_math.clamp(coloured + grain, 0, 255)
        if "mask" in made:
            made["mask"] = fn.cast(made["mask"] >= threshold, dtype=types.FLOAT)
        means, stds = (-normal[:, 1] / normal[:, 0]).tolist(), (1 / normal[:, 0]).tolist()
        scales = {
            "bg": (means[0], stds[0]),
            "fg_bg": (means[1], stds[1]),
            "mask": ([0.0], [1.0]),
            "depth": ([0.0], [float(2**depth_bits - 1)]),
        }
        pipe.set_outputs(*(dress(made[role], *scales[role]) for role in ROLES if role in made))
    pipe.build()
    return pipe


def _background_table(
    payloads: Sequence[Bytes], names: Sequence[str], *, size: tuple[int, int], threads: int
) -> Bytes:
    """Every background, decoded and squashed to one size with antialiasing.

    Returns:
        (n, height, width, 3) uint8, contiguous.

    Raises:
        DataError: One does not decode.
    """
    width, height = size
    table = np.empty((len(payloads), height, width, 3), np.uint8)
    queue: list[Bytes] = []
    pipe = Pipeline(batch_size=_TABLE_BATCH, num_threads=threads, device_id=None, **_ONE_BY_ONE)
    with pipe:
        encoded = fn.external_source(lambda: queue, batch=True, no_copy=True)
        image = fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)
        pipe.set_outputs(
            fn.resize(
                image, size=[height, width], interp_type=types.INTERP_TRIANGULAR, antialias=True
            )
        )
    pipe.build()
    for first in range(0, len(payloads), _TABLE_BATCH):
        queue = list(payloads[first : first + _TABLE_BATCH])
        try:
            (images,) = pipe.run()
        except RuntimeError as error:
            faults = _decode_faults(queue, "bg")
            at = next((place for place, fault in enumerate(faults) if fault), 0)
            raise DataError(
                f"{names[first + at]}: does not decode ({faults[at] or _reason(error)}); "
                "build the data set again without it"
            ) from error
        for place, one in enumerate(images):
            table[first + place] = np.asarray(one)
    return table


def _decode_faults(payloads: Sequence[Bytes], role: str) -> list[str | None]:
    """DALI's reason for each payload that it does not decode, None for the others."""
    current: list[Bytes] = []
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None, **_ONE_BY_ONE)
    with pipe:
        encoded = fn.external_source(lambda: current, batch=True, no_copy=True)
        kind = types.RGB if role in ("bg", "fg_bg") else types.GRAY
        pipe.set_outputs(fn.decoders.image(encoded, output_type=kind))
    pipe.build()
    found: list[str | None] = []
    for payload in payloads:
        current = [payload]
        try:
            pipe.run()
            found.append(None)
        except RuntimeError as error:
            found.append(_reason(error))
    return found


def _reason(error: RuntimeError) -> str:
    """The one line of DALI's message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    for line in lines:
        if "rror" in line and "Critical error" not in line and "Error in" not in line:
            return line.split("] ")[-1]
    return " ".join(filter(None, lines))[:200]


def _normal(manifest: Manifest, folder: Path) -> npt.NDArray[np.float32]:
    """(2, 2, 3): scale and shift of bg and fg_bg, from levels of 255 to normalised.

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
