"""Create the worker pool of a build or a verification.

The pool of a build is chosen from its arguments alone, so that the workers can start, and import
what they need, while the command itself is still importing. This module must stay light for that:
the CLI imports it before NumPy. Of a zip, only the end record is read.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shardify.errors import ShardifyError, StoreError
from shardify.sources.zip_end_record import find_directory
from shardify.storage.paths import PathOrUrl, Url, local_files
from shardify.workers.dask_pool import DaskPool
from shardify.workers.pool import InlinePool, Pool
from shardify.workers.process_pool import Workers

_CHECKED_WORKER = "shardify.writer.shard_writer:run_task"
_FAST_WORKER = "shardify.writer.fast_worker:run_task"
_MIN_ENTRIES_FOR_FAST_COPY = 30_000
"""Number of entries from which the compiled copy is used. Loading it takes 0.5 s of CPU time:
measured, a build of 12,000 entries takes as long with it as without, one of 24,000 a fifth less.
The limit is not lower because the first use after an installation compiles for 13 s."""


def start_build_workers(
    paths: Sequence[PathOrUrl],
    out: PathOrUrl,
    *,
    codec: str,
    res: Sequence[object],
    verify: str,
    workers: int | None,
    scheduler: str | None,
) -> Pool:
    """Start the workers of a build, with the compiled fast copy if it pays.

    The arguments after ``paths`` and ``out`` are those of ``BuildOptions``, and of ``create_pool``.

    Raises:
        BuildError: The cluster cannot be used, or processes cannot be started.
        StoreError: A path exists only in the memory of this process.
    """
    use_fast_copy = (
        codec == "keep"
        and not res
        and verify != "decode"
        and scheduler is None
        and sum(map(_count_entries, local_files(paths))) >= _MIN_ENTRIES_FOR_FAST_COPY
    )
    return create_pool(
        _FAST_WORKER if use_fast_copy else _CHECKED_WORKER,
        workers=workers,
        scheduler=scheduler,
        places=[*paths, out],
    )


def create_pool(
    target: str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    places: Sequence[PathOrUrl] = (),
) -> Pool:
    """Create a Dask pool, worker processes, or an in-process pool.

    ``target`` is the ``module:function`` of one argument. ``workers`` None: one process per CPU
    core. ``memory://`` exists in this process only, so if one of ``places`` is there, the tasks run
    in this process.

    Raises:
        BuildError: The cluster cannot be used, or processes cannot be started.
        StoreError: A cluster is requested, but a path exists in this process only.
    """
    in_memory = [place for place in places if isinstance(place, Url) and place.is_local]
    if scheduler is not None:
        if in_memory:
            raise StoreError(
                f"{in_memory[0]}: lives in one process; expected a place that every worker of "
                f"{scheduler} sees; choose s3:// or a shared folder"
            )
        return DaskPool(target, scheduler, places)
    return InlinePool(target) if in_memory else Workers(target, workers or os.cpu_count() or 1)


def _count_entries(path: Path) -> int:
    """Return the number of entries of a zip; 0 if it cannot be read (the survey reports that)."""
    with suppress(OSError, ShardifyError), path.open("rb") as file:
        return find_directory(file.fileno(), os.fstat(file.fileno()).st_size, str(path)).entries
    return 0
