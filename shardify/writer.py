"""One planned shard: payloads out of the zip, checked, into a tar with its index and its record.

Runs in a worker process. It chooses no sample and repairs none: a sample that fails a check is
left out whole and named in the record. Files appear by rename when they are complete; a shard
whose record fits the task is kept as it is.

The tar is plain USTAR with constant times, owners and modes, so equal samples give equal bytes.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardify.codecs import Variant, cost, resized, store
from shardify.drafts import Draft
from shardify.errors import BuildError, EntryError
from shardify.extract import payload
from shardify.files import write_quick
from shardify.images import Picture, parse
from shardify.index import Member, format_index
from shardify.pixels import PLAIN, Meaning, glance, measure, pixels, settle
from shardify.ranges import Handle, close_source, expect, open_source
from shardify.remote import Url, place

__all__ = [
    "ROW",
    "STATE",
    "BackgroundTask",
    "Moments",
    "Part",
    "ShardRecord",
    "ShardTask",
    "Sources",
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
_FIELDS = _HEAD + b"%b\0" + _MTIME + b"%06o\0 "
"""Size as eleven octal digits, and checksum, among what never changes."""
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
    meaning: Meaning
    variants: tuple[Variant, ...]

    def digest(self) -> str:
        """Of all that decides the shard's bytes, so that a kept shard is one of this very plan."""
        chosen = hashlib.sha256()
        for part in (
            self.name, self.roles, self.keys, self.names, self.background, self.measured,
            self.verify, self.meaning, self.variants,
        ):  # fmt: skip
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
    meaning: Meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
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
    parts: list[Part]
    """One for each variant."""
    rejected: list[list[str]]
    """``[key, member, role, reason]`` of each sample left out."""
    rules: dict[str, int]
    """Conversion rule -> pictures that it changed."""
    moments: dict[str, Moments]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardRecord":
        """The record again. Raises ValueError, TypeError or KeyError if it is none."""
        values = json.loads(text)
        values["moments"] = {role: Moments(**each) for role, each in values["moments"].items()}
        values["parts"] = [Part(**each) for each in values["parts"]]
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
        self._pieces += (name.ljust(100, b"\0"), _FIELDS % (digits, checksum), _TAIL, data, pad)
        start = self.offset + _BLOCK
        self.offset = start + size + len(pad)
        self._pending += size
        if self._pending >= _FLUSH:
            self._flush()
        return start

    def finish(self) -> str:
        """Write the end of the archive. Returns the SHA-256 of all bytes."""
        end = 2 * _BLOCK
        end += -(self.offset + end) % _RECORD
        self._pieces.append(bytes(end))
        self.offset += end
        self._flush()
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
    """Write one shard in every variant, with indexes and a record; or keep what is there and whole.

    Returns:
        The record; with 0 samples, and no files, when every sample was left out.

    Raises:
        BuildError: A zip cannot be read any more, or OUT cannot be written (disk full).
    """
    digest = task.digest()
    kept = _kept(task, digest)
    if kept is not None:
        return kept
    out = place(task.out)
    tars = [out / each.folder / f"{task.name}.tar" for each in task.variants]
    try:
        with ExitStack() as stack:
            drafts = [stack.enter_context(Draft(tar)) for tar in tars]
            record, indexes = _fill(task, digest, [TarWriter(each.file) for each in drafts])
            for tar, draft, text in zip(tars, drafts, indexes, strict=True):
                if record.samples:
                    write_quick(tar.with_suffix(".idx"), text)
                    draft.publish()
        # None of this is flushed to disk: a rerun believes digests only, and before the manifest
        # appears everything is flushed at once.
        write_quick(out / STATE / f"{task.name}.json", record.to_json().encode())
    except OSError as error:
        raise BuildError(
            f"{tars[0]}: {error.strerror or error}; the shards so far are kept: see to it and run "
            "the same command again"
        ) from error
    return record


def measure_backgrounds(task: BackgroundTask) -> Moments:
    """Mean and deviation of some backgrounds. Those that cannot be decoded are passed over."""
    moments = Moments()
    with Sources(task.sources) as descriptors:
        expect(descriptors, task.rows, task.names)
        for name, row in zip(task.names, task.rows.tolist(), strict=True):
            try:
                data = payload(descriptors[row[0]], name, *row[1:])
                # At the size of training, not of a camera: faster, and what a network will see.
                plane = glance(data, parse(data), "bg", task.meaning, least=256)
                moments.add(*measure(plane))
            except EntryError:
                continue
    return moments


def check_picture(
    data: bytes, name: bytes, role: str, verify: str, meaning: Meaning
) -> tuple[bytes, Picture, str]:
    """Check one payload as ``--verify`` asks, and convert it if its meaning is not plain.

    Returns:
        The bytes, what they are, and the rule that changed them, if one did. With ``none`` a
        JPEG or PNG goes by its name and has no size.

    Raises:
        EntryError: It is no whole picture.
    """
    if verify == "none" and meaning.mask == "threshold":
        kind = _BY_NAME.get(name.rpartition(b".")[2].lower())
        if kind:
            return data, Picture(kind, 0, 0, 0, 0), ""
    data, picture, rule = settle(data, parse(data), role, meaning)
    if verify == "decode" and not rule:
        pixels(data, picture, role, meaning)
    return data, picture, rule


_BY_NAME = {b"jpg": "jpg", b"jpeg": "jpg", b"png": "png"}


