"""``writer``, for workers that have so much to copy that the compiled part is worth its start.

``python -m shardify.swift`` compiles it, so that the first large build need not.
"""

import os
import sys

from shardify import copier, writer
from shardify.errors import BuildError
from shardify.machine import Machine, keep, kept_at, load
from shardify.writer import run_task

__all__ = ["get_ready", "prepare", "run_task"]


def prepare() -> None:
    """Get everything ready, before there are several workers to do it.

    Where the compiled part is not to be had, everything goes the careful way.
    """
    writer.prepare()
    try:
        copier.use(get_ready())
    except Exception:
        # Whatever a compiler may raise: it would have saved time, and nothing else.
        return


def get_ready() -> Machine:
    """Load the compiled part; compile it, if it was not, where it can be kept.

    Raises:
        BuildError: It cannot be kept, so compiling would not pay.
        ImportError: The compiler or libdeflate is missing.
    """
    machine = load()
    if machine is None:
        place = kept_at()
        place.parent.mkdir(exist_ok=True)
        if not os.access(place.parent, os.W_OK):
            raise BuildError(
                f"{place.parent}: not writable; expected a place to keep what is compiled; run "
                "python -m shardify.swift as its owner"
            )
        from shardify.kernel import compiled

        keep(compiled())
        machine = load()
        assert machine is not None
    return machine


if __name__ == "__main__":
    try:
        get_ready()
    except (BuildError, ImportError) as error:
        sys.exit(f"Error: {error}")
