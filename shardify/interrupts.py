"""Ctrl-C at any moment ends a command with exit code 130 and one line, never with a traceback.

While a command is being imported nothing is under way, so the process ends at once. Afterwards
``KeyboardInterrupt`` takes its usual course, so that what was begun can be put in order; where it
got lost, as in a destructor, or came out as another error, as from a library's import, it still
counts. A signal that the caller ignores stays ignored; a standard stream that it closed leads
nowhere.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["INTERRUPTED", "run"]

INTERRUPTED = 130
"""Exit code: 128 and the number of SIGINT."""

_STDERR = 2

_AGAIN = 0.01
"""After a lost interrupt, how long until the next. Seconds."""


def run(load: Callable[[], Callable[[], object]]) -> None:
    """Import a command and run it.

    Args:
        load: Does the imports, and returns the command.

    Raises:
        SystemExit: With 130 after an interrupt; else what the command raises.
    """
    _occupy_standard()
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        load()()
        return
    signal.signal(signal.SIGINT, _leave)
    # The first to be registered is the last to be called. Then the interpreter gives signals back
    # to the system, which would kill a process that has done all its work.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    command = load()
    heard = False
    main_thread = threading.get_ident()
    repeats: list[threading.Timer] = []

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.default_int_handler(number, frame)

    def lost(problem: "sys.UnraisableHookArgs") -> None:
        if isinstance(problem.exc_value, KeyboardInterrupt):
            again = (main_thread, signal.SIGINT)
            repeats.append(threading.Timer(_AGAIN, signal.pthread_kill, again))
            repeats[-1].start()
        else:
            sys.__unraisablehook__(problem)

    sys.unraisablehook = lost
    signal.signal(signal.SIGINT, hear)
    try:
        command()
    except SystemExit as stop:
        if heard and stop.code not in (0, None):
            stop.code = INTERRUPTED
        raise
    except BaseException:
        if not heard:
            raise
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:
        # An interrupt inside exec, as where a dataclass is made, is noted as one that nobody
        # caught, and ``python -m`` would end by the signal. The next exec clears the note.
        exec("")
        # All is done; the interpreter's own end is not worth a traceback.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        for repeat in repeats:
            repeat.cancel()
            repeat.join()


def _occupy_standard() -> None:
    """Let no file or pipe that is opened later be taken for a standard stream that was closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Interrupted; nothing was begun.\n")
    os._exit(INTERRUPTED)
