"""What a worker is told to do, and what it answers.

Plain records that can be sent to another process, and one that is kept as JSON; they do nothing
themselves.
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

__all__ = [
    "STATE_FOLDER",
    "BackgroundTask",
    "ChannelSums",
    "ShardRecord",
    "ShardTask",
    "VariantRecord",
]

STATE_FOLDER = ".shardify"
"""Folder inside OUT for what a rerun needs; gone once the manifest is there."""


@dataclass(kw_only=True, slots=True)
class ChannelSums:
    """Sums over pictures of per-channel mean and standard deviation."""

    samples: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    def add(self, mean: list[float], std: list[float], samples: int = 1) -> None:
        """Add one picture, or the sums of several with as many channels."""
        if not self.samples:
            self.mean, self.std = [0.0] * len(mean), [0.0] * len(std)
        self.samples += samples
        self.mean = [old + new for old, new in zip(self.mean, mean, strict=True)]
        self.std = [old + new for old, new in zip(self.std, std, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """All that a worker needs to write one shard."""

    out: str
    name: str
    sources: list[str]
    roles: tuple[str, ...]
    """Member roles in the order of writing: ``fg_bg``, ``mask``, ``depth``."""
    keys: list[str]
    names: bytes
    """Entry names in the zip, of each sample, of each role, end to end."""
    name_ends: NDArray[np.int64]
    """(N * roles + 1,): where each of them ends, after a 0. Bytes."""
    rows: NDArray[Any]
    """(N, roles) of ``ROW``."""
    background: list[int]
    """Index into the manifest's backgrounds, or -1."""
    measured: list[bool]
    """Which samples count for the statistics."""
    verify: str
    """``headers``, ``decode`` or ``none``."""
    meaning: LabelEncoding
    variants: tuple[Variant, ...]

    def digest(self) -> str:
        """Of all that decides the shard's bytes, so that a kept shard is one of this very plan."""
        chosen = hashlib.sha256()
        for part in (
            self.name, self.roles, self.background, self.measured, self.verify, self.meaning,
            self.variants,
        ):  # fmt: skip
            chosen.update(repr(part).encode())
        # Keys hold no NUL.
        chosen.update("\0".join(self.keys).encode() + b"\0\0")
        chosen.update(self.names)
        chosen.update(self.name_ends.tobytes())
        chosen.update(self.rows.tobytes())
        return chosen.hexdigest()

    def names_of(self, number: int) -> list[bytes]:
        """The entry names of one sample, one a role."""
        first = number * len(self.roles)
        ends = self.name_ends[first : first + len(self.roles) + 1].tolist()
        return [self.names[begin:end] for begin, end in pairwise(ends)]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundTask:
    """Backgrounds whose pixels shall be measured."""

    sources: list[str]
    names: list[bytes]
    rows: NDArray[Any]
    """(N,) of ``ROW``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantRecord:
    """A shard in one variant."""

    bytes: int
    sha256: str
    index_sha256: str
    pictures: dict[str, dict[str, int]]
    """role -> ``"jpg 250 250 3 8"`` (kind, width, height, channels, bits) -> count."""
    costs: dict[str, list[float]]
    """role -> sum of ``codecs.cost`` over measured samples, and their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What became of a shard; kept beside it until the manifest is written."""

    task: str
    name: str
    samples: int
    parts: list[VariantRecord]
    """One for each variant."""
    rejected: list[list[str]]
    """``[key, member, role, reason]`` of each sample left out."""
    rules: dict[str, int]
    """Conversion rule -> pictures that it changed."""
    moments: dict[str, ChannelSums]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardRecord":
        """The record again. Raises ValueError, TypeError or KeyError if it is none."""
        values = json.loads(text)
        values["moments"] = {role: ChannelSums(**each) for role, each in values["moments"].items()}
        values["parts"] = [VariantRecord(**each) for each in values["parts"]]
        return cls(**values)
