"""The whole conversion: source to shards, by worker processes, resumable, manifest last.

Which files belong together is ``layout``'s word, which sample goes where is ``plan``'s, what OUT
may hold is ``output``'s; here is only the order of events. It parses no arguments and prints
nothing.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.archive import Catalog
from shardify.errors import BuildError, EntryError
from shardify.extract import payload
from shardify.files import TEMPORARY, publish, write_atomic
from shardify.images import MASK_THRESHOLD
from shardify.layout import Rejection
from shardify.manifest import (
    BACKGROUNDS,
    REJECTED,
    Background,
    Manifest,
    Role,
    Shard,
    Split,
    Stats,
)
from shardify.output import check_out, claimed, finished, sweep
from shardify.plan import ShardPlan
from shardify.survey import (
    MEMBERS,
    Options,
    Survey,
    check_bad,
    drop_background,
    replan,
    sources_of,
    survey,
    tally,
)
from shardify.workers import Workers
from shardify.writer import (
    ROW,
    STATE,
    BackgroundTask,
    Moments,
    ShardRecord,
    ShardTask,
    TarWriter,
    check_picture,
)

__all__ = ["BuildReport", "build"]

_MEASURED = 500
"""At least this many samples are decoded for the statistics, if there are as many."""
_MEASURED_BACKGROUNDS = 100
_BACKGROUNDS_A_TASK = 8

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did."""

    out: str
    already: bool
    """The same data set was there, finished; nothing was done."""
    manifest: Manifest
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For ``build --json``."""
        manifest = self.manifest
        samples = sum(split.samples for split in manifest.splits.values())
        return {
            "out": self.out,
            "already": self.already,
            "samples": samples,
            "splits": {
                name: {"samples": split.samples, "shards": len(split.shards)}
                for name, split in manifest.splits.items()
            },
            "backgrounds": len(manifest.backgrounds),
            "bytes": sum(
                shard.bytes for split in manifest.splits.values() for shard in split.shards
            ),
            "rejected": dataclasses.asdict(manifest.rejected),
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(samples / self.seconds, 1) if self.seconds else None,
        }


def build(
    paths: Sequence[Path], out: Path, options: Options, *, progress: Progress | None = None
) -> BuildReport:
    """Convert zips to shards, or go on with a conversion that was cut off.

    Args:
        paths: Zips that together are one data set.
        out: Folder to make; or one that an interrupted run of the same build left.
        options: See there.
        progress: Called in this process as shards are finished.

    Returns:
        The report; ``already`` if ``out`` holds this very data set, finished.

    Raises:
        ShardifyError: See ``errors``. Nothing is published then; what is finished is kept for
            the next run where that can help.
    """
    started = time.perf_counter()
    out = Path(out)
    check_out(out)
    found = survey(paths, options)
    identity = {
        "source": [dataclasses.asdict(each) for each in sources_of(found.catalog)],
        "options": found.options.deciding(),
    }
    there = finished(out, identity)
    if there is not None:
        return BuildReport(
            out=str(out), already=True, manifest=there, seconds=time.perf_counter() - started
        )
    count = sum(len(plans) for plans in found.shards.values())
    workers = min(options.workers or os.cpu_count() or 1, max(1, count))
    try:
        with claimed(out, identity), Workers("shardify.writer:run_task", workers) as pool:
            manifest = _convert(found, out, pool, progress)
            shutil.rmtree(out / STATE)
    except OSError as error:
        raise BuildError(
            f"{out}: {error.strerror or error}; what is finished is kept: see to it and run the "
            "same command again"
        ) from error
    return BuildReport(
        out=str(out), already=False, manifest=manifest, seconds=time.perf_counter() - started
    )


def _convert(found: Survey, out: Path, pool: Workers, progress: Progress | None) -> Manifest:
    found, backgrounds, files = _write_backgrounds(found, out)
    index = {background.id: background.index for background in backgrounds}
    plans = [plan for split in ("train", "val") for plan in found.shards[split]]
    jobs = _background_tasks(found, index)
    total = sum(len(plan.samples) for plan in plans)
    results: dict[int, Any] = {}
    done = 0
    bad: list[Rejection] = []
    for number, result in pool.map(_tasks(found, out, plans, jobs, index)):
        results[number] = result
        if isinstance(result, ShardRecord):
            done += len(plans[number - len(jobs)].samples)
            bad += _rejections(result)
            check_bad(found, bad)
            if progress:
                progress(done, total)
    ordered = [results[number] for number in range(len(results))]
    records: list[ShardRecord] = ordered[len(jobs) :]
    measured = Moments()
    for moments in ordered[: len(jobs)]:
        if moments.samples:
            measured.add(moments.mean, moments.std, moments.samples)
    rejected = found.rejected + [each for record in records for each in _rejections(record)]
    files[REJECTED] = _write_rejected(out, rejected, found.catalog)
    manifest = Manifest(
        created_by=f"shardline {importlib.metadata.version('shardline')}",
        source=sources_of(found.catalog),
        options=found.options.deciding(),
        layout=dict(found.layout.description),
        roles=_roles(records, backgrounds),
        backgrounds=backgrounds,
        splits=_splits(plans, records),
        rejected=tally(rejected, found.catalog),
        stats=_stats(records, measured),
        files=files,
    )
    sweep(out, manifest)
    manifest.save(out)
    return manifest


def _rejections(record: ShardRecord) -> list[Rejection]:
    return [
        Rejection(key=key, member=member, role=role, reason=reason)
        for key, member, role, reason in record.rejected
    ]


def _row_of(catalog: Catalog, numbers: NDArray[np.int32]) -> NDArray[Any]:
    entries = catalog.entries
    rows = np.empty(numbers.shape, ROW)
    for name in ROW.names or ():
        rows[name] = getattr(entries, name)[numbers]
    return rows


def _write_backgrounds(found: Survey, out: Path) -> tuple[Survey, list[Background], dict[str, str]]:
    """Write ``backgrounds.tar``; samples on a bad background are left out of a new plan."""
    layout, catalog = found.layout, found.catalog
    if not layout.background_ids:
        return found, [], {}
    backgrounds: list[Background] = []
    bad: list[tuple[int, str]] = []
    used = np.unique(layout.background[found.usable]).tolist()
    path = out / BACKGROUNDS
    temporary = path.with_name(path.name + TEMPORARY)
    descriptors = [os.open(each.path, os.O_RDONLY | os.O_CLOEXEC) for each in catalog.sources]
    try:
        with temporary.open("wb", buffering=0) as file:
            tar = TarWriter(file)
            for number in used:
                entry = int(layout.background_members[number])
                name = catalog.names.raw(entry)
                row = _row_of(catalog, layout.background_members[number : number + 1])[0].tolist()
                try:
                    data = payload(descriptors[row[0]], name, *row[1:])
                    picture = check_picture(
                        data, name, "decode" if found.options.verify == "decode" else "headers"
                    )
                except EntryError as error:
                    bad.append((number, str(error)))
                    continue
                member = f"{layout.background_ids[number]}.{picture.kind}"
                tar.add(member.encode(), data)
                backgrounds.append(
                    Background(
                        id=layout.background_ids[number],
                        index=len(backgrounds),
                        member=member,
                        width=picture.width,
                        height=picture.height,
                        sha256=hashlib.sha256(data).hexdigest(),
                    )
                )
            digest = tar.finish()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    publish(temporary, path)
    if bad:
        usable, rejected = found.usable.copy(), list(found.rejected)
        for number, reason in bad:
            drop_background(layout, catalog, number, reason, usable, rejected)
        found = dataclasses.replace(found, usable=usable, rejected=rejected)
        check_bad(found)
        found = dataclasses.replace(found, shards=replan(layout, usable, found.options))
    return found, backgrounds, {BACKGROUNDS: digest}


def _background_tasks(found: Survey, index: dict[str, int]) -> list[BackgroundTask]:
    """Up to a hundred backgrounds, evenly spaced, to be measured a few at a time."""
    layout, catalog = found.layout, found.catalog
    good = [number for number, name in enumerate(layout.background_ids) if name in index]
    good = good[:: max(1, -(-len(good) // _MEASURED_BACKGROUNDS))]
    entries = layout.background_members[good]
    rows = _row_of(catalog, entries)
    return [
        BackgroundTask(
            sources=[each.path for each in catalog.sources],
            names=[
                catalog.names.raw(int(entry)) for entry in entries[first:][:_BACKGROUNDS_A_TASK]
            ],
            rows=rows[first:][:_BACKGROUNDS_A_TASK],
        )
        for first in range(0, len(good), _BACKGROUNDS_A_TASK)
    ]


def _tasks(
    found: Survey,
    out: Path,
    plans: Sequence[ShardPlan],
    jobs: Sequence[BackgroundTask],
    index: dict[str, int],
) -> Iterator[BackgroundTask | ShardTask]:
    """Every task, in the order of numbering, made when a worker is free for it."""
    yield from jobs
    layout, catalog = found.layout, found.catalog
    roles = tuple(role for role in MEMBERS if role in layout.members)
    place = np.array([index.get(name, -1) for name in layout.background_ids] + [-1])
    step = max(1, sum(len(plan.samples) for plan in plans if plan.split == "train") // _MEASURED)
    seen = 0
    for plan in plans:
        members = np.stack([layout.members[role][plan.samples] for role in roles], axis=1)
        count = len(plan.samples)
        raw = [catalog.names.raw(entry) for entry in members.ravel().tolist()]
        measured = (np.arange(seen, seen + count) % step == 0) & (plan.split == "train")
        seen += count
        yield ShardTask(
            out=str(out),
            name=plan.name,
            sources=[each.path for each in catalog.sources],
            roles=roles,
            keys=[layout.keys[number] for number in plan.samples.tolist()],
            names=[raw[first : first + len(roles)] for first in range(0, len(raw), len(roles))],
            rows=_row_of(catalog, members),
            background=place[layout.background[plan.samples]].tolist(),
            measured=measured.tolist(),
            verify=found.options.verify,
        )


def _write_rejected(out: Path, rejected: Sequence[Rejection], catalog: Catalog) -> str:
    """Write ``rejected.jsonl``, sorted. Returns its SHA-256."""
    lines = [
        {"key": each.key, "member": each.member, "role": each.role, "reason": each.reason}
        for each in rejected
    ]
    lines += [
        {"key": "", "member": each.member, "role": "", "reason": each.reason}
        for each in catalog.refused
    ]
    lines.sort(key=lambda line: tuple(line.values()))
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomic(out / REJECTED, text)
    return hashlib.sha256(text).hexdigest()


def _roles(records: Sequence[ShardRecord], backgrounds: Sequence[Background]) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    if backgrounds:
        extensions = Counter(each.member.rpartition(".")[2] for each in backgrounds)
        sizes = Counter((each.width, each.height) for each in backgrounds)
        roles["bg"] = Role(extensions=_ranked(extensions), channels=3, sizes=_ranked_sizes(sizes))
    for role in MEMBERS:
        kinds: Counter[str] = Counter()
        sizes = Counter()
        channels: Counter[int] = Counter()
        bits = 0
        for record in records:
            for text, count in record.pictures.get(role, {}).items():
                kind, *numbers = text.split(" ")
                width, height, planes, depth = map(int, numbers)
                kinds[kind] += count
                if width:
                    sizes[width, height] += count
                    channels[planes] += count
                    bits = max(bits, depth)
        if kinds:
            roles[role] = Role(
                extensions=_ranked(kinds),
                channels=channels.most_common(1)[0][0] if channels else 0,
                sizes=_ranked_sizes(sizes),
                bits=16 if bits == 16 else 8,
                threshold=MASK_THRESHOLD if role == "mask" else None,
            )
    return roles


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _ranked_sizes(counts: Counter[tuple[int, int]]) -> list[list[int]]:
    return [
        [*size, counts[size]] for size in sorted(counts, key=lambda size: (-counts[size], size))
    ]


def _splits(plans: Sequence[ShardPlan], records: Sequence[ShardRecord]) -> dict[str, Split]:
    splits = {}
    for name in ("train", "val"):
        shards = [
            Shard(
                name=f"{record.name}.tar",
                index=f"{record.name}.idx",
                samples=record.samples,
                bytes=record.bytes,
                sha256=record.sha256,
                index_sha256=record.index_sha256,
            )
            for plan, record in zip(plans, records, strict=True)
            if plan.split == name and record.samples
        ]
        splits[name] = Split(samples=sum(shard.samples for shard in shards), shards=shards)
    return splits


def _stats(records: Sequence[ShardRecord], backgrounds: Moments) -> dict[str, Stats]:
    """Sum in the order of the plan, so that rounding does not depend on who finished first."""
    total = {"bg": backgrounds, **{role: Moments() for role in MEMBERS}}
    for record in records:
        for role, moments in record.moments.items():
            if moments.samples:
                total[role].add(moments.mean, moments.std, moments.samples)
    return {
        role: Stats(
            mean=[round(each / moments.samples, 6) for each in moments.mean],
            std=[round(each / moments.samples, 6) for each in moments.std],
            samples=moments.samples,
        )
        for role, moments in total.items()
        if moments.samples
    }
