"""Choose the contents of each batch of one rank: samples, byte ranges and augmentation.

Each step follows from (seed, epoch, samples used so far) only.
"""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardify.errors import DataError
from shardify.loader import sampler
from shardify.loader.augmentation import Augmentation, AugmentationDraws, draw, no_augmentation
from shardify.loader.cpu_kernels import find_header_mismatch
from shardify.loader.sampler import EPOCH_LIMIT, SEED_LIMIT, Indexes
from shardify.loader.shards import Shards, find_samples

_SAMPLES_PER_DRAW = 2048
"""Samples whose augmentation is drawn in one call: a few take NumPy as long as a hundred."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchSpec:
    """One rank's part of one step: n samples; n may be 0 in the last step of a validation."""

    indexes: Indexes
    """(n,) index of each sample in the split."""

    shards: Indexes
    """(n,) number of each sample's shard."""

    offsets: Indexes
    """(k, n) first byte in the shard of each role of ``Shards.images``."""

    sizes: Indexes
    """(k, n) payload lengths. Bytes."""

    backgrounds: Indexes
    """(n,) index of each background in the manifest; 0 without backgrounds."""

    draws: AugmentationDraws
    used: int
    """Samples of the epoch that all ranks together have used after this step."""


class BatchSampler:
    """Compute the batches of one rank over one split."""

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
        """Check the arguments; nothing is read yet.

        ``backgrounds`` is their number in the manifest, ``kind`` one of ``sampler.KINDS``.
        ``drop_last`` leaves out the last global batch if it is not full. Without ``augmentation``,
        images are only resized.

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
        self._excluded = find_samples(shards, exclude)
        self._allowed = np.setdiff1d(np.arange(len(shards)), self._excluded, assume_unique=True)
        self._cached_order: tuple[int, int, Indexes] | None = None
        if not self.steps_left(0):
            raise DataError(
                f"{shards.folder}: {len(self._allowed)} samples in split {shards.split!r}; a step "
                f"takes {batch_size * world_size} ({batch_size} on each of {world_size} ranks); "
                "choose a smaller batch"
            )

    @property
    def samples(self) -> int:
        """Number of samples in the split, without the excluded ones."""
        return len(self._allowed)

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with the samples, their bytes or their positions."""
        if not len(self._excluded):
            return self.shards.fingerprint
        text = f"{self.shards.fingerprint} {self._excluded.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def steps_left(self, consumed: int) -> int:
        """Return the number of steps left in an epoch of which ``consumed`` samples are used."""
        return sampler.steps(
            self.samples - consumed,
            batch_size=self._batch_size,
            world_size=self._world_size,
            drop_last=self._drop_last,
        )

    def samples_of(self, epoch: int, step: int, *, consumed: int = 0) -> Indexes:
        """Return the samples of this rank's batch ``step`` after ``consumed`` used samples."""
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
        """Yield the remaining steps of an epoch.

        Raises:
            DataError: An index disagrees with its shard, or a ``bg.cls`` has no valid number.
        """
        whole = self._batch_size * self._world_size
        remaining = self.steps_left(consumed)
        batches_per_draw = max(1, _SAMPLES_PER_DRAW // self._batch_size)
        for first in range(0, remaining, batches_per_draw):
            batches = [
                self.samples_of(epoch, step, consumed=consumed)
                for step in range(first, min(first + batches_per_draw, remaining))
            ]
            draws, begin = self._draws(np.concatenate(batches), epoch), 0
            for step, indexes in enumerate(batches, start=first):
                end = begin + len(indexes)
                used = min(consumed + (step + 1) * whole, self.samples)
                yield self._batch_spec(indexes, draws.part(begin, end), used)
                begin = end

    def position(self, epoch: int, consumed: int) -> dict[str, Any]:
        """Return a position in an epoch, as JSON."""
        if not self.steps_left(consumed):
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

    def check_position(self, state: Any) -> None:
        """Check that a state comes from ``position``, for the same data.

        Raises:
            DataError: It does not.
        """
        expected = self.position(0, 0)
        state = state if isinstance(state, dict) else {}
        for field in ("version", "split", "order", "samples", "fingerprint"):
            if state.get(field) != expected[field]:
                raise DataError(
                    f"{self.shards.folder}: the saved position is of data with {field} "
                    f"{state.get(field)!r}; this is {expected[field]!r}; go on with the data the "
                    "run was started on, or start a new run"
                )
        for field, end in (
            ("seed", SEED_LIMIT),
            ("epoch", EPOCH_LIMIT),
            ("consumed", self.samples + 1),
        ):
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

    def _batch_spec(self, indexes: Indexes, draws: AugmentationDraws, used: int) -> BatchSpec:
        """Return one step's batch."""
        shards = self.shards
        shard_numbers, images = shards.shard_of(indexes), len(shards.images)
        offsets, sizes = shards.offsets[indexes], shards.sizes[indexes]
        mismatch = find_header_mismatch(shards.base[shard_numbers], offsets, sizes)
        if mismatch >= 0:
            index = int(indexes[mismatch])
            raise DataError(
                f"{shards.where(index)}: {shards.header_fault(index)}; {shards.remedy()}"
            )
        return BatchSpec(
            indexes=indexes,
            shards=shard_numbers,
            offsets=np.ascontiguousarray(offsets.T[:images]),
            sizes=np.ascontiguousarray(sizes.T[:images]),
            backgrounds=shards.backgrounds(indexes, count=self._backgrounds),
            draws=draws,
            used=used,
        )

    def _order(self, epoch: int) -> Indexes:
        if self._cached_order is None or self._cached_order[:2] != (self.seed, epoch):
            places = sampler.epoch_order(self.samples, seed=self.seed, epoch=epoch, kind=self.kind)
            self._cached_order = (self.seed, epoch, self._allowed[places])
        return self._cached_order[2]
