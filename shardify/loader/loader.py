"""The loader: read a split's shards and yield augmented batches on the training device.

    (seed, epoch, step) ─► BatchSampler: samples, byte ranges, augmentation ─► DALI: decode
        ─► one warp to H x W ─► colour ─► noise ─► normalise ─► Batch

This module keeps the position in the epoch. ``batch_producer`` makes the batches.
"""

import contextlib
import operator
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from shardify.loader.augmentation import Augmentation
from shardify.loader.batch import WITH_HOLES, Batch, RenderSettings, RoleStats
from shardify.loader.batch_producer import BatchProducer, normalisation
from shardify.loader.batch_sampler import BatchSampler
from shardify.loader.prefetch import Prefetcher
from shardify.loader.ranks import find_rank, group_rank
from shardify.loader.sampler import EPOCH_LIMIT, KINDS, SEED_LIMIT, Indexes
from shardify.loader.shards import load_manifest, open_split
from shardify.resolution import ResolutionLike, resolution
from shardify.storage.readahead import ReadAhead


class Loader:
    """Yields the batches of one split for one rank, epoch after epoch.

    The only state is (seed, epoch, samples used). A ``for`` runs one epoch, or the rest of it after
    ``load_state_dict``. The next ``for`` runs the next epoch, even if the first loop ended early,
    but not if it took no batch.
    A thread prepares batches ahead; there are no child processes.

    Run one ``for`` at a time, in the process that created the loader, until it is closed. Any other
    use raises a RuntimeError. ``close`` may be called from any thread.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        split: str = "train",
        res: ResolutionLike = 256,
        batch_size: int = 16,
        augment: bool = True,
        seed: int = 0,
        device: str = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
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
        hw_decoder_load: float = 1.0,
        stats: RoleStats | None = None,
    ) -> None:
        """Open a split, decode its backgrounds, build the DALI graph.

        Args:
            data: Output folder of ``shardify build``.
            split: ``train``: the last global batch is dropped if it is not full. ``val``: samples
                in the order of the shards, each exactly once; the last batches may be short or
                empty.
            res: Side of the batches, or their (height, width). Pixels.
            batch_size: Samples a batch, on each rank.
            augment: Apply rotation, colour and noise; False: resize only.
            seed: Seed of order and augmentation, in [0, 2**63).
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            rank: Rank of this process. None, with ``world_size`` None: that of
                ``torch.distributed``, or of torchrun's environment, or 0.
            world_size: Number of processes that share the split; given together with ``rank``.
            threads: Decoding threads, and as many for the steps after decoding.
            dtype: float32, bfloat16 or float16.
            channels_last: Memory order NHWC.
            order: ``permuted``, ``block`` or ``sequential``; None: permuted for ``train``, else
                sequential.
            augmentation: Bounds of the augmentation; None: the defaults.
            kernel: ``fused`` (CPU only) or ``dali``; None: fused on a CPU, dali on a GPU. ``none``:
                images are decoded and dropped, and batches are empty, to measure decoding.
            cache: ``disk`` or ``ram``, see ``shards.open_split``.
            verify: Check every shard's digest first; this reads every byte.
            exclude: Keys of samples to leave out. Only for ``train``: metrics of ``val`` must cover
                the whole split.
            prefetch: Number of finished batches kept ready.
            hw_decoder_load: Share of the JPEGs decoded by a GPU's JPEG engine, in [0, 1]. Decoding
                alone is faster without the engine, but the engine leaves the compute units to the
                network.
            stats: Mean and standard deviation that normalise ``bg`` and ``fg_bg``, for a network
                that was trained on another data set: those of its training data. None: the data
                set's own.

        Raises:
            DataError: The data set, or a setting for it, is invalid; the message names it.
            ValueError: An argument is out of range.
        """
        torch_device = _parse_device(device)
        kernel = kernel or ("fused" if torch_device.type == "cpu" else "dali")
        if (kernel == "fused" and torch_device.type != "cpu") or kernel not in (
            "fused",
            "dali",
            "none",
        ):
            raise ValueError(f"kernel {kernel!r} on {device}: expected fused (CPU), dali or none")
        size = resolution(res)
        if min(batch_size, threads, prefetch) < 1:
            raise ValueError("expected batch_size, threads, prefetch >= 1")
        found = find_rank(rank, world_size)
        # Only a rank that was found can be outdated when the process group is created later.
        self._found_rank = found if rank is None else None
        if not 0 <= seed < SEED_LIMIT:
            raise ValueError(f"seed {seed}: expected 0 or more, below 2**63")
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype {dtype}: expected torch.float32, bfloat16 or float16")
        if order is not None and order not in KINDS:
            raise ValueError(f"order {order!r}: expected one of {', '.join(KINDS)}")
        if not 0 <= hw_decoder_load <= 1:
            raise ValueError(f"hw_decoder_load {hw_decoder_load}: expected 0 to 1")
        if split != "train" and exclude:
            raise ValueError(f"exclude: only in training, not for split {split!r}")
        if cache not in ("disk", "ram"):
            raise ValueError(f"cache {cache!r}: expected disk or ram")
        folder, self.manifest = load_manifest(Path(data), res=size)
        self.res = size
        self.batch_size = batch_size
        self._sampler = BatchSampler(
            open_split(folder, self.manifest, split, cache=cache, verify=verify),
            backgrounds=len(self.manifest.backgrounds),
            batch_size=batch_size,
            rank=found[0],
            world_size=found[1],
            seed=operator.index(seed),
            kind=order or ("permuted" if split == "train" else "sequential"),
            drop_last=split == "train",
            augmentation=(augmentation or Augmentation()) if augment else None,
            exclude=exclude,
        )
        # Samples come from everywhere in the shards; a slow disk reads far faster in order.
        mapped_shards = self.manifest.splits[split].shards if cache == "disk" else []
        self._readahead = ReadAhead([folder / shard.name for shard in mapped_shards])
        # Also close it for a loader that is dropped without ``close``.
        weakref.finalize(self, self._readahead.close)
        self._epoch = 0
        self._consumed = 0
        self._started = False
        self._process, self._closed = os.getpid(), False
        # Number of loops ended from outside; a loop with an older number is no longer valid.
        self._loop_number = 0
        self._prefetcher: Prefetcher[tuple[Batch, int]] | None = None
        self._prefetch = prefetch
        roles = self.manifest.roles
        with contextlib.ExitStack() as undo:
            undo.callback(self._readahead.close)
            settings = RenderSettings(
                res=size,
                batch_size=batch_size,
                device=torch_device,
                dtype=dtype,
                channels_last=channels_last,
                augment=augment,
                threads=threads,
                roles=self._sampler.shards.members,
                normal=normalisation(self.manifest, folder, stats),
                threshold=float(("mask" in roles and roles["mask"].threshold) or 128),
                depth_bits=roles["depth"].bits if "depth" in roles else 8,
                invalid={
                    role: value
                    for role in WITH_HOLES
                    if role in roles and (value := roles[role].invalid) is not None
                },
            )
            self._producer = BatchProducer(
                self._sampler,
                self.manifest,
                settings,
                kernel=kernel,
                hw_decoder_load=hw_decoder_load,
            )
            undo.pop_all()

    def __len__(self) -> int:
        """Number of batches in a whole epoch, the same on every rank."""
        return self._sampler.steps_left(0)

    @property
    def samples(self) -> int:
        """Number of samples in the split, without the excluded ones."""
        return self._sampler.samples

    @property
    def roles(self) -> frozenset[str]:
        """The roles among bg, fg_bg, mask and depth that the data set has.

        The others are zeros in every batch: for an image its mean, for a target no information.
        """
        return frozenset(self._sampler.shards.members)

    @property
    def seed(self) -> int:
        """Seed of order and augmentation."""
        return self._sampler.seed

    @property
    def epoch(self) -> int:
        """The epoch that the next ``for`` starts or continues."""
        return self._epoch + self._started

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if not 0 <= epoch < EPOCH_LIMIT:
            raise ValueError(f"epoch {epoch}: expected 0 or more, below 2**32")
        self._end_loop()
        self._epoch, self._consumed, self._started = operator.index(epoch), 0, False

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the epoch of the next ``for``, like ``DistributedSampler.set_epoch``.

        It begins at its start. Only if it is the next epoch anyway, nothing changes: a position in
        it that was restored by ``load_state_dict`` is kept.

        Raises:
            ValueError: ``epoch`` is out of range.
        """
        if epoch != self.epoch:
            self.epoch = epoch

    def samples_of(self, epoch: int, step: int) -> Indexes:
        """Return the samples of this rank's batch ``step`` in an epoch run from its start."""
        return self._sampler.samples_of(epoch, step)

    def keys(self, indexes: Indexes) -> list[str]:
        """Return the keys of some samples, as in the shards."""
        return self._sampler.shards.keys(indexes)

    def __iter__(self) -> Iterator[Batch]:
        self._check_usable()
        self._stop()
        return self._iterate(self._loop_number)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position as JSON, the same on every rank.

        Counts the batches that were yielded, not those prepared ahead.
        """
        return self._sampler.position(self._epoch, self._consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from another loader's position; batch size and number of ranks may differ.

        The seed of the other loader replaces this one's.

        Raises:
            DataError: The state belongs to other data, or is not a state.
        """
        self._sampler.check_position(state)
        self._end_loop()
        self._sampler.seed = state["seed"]
        self._epoch, self._consumed, self._started = state["epoch"], state["consumed"], False

    def close(self) -> None:
        """Stop the running loop and free the graph. A second call does nothing."""
        if os.getpid() != self._process:
            # The threads belong to the parent; waiting for them here would never end.
            return
        self._closed = True
        self._stop()
        self._readahead.close()
        self._producer.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a Loader does not survive fork; make it in the process that has it")
        if self._closed:
            raise RuntimeError("the loader is closed; open another")
        group = group_rank()
        if group and self._found_rank and group != self._found_rank:
            raise RuntimeError(
                f"the loader was opened as rank {self._found_rank[0]} of {self._found_rank[1]}, "
                f"before the process group made this process rank {group[0]} of {group[1]}; open "
                "it after the group was created, or pass rank and world_size"
            )

    def _end_loop(self) -> None:
        """End a running loop; an iterator from which no batch was asked for stays valid."""
        if self._prefetcher is not None:
            self._stop()

    def _stop(self) -> None:
        self._loop_number += 1
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _iterate(self, loop_number: int) -> Generator[Batch, None, None]:
        """Run the next epoch; until the first ``next`` its position may still change.

        Other libraries call ``iter`` only to see whether they can, or before ``set_epoch``.
        """
        self._check_current(loop_number)
        if self._started:
            self._epoch, self._consumed, self._started = self._epoch + 1, 0, False
        steps = self._sampler.steps(self._epoch, self._consumed)
        prefetcher = Prefetcher(self._producer.batches(steps), depth=self._prefetch)
        self._prefetcher = prefetcher
        with contextlib.closing(prefetcher):
            while True:
                self._check_current(loop_number)
                item = next(prefetcher, None)
                # Checked after the wait: another thread may have ended this loop meanwhile.
                self._check_current(loop_number)
                if item is None:
                    break
                batch, self._consumed = item
                self._started = True
                del item
                if batch.bg.is_cuda:
                    # Made on the producer's stream: keep the memory for the current stream, too.
                    for tensor in (*batch, *batch.valid.values()):
                        tensor.record_stream(torch.cuda.current_stream(tensor.device))
                yield batch
                del batch
        self._epoch, self._consumed, self._started = self._epoch + 1, 0, False

    def _check_current(self, loop_number: int) -> None:
        """Check that the loader is usable, and that no newer loop has begun."""
        self._check_usable()
        if loop_number != self._loop_number:
            raise RuntimeError(
                "a newer loop over this loader (or a new position) took this one's place: "
                "one loop at a time; open a loader for each"
            )


def _parse_device(name: str) -> torch.device:
    """Return the device of a name; refuse one that does not exist here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {name!r}: torch finds {count} GPUs here; expected one of them")
    return device
