"""One planned shard: payloads out of the zip, checked, into a tar with its index and its record.

Runs in a worker process. It chooses no sample and repairs none: a sample that fails a check is
left out whole and named in the record. Files appear by rename when they are complete; a shard
whose record fits the task is kept as it is.

One variant of a shard in the making: samples in, members of its tar and lines of its index out.

Appends what it is given and keeps count of it; what a sample may hold is decided before.
"""

import hashlib
from collections import Counter
from contextlib import ExitStack
from itertools import compress, count
from typing import Any

from numpy.typing import NDArray

from shardify.dataset.index import head_of, line_of
from shardify.errors import BuildError, EntryError
from shardify.images.channel_stats import reduced_stats
from shardify.images.codecs import Variant, cost, resized, store
from shardify.images.parser import ImageInfo, parse
from shardify.images.pixels import STANDARD
from shardify.sources.catalog import ENTRY_DTYPE, OpenSources
from shardify.sources.zip_extract import read_payload
from shardify.storage.atomic_write import AtomicFile, write_atomic
from shardify.storage.paths import Url, as_path
from shardify.storage.readers import announce_reads
from shardify.writer.fast_copy import CopyResult, FastCopier
from shardify.writer.sample_check import Figure, check_sample, measure_samples
from shardify.writer.tar_writer import TarWriter
from shardify.writer.tasks import (
    STATE_FOLDER,
    BackgroundTask,
    ChannelSums,
    ShardRecord,
    ShardTask,
    VariantRecord,
)

__all__ = [
    "ENTRY_DTYPE",
    "STATE_FOLDER",
    "BackgroundTask",
    "ChannelSums",
    "OpenSources",
    "ShardRecord",
    "ShardTask",
    "TarWriter",
    "VariantRecord",
    "VariantWriter",
    "measure_backgrounds",
    "prepare",
    "run_task",
    "write_shard",
]


class VariantWriter:
    """One variant of a task's shard.

    Args:
        task: Whose.
        variant: Which.
        tar: Where the members go.
    """

    def __init__(self, task: ShardTask, variant: Variant, tar: TarWriter) -> None:
        self._task = task
        self._variant = variant
        self._tar = tar
        self._counts: Counter[tuple[ImageInfo, ...]] = Counter()
        self._costs: dict[str, list[float]] = {}
        self._samples = 0
        self._text = bytearray()
        """Lines of the index."""

    def add(
        self,
        key: str,
        found: list[tuple[str, bytes, ImageInfo]],
        planes: dict[str, NDArray[Any]],
        background: int,
        measured: bool,
    ) -> None:
        """Append one sample.

        Args:
            key: Its key.
            found: Role, payload and what that is, of each member.
            planes: role -> pixels, where the variant encodes anew.
            background: Index into the manifest's backgrounds, or -1.
            measured: Whether it counts for what encoding costs.
        """
        line = []
        variant, add = self._variant, self._tar.add
        pictures = []
        for role, data, picture in found:
            if not variant.unchanged:
                plane = resized(planes[role], role, variant.res)
                data, picture = store(plane, role, picture.kind, variant)
                if measured:
                    total = self._costs.setdefault(role, [0.0, 0])
                    total[0] += cost(plane, data, picture, role)
                    total[1] += 1
            pictures.append(picture)
            extension = f"{role}.{picture.kind}"
            full = f"{key}.{extension}"
            line.append((extension, add(full.encode(), data), len(data), full))
        if background >= 0:
            full, data = f"{key}.bg.cls", b"%05d" % background
            line.append(("bg.cls", add(full.encode(), data), len(data), full))
        self._counts[tuple(pictures)] += 1
        self._text += f"{line_of(line)}\n".encode()
        self._samples += 1

    def copy(self, copied: CopyResult, samples: int) -> None:
        """Count samples that a copier has appended to the tar; the same bytes as by ``add``."""
        self._counts.update(copied.counts)
        self._text += copied.text
        self._samples += samples

    def index(self) -> bytes:
        """The index of all that was added."""
        return head_of(self._samples).encode() + self._text

    def part(self, index: bytes) -> VariantRecord:
        """End the tar, and say what it holds."""
        digest = self._tar.finish()
        pictures: dict[str, dict[str, int]] = {}
        for column, role in enumerate(self._task.roles if self._counts else ()):
            kinds: Counter[ImageInfo] = Counter()
            for each, times in self._counts.items():
                kinds[each[column]] += times
            ranked = sorted(kinds.items())
            pictures[role] = {" ".join(map(str, each[:5])): times for each, times in ranked}
        return VariantRecord(
            bytes=self._tar.offset,
            sha256=digest,
            index_sha256=hashlib.sha256(index).hexdigest(),
            pictures=pictures,
            costs=self._costs,
        )


