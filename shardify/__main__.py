"""Entry point of ``python -m shardify`` and of the ``shardify`` console script."""

import gc
import os
import signal
from collections.abc import Callable


def main() -> None:
    """Run the command line with the arguments of this process."""
    # Imports and entry names create many lasting objects. Searching them for cycles repeatedly, and
    # once more at the end, takes a tenth of a short run.
    gc.set_threshold(100_000, 50, 50)
    # The linear-algebra threads that NumPy starts at import are not needed, but wait busily on the
    # core where the first worker starts: 2 % of a short run.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # Job schedulers send SIGTERM first: treat it as Ctrl-C.
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
