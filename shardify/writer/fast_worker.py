"""``writer``, for workers that copy enough to be worth loading the compiled ``copier``."""

from contextlib import suppress

from shardify.writer import fast_copy, shard_writer
from shardify.writer.shard_writer import run_task

__all__ = ["prepare", "run_task"]


def prepare() -> None:
    """Import and load everything once, before the workers are forked.

    Where the compiled function cannot be loaded or cached, all samples take the checked path.
    """
    shard_writer.prepare()
    # Whatever a compiler may raise: it would have saved time, and nothing else.
    with suppress(Exception):
        fast_copy.load()
