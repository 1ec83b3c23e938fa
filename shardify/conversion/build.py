"""The whole conversion: source to shards, by worker processes, resumable, manifest last.

Which files belong together is ``layout``'s word, which sample goes where is ``plan``'s, what OUT
may hold is ``output``'s; here is only the order of events. It parses no arguments and prints
nothing.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shardify.conversion.backgrounds import write_backgrounds
from shardify.conversion.label_encoding import meaning_of
from shardify.conversion.output_folder import (
    check_out,
    finished,
    locked_output,
    remove_state,
    roll_back,
)
from shardify.conversion.publish import BuildInputs, publish, rejections_of
from shardify.conversion.survey import BuildOptions, BuildPlan, check_bad, sources_of, survey
from shardify.conversion.task_list import background_tasks, rows_read, shard_tasks
from shardify.dataset.manifest import BACKGROUNDS, Manifest
from shardify.errors import BuildError, LayoutError
from shardify.layout.detect import Rejection
from shardify.sources.nested_zips import UnpackCache
from shardify.storage.atomic_write import BackgroundSync
from shardify.storage.paths import PathOrUrl, as_path
from shardify.storage.readahead import ReadAhead, read_ahead
from shardify.version import version
from shardify.workers.factory import start_build_workers
from shardify.workers.pool import Pool
from shardify.workers.process_pool import Workers
from shardify.writer.tasks import STATE_FOLDER, ShardRecord, ShardTask

__all__ = ["BuildReport", "build"]

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did."""

    out: str
    already: bool
    """The same data set was there, finished; nothing was done."""
    manifest: Manifest
    parts: list[Manifest]
    """The data sets written: one, or one a resolution."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For ``build --json``."""
        manifest = self.parts[0]
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
            "resolutions": [each.res for each in self.manifest.resolutions],
            "bytes": sum(
                shard.bytes
                for part in self.parts
                for split in part.splits.values()
                for shard in split.shards
            ),
            "costs": [part.costs for part in self.parts if part.costs],
            "rejected": dataclasses.asdict(manifest.rejected),
            "warnings": list(manifest.layout.get("warnings", ())),
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(samples / self.seconds, 1) if self.seconds else None,
        }


def build(
    paths: Sequence[PathOrUrl],
    out: PathOrUrl,
    options: BuildOptions,
    *,
    progress: Progress | None = None,
    waiting: Callable[[float], None] | None = None,
    pool: Pool | None = None,
) -> BuildReport:
    """Convert zips to shards, or go on with a conversion that was cut off.

    Args:
        paths: Zips, or folders of zips or files, that together are one data set; a ``Url`` is read
            by ranges.
        out: Folder to make, or ``Url`` to put objects under; or one that an interrupted run of
            the same build left.
        options: See there.
        progress: Called in this process as shards are finished.
        waiting: Called by another thread while nothing is done until a slow disk has been read,
            with the share in [0, 1] of that.
        pool: Workers that were hired for this before, and are let go at its end; None: they are
            hired now.

    Returns:
        The report; ``already`` if ``out`` holds this very data set, finished.

    Raises:
        ShardifyError: See ``errors``. Nothing is published then; what is finished is kept for
            the next run where that can help.
    """
    started = time.perf_counter()
    out = as_path(out)
    check_out(out, paths)
    new = not out.exists()
    begun: list[str] = []
    try:
        # Started before the survey, so that their imports cost no time of their own; and ended with
        # this block, so that none of them writes any more where something is taken back.
        with (
            pool or _hired(paths, out, options) as pool,
            read_ahead(paths if options.scheduler is None else (), waiting) as ahead,
            UnpackCache(out / STATE_FOLDER, shared=options.scheduler is not None) as work,
            ExitStack() as later,
        ):
            # What is put into a store, or written by a cluster, is not so easily taken back.
            defer = isinstance(pool, Workers) and isinstance(out, Path)
            found = survey(paths, options, work, later=later if defer else None)
            identity = {
                "source": [dataclasses.asdict(each) for each in sources_of(found.catalog)],
                "options": found.options.deciding(),
                "samples": found.digest(),
            }
            there = finished(out, identity)
            if there is not None:
                return _report(out, there, already=True, started=started)
            with locked_output(out, identity):
                begun += [variant.folder for variant in found.options.variants()]
                manifest = _convert(found, out, pool, ahead, progress)
                remove_state(out)
    except LayoutError:
        # The pixels contradict what the names state: of what was written meanwhile nothing stays.
        if isinstance(out, Path) and begun:
            roll_back(out, begun, whole=new)
        raise
    except OSError as error:
        raise BuildError(
            f"{out}: {error.strerror or error}; what is finished is kept: see to it and run the "
            "same command again"
        ) from error
    return _report(out, manifest, already=False, started=started)