def prepare() -> None:
    """Import what the first picture would, before there are several workers to do it."""
    from PIL import Image

    Image.preinit()


def run_task(task: ShardTask | BackgroundTask) -> "ShardRecord | ChannelSums":
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
    kept = _reusable_record(task, digest)
    if kept is not None:
        return kept
    out = as_path(task.out)
    tars = [out / each.folder / f"{task.name}.tar" for each in task.variants]
    try:
        with ExitStack() as stack:
            drafts = [stack.enter_context(AtomicFile(tar)) for tar in tars]
            record, indexes = _fill(task, digest, [TarWriter(each.file) for each in drafts])
            for tar, draft, text in zip(tars, drafts, indexes, strict=True):
                if record.samples:
                    write_atomic(tar.with_suffix(".idx"), text, durable=False)
                    draft.publish()
        # None of this is flushed to disk: a rerun believes digests only, and before the manifest
        # appears everything is flushed at once.
        write_atomic(
            out / STATE_FOLDER / f"{task.name}.json", record.to_json().encode(), durable=False
        )
    except OSError as error:
        raise BuildError(
            f"{tars[0]}: {error.strerror or error}; the shards so far are kept: see to it and run "
            "the same command again"
        ) from error
    return record


def measure_backgrounds(task: BackgroundTask) -> ChannelSums:
    """Mean and deviation of some backgrounds. Those that cannot be decoded are passed over."""
    moments = ChannelSums()
    with OpenSources(task.sources) as descriptors:
        announce_reads(descriptors, task.rows, task.names)
        for name, row in zip(task.names, task.rows.tolist(), strict=True):
            try:
                data = read_payload(descriptors[row[0]], name, *row[1:])
                # At the size of training, not of a camera: faster, and what a network will see.
                moments.add(*reduced_stats(data, parse(data), "bg", STANDARD, least=160))
            except EntryError:
                continue
    return moments


def _fill(task: ShardTask, digest: str, tars: list[TarWriter]) -> tuple[ShardRecord, list[bytes]]:
    rejected: list[list[str]] = []
    rules: Counter[str] = Counter()
    moments = {role: ChannelSums() for role in task.roles}
    sinks = [
        VariantWriter(task, variant, tar) for variant, tar in zip(task.variants, tars, strict=True)
    ]
    samples, number = 0, 0
    with OpenSources(task.sources) as handles:
        announce_reads(handles, task.rows, map(task.names_of, range(len(task.keys))))
        copier = FastCopier(task, handles)
        known = measure_samples(task, handles, copier)
        copier.exclude(each for each in compress(count(), task.measured) if each not in known)
        while number < len(task.keys):
            first = number
            copied = copier.copy(first, tars[0])
            figures: list[list[Figure]] = []
            if copied is not None:
                number = copied.stop
                sinks[0].copy(copied, number - first)
                figures += [known[each] for each in range(first, number) if each in known]
            else:
                number += 1
                sample = check_sample(task, handles, first, known.get(first, []))
                if isinstance(sample, list):
                    rejected.append(sample)
                    continue
                rules.update(sample.rules)
                figures.append(sample.stats)
                for sink in sinks:
                    sink.add(
                        task.keys[first],
                        sample.members,
                        sample.pixels,
                        task.background[first],
                        task.measured[first],
                    )
                if not sample.rules:
                    copier.learn_header(sample.members)
            samples += number - first
            for each in figures:
                for role, figure in zip(task.roles, each, strict=False):
                    moments[role].add(*figure)
    indexes = [sink.index() for sink in sinks]
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


def _reusable_record(task: ShardTask, digest: str) -> ShardRecord | None:
    """The record of an earlier run, if the shard that it describes is there, byte for byte."""
    out = as_path(task.out)
    try:
        record = ShardRecord.from_json((out / STATE_FOLDER / f"{task.name}.json").read_text())
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
