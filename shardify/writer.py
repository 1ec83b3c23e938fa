"""One planned shard: payloads out of the zip, checked, into a tar with its index and its record.

Runs in a worker process. It chooses no sample and repairs none: a sample that fails a check is
left out whole and named in the record. Files appear by rename when they are complete; a shard
whose record fits the task is kept as it is.

The tar is plain USTAR with constant times, owners and modes, so equal samples give equal bytes.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardify.errors import BuildError, EntryError
from shardify.extract import payload
from shardify.files import TEMPORARY, publish, write_atomic
from shardify.images import Picture, decode, measure, parse
from shardify.index import Member, format_index

__all__ = [
    "ROW",
    "STATE",
    "BackgroundTask",
    "Moments",
    "ShardRecord",
    "ShardTask",
    "TarWriter",
    "check_picture",
    "measure_backgrounds",
    "run_task",
    "write_shard",
]

STATE = ".shardify"
"""Folder inside OUT for what a rerun needs; gone once the manifest is there."""

ROW = np.dtype(
    [("source", "<u2"), ("offset", "<i8"), ("limit", "<i8"), ("packed", "<i8"), ("size", "<i8"),
     ("crc", "<u4"), ("method", "<u2")]
)  # fmt: skip
"""One entry of a zip, as a task carries it: columns of ``archive.Entries``."""

_FLUSH = 8 << 20
_BLOCK = 512
_RECORD = 10240

_HEAD = b"0000644\0" + b"0000000\0" * 2
_TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
_MTIME = b"00000000000\0"
_BASE = sum(_HEAD) + sum(_MTIME) + 8 * 0x20 + sum(_TAIL)
_PADS = [bytes(-size % _BLOCK) for size in range(_BLOCK)]


@dataclass(kw_only=True, slots=True)
class Moments:
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
    names: list[list[bytes]]
    """Entry names in the zip, of each sample, of each role."""
    rows: NDArray[Any]
    """(N, roles) of ``ROW``."""
    background: list[int]
    """Index into the manifest's backgrounds, or -1."""
    measured: list[bool]
    """Which samples count for the statistics."""
    verify: str
    """``headers``, ``decode`` or ``none``."""

    def digest(self) -> str:
        """Of all that decides the shard's bytes, so that a kept shard is one of this very plan."""
        chosen = hashlib.sha256()
        for part in (self.name, self.roles, self.keys, self.names, self.background, self.verify):
            chosen.update(repr(part).encode())
        chosen.update(self.rows.tobytes())
        return chosen.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundTask:
    """Backgrounds whose pixels shall be measured."""

    sources: list[str]
    names: list[bytes]
    rows: NDArray[Any]
    """(N,) of ``ROW``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What became of a shard; kept beside it until the manifest is written."""

    task: str
    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str
    rejected: list[list[str]]
    """``[key, member, role, reason]`` of each sample left out."""
    pictures: dict[str, dict[str, int]]
    """role -> ``"jpg 250 250 3 8"`` (kind, width, height, channels, bits) -> count."""
    moments: dict[str, Moments]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardRecord":
        """The record again. Raises ValueError, TypeError or KeyError if it is none."""
        values = json.loads(text)
        values["moments"] = {role: Moments(**each) for role, each in values["moments"].items()}
        return cls(**values)