def _hired(paths: Sequence[PathOrUrl], out: PathOrUrl, options: BuildOptions) -> Pool:
    return start_build_workers(
        paths,
        out,
        codec=options.codec,
        res=options.res,
        verify=options.verify,
        workers=options.workers,
        scheduler=options.scheduler,
    )


def _report(out: PathOrUrl, manifest: Manifest, *, already: bool, started: float) -> BuildReport:
    parts = [Manifest.load(out / each.path) for each in manifest.resolutions] or [manifest]
    return BuildReport(
        out=str(out),
        already=already,
        manifest=manifest,
        parts=parts,
        seconds=time.perf_counter() - started,
    )


def _convert(
    found: BuildPlan, out: PathOrUrl, pool: Pool, ahead: ReadAhead, progress: Progress | None
) -> Manifest:
    variants = found.options.variants()
    for variant in variants:
        (out / variant.folder).mkdir(exist_ok=True)
    grounds = background_tasks(found)
    # Some to begin with, while the others' tasks are not known yet; some to end with: they are
    # small, so that all workers end at about the same time.
    early = grounds[: len(grounds) * 3 // 4]
    settle = functools.cache(lambda: _settle(found, out))
    if isinstance(pool, Workers):
        pool.idle_work = itertools.chain(_ahead(settle), found.layout.pending or ())
    tasks = itertools.chain(early, _shard_tasks(settle, out, ahead, pool), grounds[len(early) :])
    results: dict[int, Any] = {}
    done = 0
    bad: list[Rejection] = []
    with BackgroundSync() as flushing:
        for number, result in pool.map(tasks):
            results[number] = result
            if isinstance(result, ShardRecord):
                settled = settle()
                done += len(settled.plans[number - len(early)].samples)
                bad += rejections_of(result)
                if bad:
                    _check(settled.found, bad)
                for variant in variants if result.samples else ():
                    for suffix in (".tar", ".idx"):
                        flushing.add(out / variant.folder / f"{result.name}{suffix}")
                if progress:
                    progress(done, sum(len(plan.samples) for plan in settled.plans))
        _prove(found)
        for variant in variants if settle().banks[0].sha256 else ():
            flushing.add(out / variant.folder / BACKGROUNDS)
        flushing.finish()
    ordered = [results[number] for number in range(len(results))]
    return publish(settle(), out, ordered)


def _settle(found: BuildPlan, out: PathOrUrl) -> BuildInputs:
    meaning = meaning_of(found)
    found, banks = write_backgrounds(found, out, found.options.variants(), meaning)
    plans = [plan for split in ("train", "val") for plan in found.shards[split]]
    return BuildInputs(found=found, meaning=meaning, banks=banks, plans=plans)


def _shard_tasks(
    settle: Callable[[], BuildInputs], out: PathOrUrl, ahead: ReadAhead, pool: Pool
) -> Iterator[ShardTask | None]:
    settled = settle()
    found, plans = settled.found, settled.plans
    index = {name: number for number, name in enumerate(settled.banks[0].ids)}
    tasks = shard_tasks(found, out, plans, index, settled.meaning)
    sources = [each.path for each in found.catalog.sources]

    def rows() -> Iterator[NDArray[Any]]:
        for plan, each in zip(plans, rows_read(found, plans), strict=True):
            # What an earlier run finished is looked at, not made again.
            kept = isinstance(out, Path) and (out / STATE_FOLDER / f"{plan.name}.json").exists()
            yield each[:0] if kept else each

    yield from ahead.ready_tasks(tasks, rows, sources, max_in_flight=pool.max_in_flight)


def _ahead(settle: Callable[[], BuildInputs]) -> Iterator[None]:
    """What will be needed soon, while the workers are busy and nobody waits for it."""
    settle()
    yield
    version()  # Some imports.
    yield


def _prove(found: BuildPlan) -> None:
    """Go through what is left of a deferred proof. Raises LayoutError."""
    for _ in found.layout.pending or ():
        pass


def _check(found: BuildPlan, bad: Sequence[Rejection]) -> None:
    """Raise BuildError if too many samples are bad; or first what is wrong with them all."""
    try:
        check_bad(found, bad)
    except BuildError:
        _prove(found)
        raise
