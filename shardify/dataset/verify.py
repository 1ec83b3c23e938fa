"""Every byte of a finished data set against its manifest; the file at fault is named.

Reads shards, indexes, backgrounds and the list of rejects; with ``decode`` every picture's pixels
as well. Repairs nothing and reads no source.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shardify.dataset.index import parse_index
from shardify.dataset.manifest import (
    BACKGROUNDS,
    NAME,
    REJECTED,
    Manifest,
    Shard,
    is_altered,
    read_document,
)
from shardify.errors import EntryError, ManifestError, VerifyError
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, pixels
from shardify.storage.atomic_write import TEMPORARY
from shardify.storage.paths import PathOrUrl, as_path
from shardify.workers.factory import create_pool

__all__ = ["DecodeTask", "VerifyReport", "decode_shard", "verify"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What was checked, and every fault."""

    out: str
    files: int
    bytes: int
    samples: int
    decoded: int
    """Pictures whose every pixel was decoded."""
    problems: list[str]
    """``FILE: what is wrong``, in the manifest's order; empty if all is well."""

    def to_json(self) -> dict[str, Any]:
        """For ``verify --json``."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTask:
    """One tar with its index, all of whose pictures shall be decoded."""

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
        out: Folder that ``build`` finished.
        deep: Decode every picture of every shard too.
        workers: Processes for decoding, threads for reading; None for one a core.
        progress: Called with files done and files in all.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        BuildError: A worker died.
    """
    out = as_path(out)
    document, where = read_document(out)
    manifest = Manifest.from_json(document, where=where)
    problems: list[str] = []
    assert isinstance(document, dict)
    if is_altered(document):
        problems.append(f"{NAME}: differs from what was built (damaged, or edited since)")
    if manifest.resolutions:
        return _verify_all(out, manifest, problems, deep, workers, progress)
    expected: dict[str, tuple[str, int | None]] = {}
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for shard in shards:
        expected[shard.name] = (shard.sha256, shard.bytes)
        expected[shard.index] = (shard.index_sha256, None)
    for name, digest in manifest.files.items():
        expected[name] = (digest, None)
    count = workers or os.cpu_count() or 1
    owners = {digest: name for name, (digest, _) in expected.items()}
    total = 0
    with ThreadPoolExecutor(count) as pool:
        # Digests release the lock: threads suffice, and need no start.
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
    problems += _strangers(out, set(expected) | {NAME})
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
        ) as pool_:
            results = dict(pool_.map(tasks))
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


def _verify_all(
    out: PathOrUrl,
    manifest: Manifest,
    problems: list[str],
    deep: bool,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> VerifyReport:
    """Each resolution, and the files beside them."""
    total = 0
    for name, digest in manifest.files.items():
        size, problem = _check_file(out / name, digest, None, owners={})
        total += size
        problems += [f"{name}: {problem}"] if problem else []
    problems += _strangers(out, set(manifest.files) | {NAME})
    files, samples, decoded = len(manifest.files), 0, 0
    for each in manifest.resolutions:
        try:
            part = verify(out / each.path, deep=deep, workers=workers, progress=progress)
        except ManifestError as error:
            problems.append(f"{each.path}/{NAME}: {error}")
            continue
        files, total = files + part.files, total + part.bytes
        samples, decoded = part.samples, decoded + part.decoded
        problems += [f"{each.path}/{problem}" for problem in part.problems]
    return VerifyReport(
        out=str(out), files=files, bytes=total, samples=samples, decoded=decoded, problems=problems
    )


def decode_shard(task: DecodeTask) -> tuple[int, list[str]]:
    """Decode all pictures of one shard. Returns how many, and a line for each that fails."""
    count, problems = 0, []
    out = as_path(task.out)
    tar = out / task.tar
    samples = parse_index((out / task.index).read_text())
    with tar.open("rb") as file:
        for members in samples:
            for member in members:
                if member.extension == "bg.cls":
                    continue
                file.seek(member.offset)
                data = file.read(member.size)
                try:
                    if member.extension.endswith(".raw"):
                        continue  # Every byte string of the right length is a picture.
                    picture = parse(data)
                    pixels(data, picture, member.extension.partition(".")[0], STANDARD)
                    count += 1
                except EntryError as error:
                    problems.append(f"{task.tar}: {member.name}: {error}")
    return count, problems


def _check_file(
    path: PathOrUrl, digest: str, size: int | None, *, owners: Mapping[str, str]
) -> tuple[int, str]:
    """Bytes read, and what is wrong, if anything; ``owners`` tell whose file has which digest."""
    try:
        there = path.stat().st_size
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return 0, "missing"
    except OSError as error:
        return 0, f"cannot be read ({error.strerror})"
    if there and found in owners and found != digest:
        return there, f"its bytes are those of {owners[found]}"
    if size is not None and there != size:
        return there, f"{there} bytes; the manifest says {size}: it was cut or replaced"
    if found != digest:
        return there, "its bytes differ from what was built (another SHA-256)"
    return there, ""


def _check_index(out: PathOrUrl, shard: Shard) -> list[str]:
    """Whether index and tar speak of the same samples: each member's header stands before it."""
    try:
        samples = parse_index((out / shard.index).read_text())
    except (VerifyError, UnicodeDecodeError) as error:
        return [f"{shard.index}: {error}"]
    if len(samples) != shard.samples:
        return [f"{shard.index}: {len(samples)} samples; the manifest says {shard.samples}"]
    with (out / shard.name).open("rb") as file:
        for members in samples:
            for member in members:
                file.seek(member.offset - 512)
                if file.read(len(member.name) + 1) != member.name.encode() + b"\0":
                    return [f"{shard.index}: {member.name} is not where it says in {shard.name}"]
    return []


def _strangers(out: PathOrUrl, known: set[str]) -> list[str]:
    problems = []
    there: list[PathOrUrl] = [*out.iterdir()]
    for file in sorted(there, key=lambda each: each.name):
        if file.name in known:
            continue
        if file.name.endswith((".tar", ".idx", TEMPORARY)):
            problems.append(f"{file.name}: not in the manifest; it is no part of this data set")
    for name in (BACKGROUNDS, REJECTED):
        if (out / name).exists() and name not in known:
            problems.append(f"{name}: not in the manifest")
    return problems
