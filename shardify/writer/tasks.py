"""Records exchanged with workers: tasks and results.

They are pickled; ``ShardRecord`` is also stored as JSON until the manifest is written.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.images.codecs import Variant
from shardify.images.pixels import LabelEncoding
from shardify.storage.paths import PathOrUrl

STATE_FOLDER = ".shardify"
"""Folder inside OUT with the state for a rerun; deleted once the manifest is written."""
STAGING_FOLDER = "staging"
"""Folder inside it with the files of the build, until all are complete."""


def staging_folder(out: PathOrUrl, folder: str) -> PathOrUrl:
    """Return where the files of ``out / folder`` are written, until all of them are moved there."""
    return out / STATE_FOLDER / STAGING_FOLDER / folder


@dataclass(kw_only=True, slots=True)
class ChannelSums:
    """Sums over images of per-channel mean and standard deviation."""

    samples: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    def add(self, mean: list[float], std: list[float], samples: int = 1) -> None:
        """Add one image, or the sums of several with the same number of channels."""
        if not self.samples:
            self.mean, self.std = [0.0] * len(mean), [0.0] * len(std)
        self.samples += samples
        self.mean = [old + new for old, new in zip(self.mean, mean, strict=True)]
        self.std = [old + new for old, new in zip(self.std, std, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Everything that a worker needs to write one shard."""

    out: str
    name: str
    sources: list[str]
    roles: tuple[str, ...]
    """Member roles in writing order: ``fg_bg``, ``mask``, ``depth``."""
    keys: list[str]
    names: bytes
    """Entry names of each role of each sample, concatenated."""
    name_ends: NDArray[np.int64]
    """(N * roles + 1,): the end of each name, after a 0. Bytes."""
    rows: NDArray[Any]
    """(N, roles) of ``ENTRY_DTYPE``."""
    background: list[int]
    """Index into the manifest's backgrounds, or -1."""
    measured: list[bool]
    """True for samples that are measured for the statistics."""
    verify: str
    """``headers``, ``decode`` or ``none``."""
    label_encoding: LabelEncoding
    variants: tuple[Variant, ...]
    united: dict[int, tuple[list[bytes], NDArray[Any]]] = field(default_factory=dict)
    """Number of a sample -> names and (n,) ``ENTRY_DTYPE`` rows of its further masks: its mask is
    the union of all."""

    def digest(self) -> str:
        """Return a SHA-256 of all that affects the shard's bytes, to recognise a shard to keep."""
        digest = hashlib.sha256()
        for part in (
            self.name, self.roles, self.background, self.measured, self.verify, self.label_encoding,
            self.variants,
        ):  # fmt: skip
            digest.update(repr(part).encode())
        # Keys hold no NUL.
        digest.update("\0".join(self.keys).encode() + b"\0\0")
        digest.update(self.names)
        digest.update(self.name_ends.tobytes())
        digest.update(self.rows.tobytes())
        for number, (names, rows) in sorted(self.united.items()):
            digest.update(repr((number, names)).encode() + rows.tobytes())
        return digest.hexdigest()

    def entry_names(self, number: int) -> list[bytes]:
        """Return the entry names of one sample, one per role."""
        first = number * len(self.roles)
        ends = self.name_ends[first : first + len(self.roles) + 1].tolist()
        return [self.names[begin:end] for begin, end in pairwise(ends)]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundTask:
    """Backgrounds to measure."""

    sources: list[str]
    names: list[bytes]
    rows: NDArray[Any]
    """(N,) of ``ENTRY_DTYPE``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRecord:
    """One variant of a written shard."""

    bytes: int
    sha256: str
    index_sha256: str
    pictures: dict[str, dict[str, int]]
    """role -> ``"jpg 250 250 3 8"`` (kind, width, height, channels, bits) -> count."""
    costs: dict[str, list[float]]
    """role -> [sum of ``codecs.cost`` over the measured samples, their number]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """Result of a shard task; stored beside the shard until the manifest is written."""

    task: str
    name: str
    samples: int
    parts: list[VariantRecord]
    """One per variant."""
    rejected: list[list[str]]
    """``[key, member, role, reason]`` of each rejected sample."""
    rules: dict[str, int]
    """Conversion rule -> number of images that it changed."""
    moments: dict[str, ChannelSums]

    def to_json(self) -> str:
        """Return one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardRecord":
        """Parse a record. Raises ValueError, TypeError or KeyError if it is malformed."""
        values = json.loads(text)
        values["moments"] = {role: ChannelSums(**sums) for role, sums in values["moments"].items()}
        values["parts"] = [VariantRecord(**part) for part in values["parts"]]
        return cls(**values)
