"""Write one shard in every variant: tar, index and record.

Runs in a worker process. A sample that fails a check is rejected as a whole and listed in the
record. Files appear by rename when they are complete, in the staging folder; the parent moves them
to their final names. A shard whose record fits the task is kept.
"""

import hashlib
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import compress, count
from typing import Any

from numpy.typing import NDArray

from shardify.dataset.index import index_header, index_line
from shardify.errors import BuildError, EntryError
from shardify.images.channel_stats import reduced_stats
from shardify.images.codecs import Variant, encode_pixels, encoding_loss, resize
from shardify.images.parser import ImageInfo, parse
from shardify.images.pixels import STANDARD
from shardify.sources.catalog import OpenSources
from shardify.sources.zip_extract import read_payload
from shardify.storage.atomic_write import AtomicFile, write_atomic
from shardify.storage.paths import Url, as_path, file_sha256
from shardify.storage.readers import announce_reads
from shardify.writer.fast_copy import CopyResult, FastCopier
from shardify.writer.sample_check import check_sample, measure_samples
from shardify.writer.tar_writer import TarWriter
from shardify.writer.tasks import (
    STATE_FOLDER,
    BackgroundTask,
    ChannelSums,
    ShardRecord,
    ShardTask,
    VariantRecord,
    staging_folder,
)


class VariantWriter:
    """Writes one variant of a shard: members to its tar, lines to its index.

    Args:
        task: Task of the shard.
        variant: The variant.
        tar: Receives the members.
    """

    def __init__(self, task: ShardTask, variant: Variant, tar: TarWriter) -> None:
        self._task = task
        self._variant = variant
        self._tar = tar
        self._counts: Counter[tuple[ImageInfo, ...]] = Counter()
        self._costs: dict[str, list[float]] = {}
        self._index = bytearray()
        """Lines of the index."""

    def add(
        self,
        key: str,
        members: list[tuple[str, bytes, ImageInfo]],
        planes: dict[str, NDArray[Any]],
        background: int,
        measured: bool,
    ) -> None:
        """Append one sample.

        Args:
            key: Sample key.
            members: Role, payload and image header of each member.
            planes: role -> pixels; used only if the variant re-encodes images.
            background: Index into the manifest's backgrounds, or -1.
            measured: Whether to measure the loss of re-encoding on this sample.
        """
        index_entries = []
        variant, add = self._variant, self._tar.add
        infos = []
        for role, data, info in members:
            if not variant.unchanged:
                invalid = self._task.label_encoding.invalid(role)
                plane = resize(planes[role], role, variant.res, invalid)
                data, info = encode_pixels(plane, role, info.kind, variant, invalid)
                if measured:
                    total = self._costs.setdefault(role, [0.0, 0])
                    total[0] += encoding_loss(plane, data, info, role)
                    total[1] += 1
            infos.append(info)
            extension = f"{role}.{info.kind}"
            name = f"{key}.{extension}"
            index_entries.append((extension, add(name.encode(), data), len(data), name))
        if background >= 0:
            name, data = f"{key}.bg.cls", b"%05d" % background
            index_entries.append(("bg.cls", add(name.encode(), data), len(data), name))
        self._counts[tuple(infos)] += 1
        self._index += f"{index_line(index_entries)}\n".encode()

    def copy(self, copied: CopyResult) -> None:
        """Record samples that a ``FastCopier`` has appended to the tar, as ``add`` would."""
        self._counts.update(copied.counts)
        self._index += copied.text

    def index(self) -> bytes:
        """Return the index of all samples added."""
        return index_header(self._counts.total()).encode() + self._index

    def finish(self, index: bytes) -> VariantRecord:
        """Finish the tar and return its record."""
        digest = self._tar.finish()
        images: dict[str, dict[str, int]] = {}
        for column, role in enumerate(self._task.roles if self._counts else ()):
            counts: Counter[ImageInfo] = Counter()
            for infos, samples in self._counts.items():
                counts[infos[column]] += samples
            ordered = sorted(counts.items())
            images[role] = {" ".join(map(str, info[:5])): number for info, number in ordered}
        return VariantRecord(
            bytes=self._tar.offset,
            sha256=digest,
            index_sha256=hashlib.sha256(index).hexdigest(),
            pictures=images,
            costs=self._costs,
        )


def prepare() -> None:
    """Import what the first image needs, before the workers are forked."""
    from PIL import Image

    Image.preinit()


def run_task(task: ShardTask | BackgroundTask) -> "ShardRecord | ChannelSums":
    """Run a shard task or a background task; the target of the worker pools."""
    return write_shard(task) if isinstance(task, ShardTask) else measure_backgrounds(task)


