"""End a command on Ctrl-C with exit code 130 and one line, never with a traceback.

During the imports the process ends at once. Later ``KeyboardInterrupt`` is raised as usual, so that
cleanup runs. It also counts if it was lost (as in a destructor) or came out as another error (as
from the import of a library). A signal that the caller ignores stays ignored. Standard streams that
the caller closed are opened on ``/dev/null``.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

INTERRUPTED = 130
"""Exit code: 128 and the number of SIGINT."""

_STDERR = 2

_RESEND_SECONDS = 0.01
"""Seconds until a lost interrupt is sent again."""


def run(load: Callable[[], Callable[[], object]]) -> None:
    """Import a command and run it.

    Args:
        load: Imports the command and returns it.

    Raises:
        SystemExit: With code 130 after an interrupt; otherwise as raised by the command.
    """
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        load()()
        return
    signal.signal(signal.SIGINT, _exit_at_once)
    # Registered first, so called last. After that the interpreter restores the system's signal
    # handling, which would kill a process that has done all its work.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    command = load()
    interrupted = False
    main_thread = threading.get_ident()
    repeats: list[threading.Timer] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    def on_unraisable(problem: "sys.UnraisableHookArgs") -> None:
        if isinstance(problem.exc_value, KeyboardInterrupt):
            arguments = (main_thread, signal.SIGINT)
            repeats.append(threading.Timer(_RESEND_SECONDS, signal.pthread_kill, arguments))
            repeats[-1].start()
        else:
            sys.__unraisablehook__(problem)

    sys.unraisablehook = on_unraisable
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        command()
    except SystemExit as stop:
        if interrupted and stop.code not in (0, None):
            stop.code = INTERRUPTED
        raise
    except BaseException:
        if not interrupted:
            raise
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        # An interrupt inside exec (as when a dataclass is created) is recorded as unhandled, and
        # ``python -m`` would end by the signal. The next exec clears that record.
        exec("")
        # The work is done; avoid a traceback from the shutdown of the interpreter.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        for repeat in repeats:
            repeat.cancel()
            repeat.join()


def _open_closed_streams() -> None:
    """Open closed standard streams, so that no file opened later gets their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _exit_at_once(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Interrupted; nothing was begun.\n")
    os._exit(INTERRUPTED)
