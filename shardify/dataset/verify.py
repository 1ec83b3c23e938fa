"""Compare every byte of a finished data set with its manifest, and name each faulty file.

Reads shards, indexes, backgrounds and ``rejected.jsonl``. On request every image is decoded too.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shardify.dataset.index import BLOCK, parse_index
from shardify.dataset.manifest import (
    NAME,
    REJECTED,
    Manifest,
    Shard,
    dataset_folder,
    is_altered,
    read_document,
)
from shardify.errors import EntryError, ManifestError, VerifyError
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, pixels
from shardify.storage.atomic_write import TEMPORARY
from shardify.storage.paths import PathOrUrl, as_path, file_sha256
from shardify.workers.factory import create_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What was checked, and the faults found."""

    out: str
    files: int
    bytes: int
    samples: int
    decoded: int
    """Number of images decoded."""
    problems: list[str]
    """``FILE: FAULT``, in the order of the manifest; empty if there are no faults."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``verify --json`` prints."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTask:
    """One shard whose images are to be decoded."""

    out: str
    tar: str
    index: str


def verify(
    out: PathOrUrl,
    *,
    deep: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare a data set with its manifest.

    Args:
        out: Folder or URL of a finished data set.
        deep: Also decode every image of every shard.
        workers: Processes for decoding and threads for reading; None for one per CPU core.
        progress: Called with the files done so far and the total.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        BuildError: A worker died.
    """
    out = dataset_folder(out)
    document, where = read_document(out)
    manifest = Manifest.from_json(document, where=where)
    problems: list[str] = []
    assert isinstance(document, dict)
    if is_altered(document):
        problems.append(f"{NAME}: differs from what was built (damaged, or edited since)")
    if manifest.resolutions:
        return _verify_resolutions(out, manifest, problems, deep, workers, progress)
    expected: dict[str, tuple[str, int | None]] = {}
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for shard in shards:
        expected[shard.name] = (shard.sha256, shard.bytes)
        expected[shard.index] = (shard.index_sha256, None)
    expected |= {name: (digest, None) for name, digest in manifest.files.items()}
    count = workers or os.cpu_count() or 1
    owners = {digest: name for name, (digest, _) in expected.items()}
    total = 0
    with ThreadPoolExecutor(count) as pool:
        # Hashing releases the GIL, so threads are enough.
        checks = pool.map(
            lambda name: _check_file(out / name, *expected[name], owners=owners), expected
        )
        for done, (name, (size, problem)) in enumerate(zip(expected, checks, strict=True), 1):
            total += size
            if problem:
                problems.append(f"{name}: {problem}")
            if progress:
                progress(done, len(expected))
    faulty = {problem.partition(":")[0] for problem in problems}
    for shard in shards:
        if shard.name not in faulty and shard.index not in faulty:
            problems += _check_index(out, shard)
    problems += _check_unlisted_files(out, set(expected) | {NAME})
    decoded = 0
    if deep:
        tasks = [
            DecodeTask(out=str(out), tar=shard.name, index=shard.index)
            for shard in shards
            if not any(problem.startswith((shard.name, shard.index)) for problem in problems)
        ]
        with create_pool(
            "shardify.dataset.verify:decode_shard",
            workers=min(count, max(1, len(tasks))),
            places=[out],
        ) as worker_pool:
            results = dict(worker_pool.map(tasks))
        for number in sorted(results):
            pictures, faults = results[number]
            decoded += pictures
            problems += faults
    return VerifyReport(
        out=str(out),
        files=len(expected),
        bytes=total,
        samples=sum(split.samples for split in manifest.splits.values()),
        decoded=decoded,
        problems=problems,
    )


def _verify_resolutions(
    out: PathOrUrl,
    manifest: Manifest,
    problems: list[str],
    deep: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> VerifyReport:
    """Verify each resolution and the files beside them."""
    total = 0
    for name, digest in manifest.files.items():
        size, problem = _check_file(out / name, digest, None, owners={})
        total += size
        if problem:
            problems.append(f"{name}: {problem}")
    problems += _check_unlisted_files(out, set(manifest.files) | {NAME})
    files, samples, decoded = len(manifest.files), 0, 0
    for resolution in manifest.resolutions:
        folder = resolution.path
        try:
            part = verify(out / folder, deep=deep, workers=workers, progress=progress)
        except ManifestError as error:
            problems.append(f"{folder}/{NAME}: {error}")
            continue
        files, total = files + part.files, total + part.bytes
        samples, decoded = part.samples, decoded + part.decoded
        problems += [f"{folder}/{problem}" for problem in part.problems]
    return VerifyReport(
        out=str(out), files=files, bytes=total, samples=samples, decoded=decoded, problems=problems
    )


def decode_shard(task: DecodeTask) -> tuple[int, list[str]]:
    """Decode all images of one shard. Returns their number and one line per failure."""
    count, problems = 0, []
    out = as_path(task.out)
    index = parse_index((out / task.index).read_bytes())
    with (out / task.tar).open("rb") as file:
        for sample in range(len(index.names)):
            for member in index.members(sample):
                if member.extension.endswith((".cls", ".raw")):
                    continue  # Any bytes of the right length are a raw image.
                file.seek(member.offset)
                data = file.read(member.size)
                try:
                    pixels(data, parse(data), member.extension.partition(".")[0], STANDARD)
                    count += 1
                except EntryError as error:
                    problems.append(f"{task.tar}: {member.name}: {error}")
    return count, problems


def _check_file(
    path: PathOrUrl, digest: str, size: int | None, *, owners: Mapping[str, str]
) -> tuple[int, str]:
    """Return (bytes read, fault or empty string). ``owners`` maps each digest to its file name."""
    try:
        actual_size = path.stat().st_size
        actual_digest = file_sha256(path)
    except FileNotFoundError:
        return 0, "missing"
    except OSError as error:
        return 0, f"cannot be read ({error.strerror})"
    if actual_digest == digest and size in (None, actual_size):
        return actual_size, ""
    if actual_size and actual_digest in owners and actual_digest != digest:
        return actual_size, f"its bytes are those of {owners[actual_digest]}"
    if size not in (None, actual_size):
        return actual_size, f"{actual_size} bytes; the manifest says {size}: it was cut or replaced"
    return actual_size, "its bytes differ from what was built (another SHA-256)"


def _check_index(out: PathOrUrl, shard: Shard) -> list[str]:
    """Check that each member of the index has its tar header in front of it; return faults."""
    try:
        index = parse_index((out / shard.index).read_bytes())
    except VerifyError as error:
        return [f"{shard.index}: {error}"]
    if len(index.names) != shard.samples:
        return [f"{shard.index}: {len(index.names)} samples; the manifest says {shard.samples}"]
    with (out / shard.name).open("rb") as file:
        for sample in range(len(index.names)):
            for member in index.members(sample):
                file.seek(member.offset - BLOCK)
                if file.read(len(member.name) + 1) != member.name.encode() + b"\0":
                    return [f"{shard.index}: {member.name} is not where it says in {shard.name}"]
    return []


def _check_unlisted_files(out: PathOrUrl, known: set[str]) -> list[str]:
    files: list[PathOrUrl] = [*out.iterdir()]
    return [
        f"{name}: not in the manifest; it is no part of this data set"
        for name in sorted(file.name for file in files)
        if name not in known and (name.endswith((".tar", ".idx", TEMPORARY)) or name == REJECTED)
    ]
