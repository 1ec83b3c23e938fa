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
    if machine is not None:
        return machine
    folder = kept_at().parent
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise BuildError(
            f"{folder}: not writable; expected a place to keep what is compiled; run "
            "python -m shardify.swift as its owner"
        )
    from shardify.compiling import compiled

    code = compiled()
    try:
        keep(code)
    except OSError as error:
        raise BuildError(
            f"{folder}: {error.strerror or error}; what was compiled is not kept; see to it and "
            "run python -m shardify.swift"
        ) from error
    return Machine(code)


if __name__ == "__main__":
    try:
        get_ready()
    except (BuildError, ImportError) as error:
        sys.exit(f"Error: {error}")