class TarWriter:
    """A USTAR stream that is digested as it is written, in few large writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pieces: list[bytes] = []
        self._pending = 0
        self._digest = hashlib.sha256()
        self.offset = 0
        """Bytes so far."""

    def add(self, name: bytes, data: bytes) -> int:
        """Append one file. Returns the offset of its first payload byte.

        Args:
            name: At most 100 bytes.
            data: Payload, under 8 GiB.
        """
        size = len(data)
        digits = b"%011o" % size
        checksum = _BASE + sum(name) + sum(digits)
        pad = _PADS[size % _BLOCK]
        self._pieces += (
            name.ljust(100, b"\0"), _HEAD, digits, b"\0", _MTIME, b"%06o\0 " % checksum, _TAIL,
            data, pad,
        )  # fmt: skip
        start = self.offset + _BLOCK
        self.offset = start + size + len(pad)
        self._pending += size
        if self._pending >= _FLUSH:
            self._flush()
        return start

    def finish(self) -> str:
        """Write the end of the archive and flush to disk. Returns the SHA-256 of all bytes."""
        end = 2 * _BLOCK
        end += -(self.offset + end) % _RECORD
        self._pieces.append(bytes(end))
        self.offset += end
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _flush(self) -> None:
        block = b"".join(self._pieces)
        self._pieces.clear()
        self._pending = 0
        self._digest.update(block)
        self._file.write(block)


def run_task(task: ShardTask | BackgroundTask) -> "ShardRecord | Moments":
    """What a worker does with a task, whichever it is."""
    return write_shard(task) if isinstance(task, ShardTask) else measure_backgrounds(task)


def write_shard(task: ShardTask) -> ShardRecord:
    """Write one shard, its index and its record, or keep them if they are there and whole.

    Returns:
        The record; with 0 samples, and no files, when every sample was left out.

    Raises:
        BuildError: A zip cannot be read any more, or OUT cannot be written (disk full).
    """
    digest = task.digest()
    kept = _kept(task, digest)
    if kept is not None:
        return kept
    out = Path(task.out)
    tar, index = out / f"{task.name}.tar", out / f"{task.name}.idx"
    temporary = tar.with_name(tar.name + TEMPORARY)
    try:
        with temporary.open("wb", buffering=0) as file:
            record, text = _fill(task, digest, TarWriter(file))
        if record.samples:
            write_atomic(index, text)
            publish(temporary, tar)
        else:
            temporary.unlink()
        write_atomic(out / STATE / f"{task.name}.json", record.to_json().encode())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BuildError(
            f"{tar}: {error.strerror or error}; the shards so far are kept: see to it and run the "
            "same command again"
        ) from error
    return record


def measure_backgrounds(task: BackgroundTask) -> Moments:
    """Mean and deviation of some backgrounds. Those that cannot be decoded are passed over."""
    moments = Moments()
    with _Sources(task.sources) as descriptors:
        for name, row in zip(task.names, task.rows.tolist(), strict=True):
            try:
                data = payload(descriptors[row[0]], name, *row[1:])
                moments.add(*measure(data, parse(data), "bg"))
            except EntryError:
                continue
    return moments


def check_picture(data: bytes, name: bytes, verify: str) -> Picture:
    """Check one payload as ``--verify`` asks.

    Returns:
        What the picture is; with ``none``, only the kind that its name claims, and zeros.

    Raises:
        EntryError: It is no whole picture.
    """
    if verify == "none":
        extension = name.rpartition(b".")[2].lower()
        kind = "jpg" if extension in (b"jpg", b"jpeg") else extension.decode("ascii", "replace")
        return Picture(kind, 0, 0, 0, 0)
    picture = parse(data)
    if verify == "decode":
        decode(data, mode="RGB" if picture.channels > 2 else "L")
    return picture


def _fill(task: ShardTask, digest: str, tar: TarWriter) -> tuple[ShardRecord, bytes]:
    rejected: list[list[str]] = []
    lines: list[list[Member]] = []
    pictures = {role: Counter[Picture]() for role in task.roles}
    moments = {role: Moments() for role in task.roles}
    add = tar.add
    with _Sources(task.sources) as descriptors:
        for number, (key, names, rows) in enumerate(
            zip(task.keys, task.names, task.rows.tolist(), strict=True)
        ):
            found: list[tuple[str, bytes, Picture]] = []
            # What is measured is parsed in any case: it tells the sizes where nothing else does.
            measured = task.measured[number]
            verify = "headers" if measured and task.verify == "none" else task.verify
            try:
                for role, name, row in zip(task.roles, names, rows, strict=True):
                    data = payload(descriptors[row[0]], name, *row[1:])
                    found.append((role, data, check_picture(data, name, verify)))
                _check_shapes(found)
                measures = [
                    (role, measure(data, picture, role))
                    for role, data, picture in (found if measured else ())
                ]
            except EntryError as error:
                at = min(len(found), len(names) - 1)
                member = names[at].decode(errors="replace")
                rejected.append([key, member, task.roles[at], str(error)])
                continue
            for role, values in measures:
                moments[role].add(*values)
            line = []
            for role, data, picture in found:
                pictures[role][picture] += 1
                extension = f"{role}.{picture[0]}"
                full = f"{key}.{extension}"
                line.append(Member(extension, add(full.encode(), data), len(data), full))
            if task.background[number] >= 0:
                full = f"{key}.bg.cls"
                start = add(full.encode(), b"%05d" % task.background[number])
                line.append(Member("bg.cls", start, 5, full))
            lines.append(line)
    text = format_index(lines).encode()
    record = ShardRecord(
        task=digest,
        name=task.name,
        samples=len(lines),
        sha256=tar.finish(),
        bytes=tar.offset,
        index_sha256=hashlib.sha256(text).hexdigest(),
        rejected=rejected,
        pictures={
            role: {" ".join(map(str, picture)): number for picture, number in sorted(count.items())}
            for role, count in pictures.items()
        },
        moments=moments,
    )
    return record, text


def _check_shapes(found: list[tuple[str, bytes, Picture]]) -> None:
    """A sample's pictures may differ in size, but not in aspect. 2 % or a pixel is rounding."""
    _, _, first = found[0]
    for role, _, picture in found[1:]:
        off = abs(first.width * picture.height - picture.width * first.height)
        if off > max(0.02 * first.width * picture.height, first.width, first.height):
            raise EntryError(
                f"{role} of {picture.width}x{picture.height} has another aspect than "
                f"{found[0][0]} of {first.width}x{first.height}"
            )


def _kept(task: ShardTask, digest: str) -> ShardRecord | None:
    """The record of an earlier run, if the shard that it describes is there, byte for byte."""
    out = Path(task.out)
    try:
        record = ShardRecord.from_json((out / STATE / f"{task.name}.json").read_text())
        if record.task != digest:
            return None
        if record.samples:
            with (out / f"{task.name}.tar").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                    return None
            with (out / f"{task.name}.idx").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.index_sha256:
                    return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record


class _Sources:
    """The zips, opened for reading by descriptor."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._descriptors: list[int] = []

    def __enter__(self) -> list[int]:
        try:
            for path in self._paths:
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.__exit__()
            raise BuildError(
                f"{error.filename}: {error.strerror}; it was there a moment ago"
            ) from error
        return self._descriptors

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
