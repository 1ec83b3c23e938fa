"""``python -m shardify``, and what the ``shardify`` command calls."""

import gc
from collections.abc import Callable

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    # Imports and names make much that stays: to look for cycles in it, again and again and once
    # more at the end, takes a tenth of a short run.
    gc.set_threshold(100_000, 50, 50)
    try:
        from shardify.interrupts import run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        run(_command)
    finally:
        gc.freeze()


def _command() -> Callable[[], object]:
    from shardify.cli import main as command

    return command


if __name__ == "__main__":
    main()
