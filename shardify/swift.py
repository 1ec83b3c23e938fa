"""``writer``, for workers that have so much to copy that the compiled part is worth its start.

``python -m shardify.swift`` compiles it, so that the first large build need not.
"""

from shardify import copier, writer
from shardify.writer import run_task

__all__ = ["prepare", "run_task"]


def prepare() -> None:
    """Get everything ready, before there are several workers to do it."""
    writer.prepare()
    copier.load()


if __name__ == "__main__":
    prepare()
