"""``python -m shardify``, and what the ``shardify`` command calls."""

import gc
import os
import signal
from collections.abc import Callable

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    # Imports and names make much that stays: to look for cycles in it, again and again and once
    # more at the end, takes a tenth of a short run.
    gc.set_threshold(100_000, 50, 50)
    # Nothing here is algebra, yet as numpy is imported its threads for that wait busily for work,
    # on the core where the first worker starts: a fiftieth of a short run.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # Who takes a machine back sends this first: it ends a command as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
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
