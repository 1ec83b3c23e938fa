"""Where a run's batches come from: the splits of a data set, opened as loaders.

``ShardDataset`` is the one that a user has; whatever offers the same few methods trains as well.
Checks that the data set has the splits and roles that training needs; decodes nothing itself.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.loader.shards import load_manifest
from train.distributed import World

__all__ = ["Batches", "Dataset", "ShardDataset"]


class Batches(Protocol):
    """One split at one resolution: each ``for`` is an epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]:
        """Where it is, in JSON, after the last batch that was handed out.

        ``epoch`` is the one that the next batch belongs to, ``consumed`` how many of its samples
        were used on all ranks; other keys tell other data apart.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; refuses the state of other data."""

    def samples_of(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Numbers of the samples in this rank's batch ``step`` of a whole epoch."""

    def keys(self, indexes: NDArray[np.int64]) -> list[str]:
        """Names of samples."""

    def close(self) -> None:
        """Free threads and memory."""


class Dataset(Protocol):
    """A data set that networks are trained and judged on."""

    roles: frozenset[str]
    """Of bg, fg_bg, mask and depth, those that it has; the others are zeros in every batch."""

    mean: dict[str, list[float]]
    """Per channel, in [0, 1], of ``bg`` and ``fg_bg``: what images were normalised by."""

    std: dict[str, list[float]]
    """As ``mean``."""

    fingerprint: str
    """Tells other data apart; the same for every resolution of the same samples."""

    def samples(self, split: str) -> int:
        """How many samples a split has; 0 if it does not exist."""

    def open(self, split: str, *, res: int, batch: int, augment: bool, seed: int) -> Batches:
        """A loader; ``train`` is permuted and drops its last partial batch, ``val`` is neither."""


class ShardDataset:
    """What `shardify build` made."""

    def __init__(
        self,
        folder: str,
        *,
        world: World,
        device: torch.device,
        threads: int = 2,
        channels_last: bool = True,
        order: str = "permuted",
        cache: str = "disk",
        exclude: tuple[str, ...] = (),
        res: int,
    ) -> None:
        """Read the manifest and check what it offers.

        Args:
            folder: The data set.
            world: Which share of every batch is this process's.
            device: Where batches are to lie.
            threads: How many prepare them.
            channels_last: Memory format of the images.
            order: Of training samples, see ``Loader``.
            cache: ``disk`` or ``ram``, see ``Loader``.
            exclude: Keys of training samples to go on without.
            res: Where shards were built at several resolutions, the one whose means count. Pixels.

        Raises:
            DataError: There is no manifest that this program reads, or it has no composite
                images, or neither masks nor depth.
        """
        self.folder = Path(folder)
        self._world = world
        self._device = device
        self._threads = threads
        self._channels_last = channels_last
        self._order = order
        self._cache = cache
        self._exclude = exclude
        _, self.manifest = load_manifest(self.folder, res=res)
        self.roles = frozenset(self.manifest.roles)
        if "fg_bg" not in self.roles or not self.roles & {"mask", "depth"}:
            there = ", ".join(sorted(self.roles)) or "none"
            raise DataError(
                f"{self.folder}: only the roles {there}; training needs fg_bg, and mask or depth; "
                "build it from a source that has them"
            )
        # Without backgrounds a batch has zeros in their place, which stand for a mean image.
        stats = {role: role if role in self.roles else "fg_bg" for role in ("bg", "fg_bg")}
        for role in stats.values():
            if role not in self.manifest.stats:
                raise DataError(f"{self.folder}: manifest has no stats of {role}; build it again")
        self.mean = {role: self.manifest.stats[of].mean for role, of in stats.items()}
        self.std = {role: self.manifest.stats[of].std for role, of in stats.items()}
        self.fingerprint = _fingerprint(self.manifest)

    def samples(self, split: str) -> int:
        """How many samples a split has; 0 if it does not exist."""
        found = self.manifest.splits.get(split)
        return found.samples if found else 0

    def open(self, split: str, *, res: int, batch: int, augment: bool, seed: int) -> Batches:
        """A loader on this process's share of a split.

        Raises:
            DataError: The split is empty, or has too few samples for one batch on every rank.
        """
        # DALI takes a second to load, which `--help` and errors about the manifest need not wait.
        from shardify.loader.loader import Loader

        return Loader(
            self.folder,
            split=split,
            res=res,
            batch_size=batch,
            augment=augment,
            seed=seed,
            device=str(self._device),
            rank=self._world.rank,
            world_size=self._world.size,
            threads=self._threads,
            channels_last=self._channels_last,
            order=self._order if split == "train" else None,
            cache=self._cache,
            exclude=self._exclude if split == "train" else (),
        )


def _fingerprint(manifest: Manifest) -> str:
    """Of where the samples came from and how they were split; not of how they are stored."""
    parts = [f"{source.digest} {source.entries}" for source in manifest.source]
    parts += [f"{name} {split.samples}" for name, split in sorted(manifest.splits.items())]
    # As many samples drawn another way would be other samples: those of val were trained on.
    parts += [f"{name} {manifest.options.get(name)}" for name in ("val", "group_by", "seed")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
