"""The loader: from a split's shards to augmented batches on the training device.

    (seed, epoch, step) ─► feed.py: samples, bytes, draws ─► DALI: decode ─► one warp to R x R
                                          ─► colour ─► noise ─► normalise ─► Batch

Keeps where the loader is, and hands batches out. What is done to them stands in ``engine``, what
DALI does of it in ``graph``. It knows no loss and takes no training step.
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
from shardify.loader.batch import Batch
from shardify.loader.batch_producer import BatchProducer
from shardify.loader.batch_sampler import BatchSampler
from shardify.loader.prefetch import Prefetcher
from shardify.loader.sampler import EPOCHS, KINDS, SEEDS, Indexes
from shardify.loader.shards import load_manifest, open_split
from shardify.storage.readahead import ReadAhead

__all__ = ["Loader"]


class Loader:
    """Batches of one split for one rank, epoch after epoch.

    The loader has no state but (seed, epoch, samples used). A ``for`` runs one epoch, or what is
    left of it after ``load_state_dict``; the next ``for`` runs the next one, also where the first
    was left early. Batches are made ahead in a thread; there are no child processes.

    One ``for`` at a time, in the process that made the loader, until it is closed: what asks for
    a batch beyond that gets a RuntimeError. ``close`` may be called from any thread.
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
        hw_decoder_load: float = 1.0,
    ) -> None:
        """Open a split, decode its backgrounds, build the graph.

        Args:
            data: The folder that ``shardify build`` left.
            split: ``train``: the last global batch is dropped where it is not full. ``val``:
                samples as written, each exactly once; the last batches may be short or empty.
            res: Width and height of the batches. Pixels.
            batch_size: Samples a batch, on each rank.
            augment: Rotation, colour and noise. Off: a plain resize.
            seed: Of order and augmentation. In [0, 2**63).
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
            hw_decoder_load: Share of the JPEGs for a GPU's decoding engine, in [0, 1]. Decoding
                alone is faster without it; but it takes nothing of what a network computes with.

        Raises:
            DataError: The data set, or a setting for it, is at fault: the message names which.
            ValueError: An argument is out of range.
        """
        place = _device(device)
        kernel = kernel or ("fused" if place.type == "cpu" else "dali")
        if (kernel == "fused" and place.type != "cpu") or kernel not in ("fused", "dali", "none"):
            raise ValueError(f"kernel {kernel!r} on {device}: expected fused (CPU), dali or none")
        if min(res, batch_size, threads, prefetch) < 1 or not 0 <= rank < world_size:
            raise ValueError("expected res, batch_size, threads, prefetch >= 1, rank < world_size")
        if not 0 <= seed < SEEDS:
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
        folder, self.manifest = load_manifest(Path(data), res=res)
        self.res = res
        self.batch_size = batch_size
        self._feed = BatchSampler(
            open_split(folder, self.manifest, split, cache=cache, verify=verify),
            backgrounds=len(self.manifest.backgrounds),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            seed=operator.index(seed),
            kind=order or ("permuted" if split == "train" else "sequential"),
            drop_last=split == "train",
            augmentation=(augmentation or Augmentation()) if augment else None,
            exclude=exclude,
        )
        # Samples are taken from all over the shards: a slow disk gives them far sooner in order.
        mapped = self.manifest.splits[split].shards if cache == "disk" else []
        self._reading = ReadAhead([folder / shard.name for shard in mapped])
        # Also of a loader that is dropped, not closed.
        weakref.finalize(self, self._reading.close)
        self._epoch = 0
        self._consumed = 0
        self._begun = False
        self._process, self._closed = os.getpid(), False
        # How often a loop was ended from outside it: one of an older number is no longer valid.
        self._turn = 0
        self._ahead: Prefetcher[tuple[Batch, int]] | None = None
        self._prefetch = prefetch
        with contextlib.ExitStack() as undo:
            undo.callback(self._reading.close)
            self._engine = BatchProducer(
                self._feed,
                self.manifest,
                folder=folder,
                res=res,
                batch_size=batch_size,
                augment=augment,
                device=str(place),
                threads=threads,
                dtype=dtype,
                channels_last=channels_last,
                kernel=kernel,
                hw_decoder_load=hw_decoder_load,
            )
            undo.pop_all()

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
        if not 0 <= epoch < EPOCHS:
            raise ValueError(f"epoch {epoch}: expected 0 or more, below 2**32")
        self._stop()
        self._epoch, self._consumed, self._begun = operator.index(epoch), 0, False

    def samples_of(self, epoch: int, step: int) -> Indexes:
        """The samples of this rank's batch ``step`` of an epoch that is run from its start."""
        return self._feed.samples_of(epoch, step)

    def keys(self, indexes: Indexes) -> list[str]:
        """The keys of some samples, as in the shards."""
        return self._feed.shards.keys(indexes)

    def __iter__(self) -> Iterator[Batch]:
        self._usable()
        self._stop()
        if self._begun:
            self._epoch, self._consumed = self._epoch + 1, 0
        self._begun = True
        steps = self._feed.steps(self._epoch, self._consumed)
        self._ahead = Prefetcher(self._engine.batches(steps), depth=self._prefetch)
        return self._hand_out(self._ahead, self._turn)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: JSON, the same on every rank.

        Counts the batches that were handed out, not those made ahead.
        """
        return self._feed.saved(self._epoch, self._consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader was, whatever its batch size and number of ranks.

        Args:
            state: From ``state_dict``; its seed replaces this loader's.

        Raises:
            DataError: It is the state of other data, or no state.
        """
        self._feed.check(state)
        self._stop()
        self._feed.seed = state["seed"]
        self._epoch, self._consumed, self._begun = state["epoch"], state["consumed"], False

    def close(self) -> None:
        """Stop what is under way and free the graph. Does nothing the second time."""
        if os.getpid() != self._process:
            # The threads are the parent's: to wait for them here would take for ever.
            return
        self._closed = True
        self._stop()
        self._reading.close()
        self._engine.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _usable(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a Loader does not survive fork; make it in the process that has it")
        if self._closed:
            raise RuntimeError("the loader is closed; open another")

    def _stop(self) -> None:
        self._turn += 1
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _hand_out(
        self, ahead: Prefetcher[tuple[Batch, int]], turn: int
    ) -> Generator[Batch, None, None]:
        with contextlib.closing(ahead):
            while True:
                self._usable()
                made = next(ahead, None)
                # Only now: another thread may have ended this loop while it waited.
                if turn != self._turn:
                    self._usable()
                    raise RuntimeError(
                        "a newer loop over this loader (or a new position) took this one's place: "
                        "one loop at a time; open a loader for each"
                    )
                if made is None:
                    break
                batch, self._consumed = made
                del made
                if batch.bg.is_cuda:
                    # Made on the engine's stream; its memory must outlive the taker's use of it.
                    for tensor in batch:
                        tensor.record_stream(torch.cuda.current_stream(tensor.device))
                yield batch
                del batch
        self._epoch, self._consumed, self._begun = self._epoch + 1, 0, False


def _device(name: str) -> torch.device:
    """The device of a name; one that is there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (found := torch.cuda.device_count()):
        raise ValueError(f"device {name!r}: torch finds {found} GPUs here; expected one of them")
    return device
