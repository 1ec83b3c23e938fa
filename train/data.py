"""Open the splits of a data set as loaders.

`ShardDataset` reads the shards of `shardify build`; the trainer accepts any `Dataset`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.batch import WITH_HOLES, Batch, RoleStats
from shardify.loader.shards import load_manifest
from shardify.resolution import ResolutionLike
from train.distributed import World


class TargetFormat(NamedTuple):
    """How a data set stores the values of a target; the fields are those of the manifest's role."""

    bits: int = 8
    """8 or 16. The full range of these bits is 0 to 1 in a batch."""

    unit: str | None = None
    scale: float | None = None
    """Stored steps to a unit; None if not known."""

    max: float | None = None
    """Largest value, in the unit; None if not known."""

    invalid: int | None = None
    """Stored value that means "no value"; None if there is none."""

    @property
    def step_text(self) -> str:
        """Stored steps to a unit as a text; empty if not known."""
        return f"{self.scale:g} steps to 1 {self.unit or 'unit'}" if self.scale else ""


class Batches(Protocol):
    """Loader of one split at one resolution; each iteration is an epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as JSON values.

        ``epoch`` is the epoch of the next batch, ``consumed`` the number of its samples that all
        ranks have used; other keys identify the data.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position; refuse a state from other data."""

    def samples_of(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the sample numbers of this rank's batch ``step`` in a whole epoch."""

    def keys(self, indexes: NDArray[np.int64]) -> list[str]:
        """Return the keys of samples."""

    def close(self) -> None:
        """Free threads and memory."""


class Dataset(Protocol):
    """A data set to train and evaluate on."""

    roles: frozenset[str]
    """Roles of the data set: of bg, fg_bg, mask and depth; the others are zeros in every batch."""

    mean: dict[str, list[float]]
    """Mean per channel of ``bg`` and ``fg_bg`` in [0, 1], used to normalise images: of the data
    set, or of the data that the network to evaluate was trained on."""

    std: dict[str, list[float]]
    """Standard deviation, like ``mean``."""

    formats: dict[str, TargetFormat]
    """How ``depth`` is stored, if the data set has it; empty if not known."""

    fingerprint: str
    """Identifies the data; equal for all resolutions of the same samples."""

    def samples(self, split: str) -> int:
        """Return the number of samples of a split; 0 if it does not exist."""

    def open(
        self, split: str, *, res: ResolutionLike, batch: int, augment: bool, seed: int
    ) -> Batches:
        """Open a loader; ``train`` is permuted and drops an incomplete last batch, ``val`` not."""


@dataclass(kw_only=True)
class ShardDataset:
    """Data set written by `shardify build`.

    The options from ``threads`` on are those of ``Loader``; ``order`` and ``exclude`` apply to
    training only.

    Raises:
        DataError: The manifest is missing or not readable, or there are no composite images, or
            neither masks nor depth.
    """

    folder: Path
    world: World
    device: torch.device
    res: ResolutionLike
    """Resolution whose statistics are used, if shards of several exist. Pixels."""

    threads: int = 2
    channels_last: bool = True
    order: str = "permuted"
    cache: str = "disk"
    exclude: tuple[str, ...] = ()
    trained: RoleStats | None = None
    """Mean and standard deviation that a network to evaluate was trained with; they normalise the
    images instead of those of the data set. None: a network is trained."""

    def __post_init__(self) -> None:
        """Read the manifest and check its roles."""
        _, self.manifest = load_manifest(self.folder, res=self.res)
        self.roles = frozenset(self.manifest.roles)
        if "fg_bg" not in self.roles or not self.roles & {"mask", "depth"}:
            roles = ", ".join(sorted(self.roles)) or "none"
            raise DataError(
                f"{self.folder}: has the roles {roles}; training needs fg_bg, and mask or depth; "
                "build it from a source that has them"
            )
        # Without backgrounds, batches contain zeros (the normalised mean) in their place.
        stats = {role: role if role in self.roles else "fg_bg" for role in ("bg", "fg_bg")}
        for role in stats.values():
            if role not in self.manifest.stats:
                raise DataError(
                    f"{self.folder}: the manifest has no stats of {role}; build it again"
                )
        measured = {role: self.manifest.stats[name] for role, name in stats.items()}
        own = {role: (found.mean, found.std) for role, found in measured.items()}
        self._stats = own if self.trained is None else self.trained
        self.mean = {role: [*mean] for role, (mean, _) in self._stats.items()}
        self.std = {role: [*std] for role, (_, std) in self._stats.items()}
        self.other_stats = "" if self._stats == own else _difference(self._stats, own)
        """How the statistics of the data set differ from those that normalise it; else empty."""
        self.formats = {
            role: TargetFormat(each.bits, each.unit, each.scale, each.max, each.invalid)
            for role, each in self.manifest.roles.items()
            if role in WITH_HOLES
        }
        self.fingerprint = _fingerprint(self.manifest)

    def samples(self, split: str) -> int:
        """Return the number of samples of a split; 0 if it does not exist."""
        info = self.manifest.splits.get(split)
        return info.samples if info else 0

    def open(
        self, split: str, *, res: ResolutionLike, batch: int, augment: bool, seed: int
    ) -> Batches:
        """Open a loader of this rank's share of a split.

        Raises:
            DataError: The split is empty, or has too few samples for one batch on every rank.
        """
        # DALI takes a second to import; `--help` and errors of the manifest must not wait for it.
        from shardify.loader.loader import Loader

        return Loader(
            self.folder,
            split=split,
            res=res,
            batch_size=batch,
            augment=augment,
            seed=seed,
            device=str(self.device),
            rank=self.world.rank,
            world_size=self.world.size,
            threads=self.threads,
            channels_last=self.channels_last,
            order=self.order if split == "train" else None,
            cache=self.cache,
            exclude=self.exclude if split == "train" else (),
            stats=self._stats,
        )


def find_shards(stored: str, run: Path) -> Path:
    """Return the absolute path of the data set that ``run`` was trained on.

    Args:
        stored: The path in the settings of the run; older versions stored relative paths.
        run: Folder of the run, for the message.

    Raises:
        DataError: The data set is gone.
    """
    path = Path(stored).absolute()
    try:
        if path.is_file() or (path / "manifest.json").is_file():
            return path
    except OSError:  # No permission, for example.
        pass
    relative = "" if Path(stored).is_absolute() else f", stored as the relative path {stored!r}"
    raise DataError(
        f"{path}: no data set there{relative}; {run} was trained on it; restore it, or give its "
        "present place with --shards"
    )


def _difference(trained: RoleStats, own: RoleStats) -> str:
    """Return the mean and deviation of ``fg_bg``, of the training data and of this data set."""

    def shown(stats: RoleStats) -> str:
        return " / ".join(
            ", ".join(f"{value:.3f}" for value in values) for values in stats["fg_bg"]
        )

    return (
        f"fg_bg has mean / deviation {shown(own)}; normalised by those of the network's training "
        f"data, {shown(trained)}"
    )


def _fingerprint(manifest: Manifest) -> str:
    """Hash the source of the samples and their split, but not how they are stored."""
    parts = [f"{source.digest} {source.entries}" for source in manifest.source]
    parts += [f"{name} {split.samples}" for name, split in sorted(manifest.splits.items())]
    # The same number of samples, split in another way, would mix training and validation.
    parts += [f"{name} {manifest.options.get(name)}" for name in ("val", "group_by", "seed")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
