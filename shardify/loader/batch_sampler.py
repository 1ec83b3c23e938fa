"""What goes into each batch of one rank: which samples, where their bytes are, their draws.

Joins ``shards``, ``order`` and ``draws``; every step follows from (seed, epoch, samples used so
far) and from nothing else. This module decodes nothing, keeps no position and starts no thread.
"""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardify.errors import DataError
from shardify.loader import sampler
from shardify.loader.augmentation import Augmentation, AugmentationDraws, draw, no_augmentation
from shardify.loader.cpu_kernels import first_header_mismatch
from shardify.loader.sampler import EPOCHS, SEEDS, Indexes
from shardify.loader.shards import Shards, chosen

__all__ = ["BatchSampler", "BatchSpec"]

_DRAWN = 2048
"""Samples drawn for at a time: NumPy takes as long over a few as over a hundred."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchSpec:
    """One rank's part of one step: n samples, n perhaps 0 in the last step of a validation."""

    indexes: Indexes
    """(n,) in the split."""

    shards: Indexes
    """(n,) number of the shard that holds each."""

    begins: Indexes
    """(k, n) first byte in the shard of each of ``Shards.images``."""

    sizes: Indexes
    """(k, n) how many bytes."""

    backgrounds: Indexes
    """(n,) in the manifest; 0 where there are none."""

    draws: AugmentationDraws
    used: int
    """Samples of the epoch that all ranks together have used after this step."""


class BatchSampler:
    """The steps of one rank through one split."""

    def __init__(
        self,
        shards: Shards,
        *,
        backgrounds: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        kind: str,
        drop_last: bool,
        augmentation: Augmentation | None,
        exclude: Sequence[str] = (),
    ) -> None:
        """Nothing is read yet.

        Args:
            shards: Of the split.
            backgrounds: In the manifest.
            batch_size: Samples a rank and step.
            rank: In [0, world_size).
            world_size: Ranks.
            seed: Of order and draws.
            kind: One of ``order.KINDS``.
            drop_last: Leave out the last global batch where it is not full.
            augmentation: None: a plain resize.
            exclude: Keys of samples to go on without.

        Raises:
            DataError: A key is not in the split, or what is left makes no batch.
        """
        self.shards = shards
        self.seed = seed
        self.kind = kind
        self._backgrounds = backgrounds
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._drop_last = drop_last
        self._augmentation = augmentation
        self._without = chosen(shards, exclude)
        self._allowed = np.setdiff1d(np.arange(len(shards)), self._without, assume_unique=True)
        self._cached: tuple[int, int, Indexes] | None = None
        if not self.left(0):
            raise DataError(
                f"{shards.folder}: {len(self._allowed)} samples in split {shards.split!r}; a step "
                f"takes {batch_size * world_size} ({batch_size} on each of {world_size} ranks); "
                "choose a smaller batch"
            )

    @property
    def samples(self) -> int:
        """In the split, without those excluded."""
        return len(self._allowed)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the samples, their bytes or their places change. Hex."""
        if not len(self._without):
            return self.shards.fingerprint
        text = f"{self.shards.fingerprint} {self._without.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def left(self, consumed: int) -> int:
        """Steps until the epoch's end once ``consumed`` samples of it are used."""
        return sampler.steps(
            self.samples - consumed,
            batch_size=self._batch_size,
            world_size=self._world_size,
            drop_last=self._drop_last,
        )

    def samples_of(self, epoch: int, step: int, *, consumed: int = 0) -> Indexes:
        """The samples of this rank's batch ``step``, counted from where ``consumed`` were used."""
        start, stop = sampler.span(
            self.samples,
            consumed=consumed,
            step=step,
            batch_size=self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
        )
        return self._order(epoch)[start:stop]

    def steps(self, epoch: int, consumed: int) -> Generator[BatchSpec, None, None]:
        """The rest of an epoch.

        Raises:
            DataError: An index lies, or a ``bg.cls`` holds no background's number.
        """
        whole = self._batch_size * self._world_size
        left = self.left(consumed)
        together = max(1, _DRAWN // self._batch_size)
        for first in range(0, left, together):
            run = [
                self.samples_of(epoch, step, consumed=consumed)
                for step in range(first, min(first + together, left))
            ]
            draws, begin = self._draws(np.concatenate(run), epoch), 0
            for step, indexes in enumerate(run, start=first):
                end = begin + len(indexes)
                used = min(consumed + (step + 1) * whole, self.samples)
                yield self._step(indexes, draws.part(begin, end), used)
                begin = end

    def saved(self, epoch: int, consumed: int) -> dict[str, Any]:
        """A place in an epoch, as JSON."""
        if not self.left(consumed):
            epoch, consumed = epoch + 1, 0
        return {
            "version": 1,
            "split": self.shards.split,
            "samples": self.samples,
            "fingerprint": self.fingerprint,
            "order": self.kind,
            "seed": self.seed,
            "epoch": epoch,
            "consumed": consumed,
        }

    def check(self, state: Any) -> None:
        """Make sure that ``saved`` gave a state, for these data.

        Raises:
            DataError: It did not.
        """
        here = self.saved(0, 0)
        state = state if isinstance(state, dict) else {}
        for field in ("version", "split", "order", "samples", "fingerprint"):
            if state.get(field) != here[field]:
                raise DataError(
                    f"{self.shards.folder}: the saved position is of data with {field} "
                    f"{state.get(field)!r}; this is {here[field]!r}; go on with the data the run "
                    "was started on, or start a new run"
                )
        for field, end in (("seed", SEEDS), ("epoch", EPOCHS), ("consumed", self.samples + 1)):
            value = state.get(field)
            if type(value) is not int or not 0 <= value < end:
                raise DataError(
                    f"{self.shards.folder}: the saved position has {field} {value!r}; expected a "
                    f"whole number from 0 to {end - 1}; go on from another one"
                )

    def _draws(self, indexes: Indexes, epoch: int) -> AugmentationDraws:
        if self._augmentation is None:
            return no_augmentation(len(indexes))
        return draw(indexes, seed=self.seed, epoch=epoch, augmentation=self._augmentation)

    def _step(self, indexes: Indexes, draws: AugmentationDraws, used: int) -> BatchSpec:
        """Gather one step."""
        shards = self.shards
        numbers, images = shards.shard_of(indexes), len(shards.images)
        begins, sizes = shards.offsets[indexes], shards.sizes[indexes]
        liar = first_header_mismatch(shards.base[numbers], begins, sizes)
        if liar >= 0:
            index = int(indexes[liar])
            raise DataError(
                f"{shards.where(index)}: {shards.header_fault(index)}; {shards.remedy()}"
            )
        return BatchSpec(
            indexes=indexes,
            shards=numbers,
            begins=np.ascontiguousarray(begins.T[:images]),
            sizes=np.ascontiguousarray(sizes.T[:images]),
            backgrounds=shards.backgrounds(indexes, count=self._backgrounds),
            draws=draws,
            used=used,
        )

    def _order(self, epoch: int) -> Indexes:
        if self._cached is None or self._cached[:2] != (self.seed, epoch):
            places = sampler.epoch_order(self.samples, seed=self.seed, epoch=epoch, kind=self.kind)
            self._cached = (self.seed, epoch, self._allowed[places])
        return self._cached[2]