def _fill(task: ShardTask, digest: str, tars: list[TarWriter]) -> tuple[ShardRecord, list[bytes]]:
    rejected: list[list[str]] = []
    rules: Counter[str] = Counter()
    moments = {role: Moments() for role in task.roles}
    sinks = [_Sink(variant, tar) for variant, tar in zip(task.variants, tars, strict=True)]
    plain = all(variant.unchanged for variant in task.variants)
    samples = 0
    with Sources(task.sources) as descriptors:
        expect(descriptors, task.rows, task.names)
        for number, (key, names, rows) in enumerate(
            zip(task.keys, task.names, task.rows.tolist(), strict=True)
        ):
            found: list[tuple[str, bytes, Picture]] = []
            used: list[str] = []
            planes: dict[str, NDArray[Any]] = {}
            # What is measured or encoded anew is parsed in any case.
            measured = task.measured[number]
            careful = task.verify == "none" and (measured or not plain)
            verify = "headers" if careful else task.verify
            role = task.roles[0]
            try:
                for role, name, row in zip(task.roles, names, rows, strict=True):
                    data = payload(descriptors[row[0]], name, *row[1:])
                    data, picture, rule = check_picture(data, name, role, verify, task.meaning)
                    found.append((role, data, picture))
                    if rule:
                        used.append(rule)
                size = found[0][2][1:3]
                for role, _, picture in found:
                    if picture[1:3] != size:
                        _check_shape(role, picture, found[0])
                if measured or not plain:
                    for role, data, picture in found:
                        # A converted mask is 0 or 255 by now.
                        planes[role] = pixels(data, picture, role, PLAIN)
            except EntryError as error:
                member = names[task.roles.index(role)].decode(errors="replace")
                rejected.append([key, member, role, str(error)])
                continue
            if measured:
                for role, plane in planes.items():
                    moments[role].add(*measure(plane))
            if used:
                rules.update(used)
            samples += 1
            for sink in sinks:
                sink.add(key, found, planes, task.background[number], measured)
    indexes = [format_index(sink.lines).encode() for sink in sinks]
    record = ShardRecord(
        task=digest,
        name=task.name,
        samples=samples,
        parts=[sink.part(text) for sink, text in zip(sinks, indexes, strict=True)],
        rejected=rejected,
        rules=dict(sorted(rules.items())),
        moments=moments,
    )
    return record, indexes


class _Sink:
    """One variant of the shard in the making."""

    def __init__(self, variant: Variant, tar: TarWriter) -> None:
        self._variant = variant
        self._tar = tar
        self._pictures: dict[str, Counter[Picture]] = {}
        self._costs: dict[str, list[float]] = {}
        self.lines: list[list[Member]] = []

    def add(
        self,
        key: str,
        found: list[tuple[str, bytes, Picture]],
        planes: dict[str, NDArray[Any]],
        background: int,
        measured: bool,
    ) -> None:
        """Append one sample."""
        line = []
        variant, add = self._variant, self._tar.add
        for role, data, picture in found:
            if not variant.unchanged:
                plane = resized(planes[role], role, variant.res)
                data, picture = store(plane, role, picture.kind, variant)
                if measured:
                    total = self._costs.setdefault(role, [0.0, 0])
                    total[0] += cost(plane, data, picture, role)
                    total[1] += 1
            counts = self._pictures.get(role)
            if counts is None:
                counts = self._pictures[role] = Counter()
            counts[picture] += 1
            extension = f"{role}.{picture[0]}"
            full = f"{key}.{extension}"
            line.append(Member(extension, add(full.encode(), data), len(data), full))
        if background >= 0:
            full = f"{key}.bg.cls"
            line.append(Member("bg.cls", add(full.encode(), b"%05d" % background), 5, full))
        self.lines.append(line)

    def part(self, index: bytes) -> Part:
        """End the tar, and say what it holds."""
        digest = self._tar.finish()
        return Part(
            bytes=self._tar.offset,
            sha256=digest,
            index_sha256=hashlib.sha256(index).hexdigest(),
            pictures={
                role: {
                    " ".join(map(str, each[:5])): number for each, number in sorted(count.items())
                }
                for role, count in self._pictures.items()
            },
            costs=self._costs,
        )


def _check_shape(role: str, picture: Picture, first: tuple[str, bytes, Picture]) -> None:
    """A sample's pictures may differ in size, but not in aspect. 2 % or a pixel is rounding."""
    main = first[2]
    off = abs(main.width * picture.height - picture.width * main.height)
    if off > max(0.02 * main.width * picture.height, main.width, main.height):
        raise EntryError(
            f"{role} of {picture.width}x{picture.height} has another aspect than {first[0]} of "
            f"{main.width}x{main.height}"
        )


def _kept(task: ShardTask, digest: str) -> ShardRecord | None:
    """The record of an earlier run, if the shard that it describes is there, byte for byte."""
    out = place(task.out)
    try:
        record = ShardRecord.from_json((out / STATE / f"{task.name}.json").read_text())
        if record.task != digest:
            return None
        for variant, part in zip(task.variants, record.parts, strict=True):
            stem = out / variant.folder / f"{task.name}.tar"
            for suffix, wanted in ((".tar", part.sha256), (".idx", part.index_sha256)):
                if record.samples and isinstance(stem, Url) and suffix == ".tar":
                    # It was put whole, before its record was: no need to fetch it all.
                    if stem.with_suffix(suffix).stat().st_size != part.bytes:
                        return None
                elif record.samples:
                    with stem.with_suffix(suffix).open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record


class Sources:
    """The zips, opened for reading: by descriptor, or by ranges."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._handles: list[Handle] = []

    def __enter__(self) -> list[Handle]:
        try:
            for path in self._paths:
                self._handles.append(open_source(path))
        except OSError as error:
            self.__exit__()
            raise BuildError(
                f"{error.filename}: {error.strerror}; it was there a moment ago"
            ) from error
        return self._handles

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            close_source(handle)
