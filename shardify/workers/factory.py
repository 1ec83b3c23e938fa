"""Who does the work: processes of this machine, a Dask cluster, or this process itself.

Those of a build are known from its arguments alone, so that they can be called early: they import
what they need while the command itself is still importing. Of a zip, nothing but its end is read
here, and nothing is refused.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shardify.errors import ShardifyError, StoreError
from shardify.sources.zip_end_record import find_directory
from shardify.storage.paths import PathOrUrl, Url, local_files
from shardify.workers.dask_pool import Cluster
from shardify.workers.pool import InlinePool, Pool
from shardify.workers.process_pool import Workers

__all__ = ["create_pool", "start_build_workers"]

_CAREFUL, _SWIFT = "shardify.writer.shard_writer:run_task", "shardify.writer.fast_worker:run_task"
_WORTH = 30_000
"""From so many entries on, the compiled copy is used. Loading it takes half a second of CPU time:
measured, a build of 12,000 entries takes as long with it as without, one of 24,000 a fifth less.
It is not lower because an installation's first use compiles, which takes 13 seconds."""


def start_build_workers(
    paths: Sequence[PathOrUrl],
    out: PathOrUrl,
    *,
    codec: str,
    res: Sequence[int],
    verify: str,
    workers: int | None,
    scheduler: str | None,
) -> Pool:
    """Start the workers that suit.

    Args:
        paths: What they will read.
        out: Where they will write.
        codec: How pictures are stored. This and the others: see ``survey.Options``.
        res: Their sides, if they are resized.
        verify: How they are looked at.
        workers: Processes on this machine; None for one a core.
        scheduler: Address of a Dask scheduler, whose workers shall do it instead.

    Raises:
        BuildError: The cluster cannot be used, or processes cannot be started.
        StoreError: A cluster cannot see such a place.
    """
    copied = codec == "keep" and not res and verify != "decode"
    swift = copied and scheduler is None and sum(map(_entries_in, local_files(paths))) >= _WORTH
    return create_pool(
        _SWIFT if swift else _CAREFUL, workers=workers, scheduler=scheduler, places=[*paths, out]
    )


def create_pool(
    target: str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    places: Sequence[PathOrUrl] = (),
) -> Pool:
    """The pool that suits.

    Args:
        target: ``module:function`` of one argument.
        workers: Processes on this machine; None for one a core.
        scheduler: Address of a Dask scheduler, whose workers shall do it instead.
        places: What is read and written: ``memory://`` is seen by this process alone, so the work
            is done here then.

    Raises:
        BuildError: The cluster cannot be used.
        StoreError: A cluster cannot see such a place.
    """
    private = [each for each in places if isinstance(each, Url) and each.is_local]
    if scheduler is not None:
        if private:
            raise StoreError(
                f"{private[0]}: lives in one process; expected a place that every worker of "
                f"{scheduler} sees; choose s3:// or a shared folder"
            )
        return Cluster(target, scheduler, places)
    return InlinePool(target) if private else Workers(target, workers or os.cpu_count() or 1)


def _entries_in(path: Path) -> int:
    """0 for what cannot be read as a zip: if that is wrong, the survey will say so."""
    with suppress(OSError, ShardifyError), path.open("rb") as file:
        return find_directory(file.fileno(), os.fstat(file.fileno()).st_size, str(path))[0]
    return 0
