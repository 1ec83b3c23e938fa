"""Convert sources to a finished data set: survey, shards by workers, manifest last.

An interrupted build resumes when it is run again with the same options.
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
from shardify.conversion.output_folder import (
    check_out,
    load_finished,
    locked_output,
    remove_state,
    roll_back,
)
from shardify.conversion.publish import BuildInputs, publish, shard_rejections
from shardify.conversion.source_encoding import detect_encoding
from shardify.conversion.survey import (
    BuildOptions,
    BuildPlan,
    check_rejected,
    manifest_sources,
    survey,
)
from shardify.conversion.task_list import background_tasks, shard_tasks, task_rows
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
from shardify.writer.tasks import STATE_FOLDER, ShardRecord, ShardTask, staging_folder

Progress = Callable[[int, int], None]
"""Called with the samples done so far and the total."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """Result of a build."""

    out: str
    already: bool
    """True if OUT already held this data set, finished; nothing was done then."""
    manifest: Manifest
    parts: list[Manifest]
    """The data sets written: one, or one per resolution."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``build --json`` prints."""
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
            "roles": {
                role: len(manifest.backgrounds) if role == "bg" else samples
                for role in manifest.roles
            },
            "ignored": {
                name: manifest.layout[name]
                for name in ("ignored", "unused")
                if manifest.layout.get(name)
            },
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
    """Convert zips or folders to shards, or resume an interrupted conversion.

    Args:
        paths: Zips, or folders of zips or files, that together form one data set. A ``Url`` is read
            by range requests.
        out: New folder, ``Url`` to put objects under, or the output of an interrupted run of the
            same build.
        options: Build options.
        progress: Called in this process after each finished shard.
        waiting: Called from another thread while the workers wait for a slow disk, with the
            fraction read ahead, in [0, 1].
        pool: Workers already started for this build; they are stopped at its end. None starts
            them now.

    Returns:
        The report; ``already`` is True if ``out`` holds this data set, finished.

    Raises:
        ShardifyError: See ``errors``. No manifest is written then. Finished shards are kept for
            the next run unless the layout itself was wrong.
    """
    started = time.perf_counter()
    out = as_path(out)
    check_out(out, paths)
    created = not out.exists()
    written = False
    try:
        # The workers start before the survey, so that their imports run in parallel with it. They
        # stop with this block, so that no worker writes while files are deleted below.
        with (
            pool or _start_workers(paths, out, options) as pool,
            read_ahead(paths if options.scheduler is None else (), waiting) as ahead,
            UnpackCache(out / STATE_FOLDER, shared=options.scheduler is not None) as work,
            ExitStack() as later,
        ):
            # Objects in a store and files written by a cluster are hard to delete again.
            defer = isinstance(pool, Workers) and isinstance(out, Path)
            plan = survey(paths, options, work, later=later if defer else None)
            identity = {
                "source": [dataclasses.asdict(each) for each in manifest_sources(plan.catalog)],
                "options": plan.options.output_options(),
                "samples": plan.digest(),
            }
            existing = load_finished(out, identity)
            if existing is not None:
                return _report(out, existing, already=True, started=started)
            with locked_output(out, identity):
                written = True
                manifest = _convert(plan, out, pool, ahead, progress)
                remove_state(out)
    except LayoutError:
        # The pixels contradict the names: delete everything written so far.
        if isinstance(out, Path) and written:
            roll_back(out, whole=created)
        raise
    except OSError as error:
        raise BuildError(
            f"{out}: {error.strerror or error}; finished shards are kept: fix the cause, run the "
            "same command again"
        ) from error
    return _report(out, manifest, already=False, started=started)