def write_shard(task: ShardTask) -> ShardRecord:
    """Write one shard in every variant, with indexes and a record, or keep a complete one.

    Returns:
        The record. If every sample was rejected, it has 0 samples and no files are written.

    Raises:
        BuildError: A source can no longer be read, or OUT cannot be written (disk full).
    """
    digest = task.digest()
    existing = _reusable_record(task, digest)
    if existing is not None:
        return existing
    out = as_path(task.out)
    tars = [staging_folder(out, variant.folder) / f"{task.name}.tar" for variant in task.variants]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(AtomicFile(tar)) for tar in tars]
            record, indexes = _write_samples(task, digest, [TarWriter(file.file) for file in files])
            for tar, file, index in zip(tars, files, indexes, strict=True):
                if record.samples:
                    write_atomic(tar.with_suffix(".idx"), index, durable=False)
                    file.publish()
        # Not flushed to disk here: a rerun compares digests, and the parent flushes all files
        # before it writes the manifest.
        write_atomic(
            out / STATE_FOLDER / f"{task.name}.json", record.to_json().encode(), durable=False
        )
    except OSError as error:
        raise BuildError(
            f"{tars[0]}: {error.strerror or error}; finished shards are kept: fix the cause, run "
            "the same command again"
        ) from error
    return record


def measure_backgrounds(task: BackgroundTask) -> ChannelSums:
    """Return sums of mean and deviation of some backgrounds; skip those that fail to decode."""
    sums = ChannelSums()
    with OpenSources(task.sources) as handles:
        announce_reads(handles, task.rows, task.names)
        for name, (source, *row) in zip(task.names, task.rows.tolist(), strict=True):
            with suppress(EntryError):
                data = read_payload(handles[source], name, *row)
                # Near the size used in training: faster, and closer to the input of a network.
                sums.add(*reduced_stats(data, parse(data), "bg", STANDARD, least=160))
    return sums


def _write_samples(
    task: ShardTask, digest: str, tars: list[TarWriter]
) -> tuple[ShardRecord, list[bytes]]:
    rejected: list[list[str]] = []
    rules: Counter[str] = Counter()
    moments = {role: ChannelSums() for role in task.roles}
    writers = [
        VariantWriter(task, variant, tar) for variant, tar in zip(task.variants, tars, strict=True)
    ]
    number = 0
    with OpenSources(task.sources) as handles:
        announce_reads(handles, task.rows, map(task.entry_names, range(len(task.keys))))
        copier = FastCopier(task, handles)
        copier.exclude(task.united)
        known_stats = measure_samples(task, handles, copier)
        measured = set(compress(count(), task.measured))
        copier.exclude(measured - known_stats.keys())
        while number < len(task.keys):
            first = number
            copied = copier.copy(first, tars[0])
            if copied is not None:
                number = copied.stop
                writers[0].copy(copied)
                stats = [known_stats[n] for n in range(first, number) if n in known_stats]
            else:
                number += 1
                sample = check_sample(task, handles, first, known_stats.get(first, []))
                if isinstance(sample, list):
                    rejected.append(sample)
                    continue
                rules.update(sample.rules)
                stats = [sample.stats]
                for writer in writers:
                    writer.add(
                        task.keys[first],
                        sample.members,
                        sample.pixels,
                        task.background[first],
                        task.measured[first],
                    )
                if not sample.rules:
                    copier.learn_header(sample.members)
            for sample_stats in stats:
                for role, channel_stats in zip(task.roles, sample_stats, strict=False):
                    if channel_stats[0]:  # Empty for a depth map without any depth.
                        moments[role].add(*channel_stats)
    indexes = [writer.index() for writer in writers]
    record = ShardRecord(
        task=digest,
        name=task.name,
        samples=len(task.keys) - len(rejected),
        parts=[writer.finish(index) for writer, index in zip(writers, indexes, strict=True)],
        rejected=rejected,
        rules=dict(sorted(rules.items())),
        moments=moments,
    )
    return record, indexes


def _reusable_record(task: ShardTask, digest: str) -> ShardRecord | None:
    """Return the record of an earlier run if its shard exists with the same bytes, else None."""
    out = as_path(task.out)
    try:
        record = ShardRecord.from_json((out / STATE_FOLDER / f"{task.name}.json").read_text())
        if record.task != digest:
            return None
        if not record.samples:
            return record
        for variant, part in zip(task.variants, record.parts, strict=True):
            tar = staging_folder(out, variant.folder) / f"{task.name}.tar"
            if isinstance(tar, Url):
                # The object was put whole, before its record: comparing the size is enough.
                complete = tar.stat().st_size == part.bytes
            else:
                complete = file_sha256(tar) == part.sha256
            if not complete or file_sha256(tar.with_suffix(".idx")) != part.index_sha256:
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record
