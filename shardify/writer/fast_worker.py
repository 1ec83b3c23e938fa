"""Entry point of workers that load the compiled fast copy before they are forked."""

from contextlib import suppress

from shardify.writer import fast_copy, shard_writer
from shardify.writer.shard_writer import run_task as run_task  # The pool calls it by name.


def prepare() -> None:
    """Import and load everything once, before the workers are forked.

    If the compiled function cannot be loaded or cached, all samples take the checked path.
    """
    shard_writer.prepare()
    # A compiler may raise anything; the fast copy only saves time.
    with suppress(Exception):
        fast_copy.load()