def _start_workers(paths: Sequence[PathOrUrl], out: PathOrUrl, options: BuildOptions) -> Pool:
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
    plan: BuildPlan, out: PathOrUrl, pool: Pool, ahead: ReadAhead, progress: Progress | None
) -> Manifest:
    variants = plan.options.variants()
    for variant in variants:
        staging_folder(out, variant.folder).mkdir(parents=True, exist_ok=True)
    measurements = background_tasks(plan)
    # Three quarters come first, while the shard tasks are not known yet. The rest come last: they
    # are small, so all workers finish at about the same time.
    early = measurements[: len(measurements) * 3 // 4]
    prepare = functools.cache(lambda: _prepare_inputs(plan, out))
    if isinstance(pool, Workers):
        pool.idle_work = itertools.chain(_prepare_early(prepare), plan.layout.pending or ())
    tasks = itertools.chain(
        early, _shard_tasks(prepare, out, ahead, pool), measurements[len(early) :]
    )
    results: dict[int, Any] = {}
    done = 0
    bad: list[Rejection] = []
    with BackgroundSync() as sync:
        for number, result in pool.map(tasks):
            results[number] = result
            if isinstance(result, ShardRecord):
                inputs = prepare()
                done += len(inputs.shard_plans[number - len(early)].samples)
                bad += shard_rejections(result)
                if bad:
                    _check_rejected(inputs.plan, bad)
                for variant in variants if result.samples else ():
                    for suffix in (".tar", ".idx"):
                        sync.add(staging_folder(out, variant.folder) / f"{result.name}{suffix}")
                if progress:
                    progress(
                        done, sum(len(shard_plan.samples) for shard_plan in inputs.shard_plans)
                    )
        _finish_background_proof(plan)
        for variant in variants if prepare().background_tars[0].sha256 else ():
            sync.add(staging_folder(out, variant.folder) / BACKGROUNDS)
        sync.finish()
    ordered = [results[number] for number in range(len(results))]
    return publish(prepare(), out, ordered)


def _prepare_inputs(plan: BuildPlan, out: PathOrUrl) -> BuildInputs:
    try:
        label_encoding, mask_values = detect_encoding(plan)
    except BuildError:
        _finish_background_proof(plan)  # The layout may be the cause.
        raise
    plan, background_tars = write_backgrounds(plan, out, plan.options.variants(), label_encoding)
    shard_plans = [shard_plan for split in ("train", "val") for shard_plan in plan.shards[split]]
    return BuildInputs(
        plan=plan,
        label_encoding=label_encoding,
        mask_values=mask_values,
        background_tars=background_tars,
        shard_plans=shard_plans,
    )


def _shard_tasks(
    prepare: Callable[[], BuildInputs], out: PathOrUrl, ahead: ReadAhead, pool: Pool
) -> Iterator[ShardTask | None]:
    inputs = prepare()
    plan, shard_plans = inputs.plan, inputs.shard_plans
    index = {name: number for number, name in enumerate(inputs.background_tars[0].ids)}
    tasks = shard_tasks(plan, out, shard_plans, index, inputs.label_encoding)
    sources = [each.path for each in plan.catalog.sources]

    def rows() -> Iterator[NDArray[Any]]:
        for shard_plan, each in zip(shard_plans, task_rows(plan, shard_plans), strict=True):
            # A shard that an earlier run finished is only verified.
            kept = (
                isinstance(out, Path) and (out / STATE_FOLDER / f"{shard_plan.name}.json").exists()
            )
            yield each[:0] if kept else each

    yield from ahead.ready_tasks(tasks, rows, sources, max_in_flight=pool.max_in_flight)


def _prepare_early(prepare: Callable[[], BuildInputs]) -> Iterator[None]:
    """Prepare what is needed soon, while the workers are busy."""
    prepare()
    yield
    version()  # Imports importlib.metadata.
    yield


def _finish_background_proof(plan: BuildPlan) -> None:
    """Run what is left of the deferred background proof. Raises LayoutError."""
    for _ in plan.layout.pending or ():
        pass


def _check_rejected(plan: BuildPlan, bad: Sequence[Rejection]) -> None:
    """Raise BuildError if too many samples are bad; LayoutError if the layout is the cause."""
    try:
        check_rejected(plan, bad)
    except BuildError:
        _finish_background_proof(plan)
        raise
