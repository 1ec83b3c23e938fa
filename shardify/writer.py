"""One planned shard: payloads out of the zip, checked, into a tar with its index and its record.

Runs in a worker process. It chooses no sample and repairs none: a sample that fails a check is
left out whole and named in the record. Files appear by rename when they are complete; a shard
whose record fits the task is kept as it is.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress, count
from typing import Any

from numpy.typing import NDArray

from shardify.copier import BY_NAME, Copier, may_copy
from shardify.drafts import Draft
from shardify.errors import BuildError, EntryError
from shardify.extract import payload
from shardify.files import write_quick
from shardify.images import Picture, parse
from shardify.moments import gauge, glance, measure
from shardify.pixels import PLAIN, Meaning, pixels, refuse_faint, same_aspect, settle
from shardify.ranges import Handle, expect
from shardify.remote import Url, place
from shardify.sinks import Sink
from shardify.sources import Sources
from shardify.tarwriter import TarWriter
from shardify.tasks import (
    ROW,
    STATE,
    BackgroundTask,
    Moments,
    Part,
    ShardRecord,
    ShardTask,
)

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
    "gauged",
    "measure_backgrounds",
    "prepare",
    "run_task",
    "write_shard",
]

Figure = tuple[list[float], list[float]]
"""Mean and deviation of one picture, by channel."""


def prepare() -> None:
    """Import what the first picture would, before there are several workers to do it."""
    from PIL import Image

    Image.preinit()


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
                moments.add(*glance(data, parse(data), "bg", PLAIN, least=160))
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
        kind = BY_NAME.get(name.rpartition(b".")[2].lower())
        if kind:
            return data, Picture(kind, 0, 0, 0, 0), ""
    given = parse(data)
    if verify == "decode" and role == "mask":
        refuse_faint(data, given, meaning)
    data, picture, rule = settle(data, given, role, meaning)
    if verify == "decode" and not rule:
        pixels(data, picture, role, meaning)
    return data, picture, rule


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample, found good."""

    found: list[tuple[str, bytes, Picture]]
    """Role, payload and what that is, of each member."""
    rules: list[str]
    """Those that converted a picture."""
    planes: dict[str, NDArray[Any]]
    """role -> pixels, where a variant encodes anew."""
    figures: list[Figure]
    """Of each role, if it is measured."""


def _fill(task: ShardTask, digest: str, tars: list[TarWriter]) -> tuple[ShardRecord, list[bytes]]:
    rejected: list[list[str]] = []
    rules: Counter[str] = Counter()
    moments = {role: Moments() for role in task.roles}
    sinks = [Sink(task, variant, tar) for variant, tar in zip(task.variants, tars, strict=True)]
    samples, number = 0, 0
    with Sources(task.sources) as handles:
        expect(handles, task.rows, map(task.names_of, range(len(task.keys))))
        copier = Copier(task, handles)
        known = gauged(task, handles, copier)
        copier.leave(each for each in compress(count(), task.measured) if each not in known)
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
                sample = _careful(task, handles, first, known.get(first, []))
                if isinstance(sample, list):
                    rejected.append(sample)
                    continue
                rules.update(sample.rules)
                figures.append(sample.figures)
                for sink in sinks:
                    sink.add(
                        task.keys[first],
                        sample.found,
                        sample.planes,
                        task.background[first],
                        task.measured[first],
                    )
                if not sample.rules:
                    copier.learn(sample.found)
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


def _careful(
    task: ShardTask, handles: Sequence[Handle], number: int, figures: list[Figure]
) -> _Sample | list[str]:
    """Read and check one sample.

    Args:
        task: Whose.
        handles: The sources, open.
        number: Of the sample in the task.
        figures: Its figures, if they are known.

    Returns:
        The sample; or what the record says of it, if it must be left out.
    """
    names, measured = task.names_of(number), task.measured[number]
    plain = all(variant.unchanged for variant in task.variants)
    # What is measured or encoded anew is parsed in any case.
    parsed = task.verify == "none" and (measured or not plain)
    sample = _Sample([], [], {}, figures)
    role = task.roles[0]
    try:
        for role, name, row in zip(task.roles, names, task.rows[number].tolist(), strict=True):
            data, picture, rule = check_picture(
                payload(handles[row[0]], name, *row[1:]),
                name,
                role,
                "headers" if parsed else task.verify,
                task.meaning,
            )
            sample.found.append((role, data, picture))
            if rule:
                sample.rules.append(rule)
        for role, _, picture in sample.found:
            _check_shape(role, picture, sample.found[0])
        new = measured and not figures
        for role, data, picture in sample.found if new or not plain else ():
            # A converted mask is 0 or 255 by now.
            if not plain:
                sample.planes[role] = pixels(data, picture, role, PLAIN)
            if new:
                plane = sample.planes.get(role)
                figures.append(gauge(data, picture, role) if plane is None else measure(plane))
    except EntryError as error:
        member = names[task.roles.index(role)].decode(errors="replace")
        return [task.keys[number], member, role, str(error)]
    return sample


def gauged(task: ShardTask, handles: Sequence[Handle], copier: Copier) -> dict[int, list[Figure]]:
    """Number -> figures of each role, of the measured samples that are plain and can be decoded.

    One after another, while the processor still knows its way about a decoder; their payloads are
    read again for the tar, so that none has to be kept. What is wrong with the others shows there.
    """
    found: dict[int, list[Figure]] = {}
    for number in compress(count(), task.measured if may_copy(task, handles) else ()):
        sample = _careful(task, handles, number, [])
        if isinstance(sample, _Sample) and not sample.rules:
            found[number] = sample.figures
            copier.learn(sample.found)
    return found


def _check_shape(role: str, picture: Picture, first: tuple[str, bytes, Picture]) -> None:
    """A sample's pictures may differ in size, but not in aspect."""
    main = first[2]
    if picture[1:3] != main[1:3] and not same_aspect(picture, main):
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
