"""The workers' side of ``workers``: one fresh interpreter imports, then forks into all of them.

What is imported is imported once, however many workers there are; a module that would import more
with its first task does so in a function named ``prepare``. The first process does no task: it
tells who the workers are and how each ended, and takes them along when it ends. Knows nothing
of what a task does.
"""

import ctypes
import gc
import importlib
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from shardify.errors import ShardifyError

__all__ = ["LENGTH", "REPORT", "run_workers"]

LENGTH = struct.Struct("<Q")
"""Before each pickled task and each answer: its length. Bytes."""
REPORT = struct.Struct("<2i")
"""A worker's process number, and how it ended; first of all, for each, its number and 0."""

_DRAINED = 1 << 16
_PR_SET_PDEATHSIG = 1
_NO_PROCESS = 71
"""Exit code where the system gives no more processes: ``EX_OSERR`` of sysexits.h."""


def run_workers(target: str, parent: int, ends: Sequence[tuple[int, int]]) -> None:
    """Fork the workers, and wait for their ends; reports go to standard output.

    Args:
        target: ``module:function`` of one argument.
        parent: The process that gives the tasks.
        ends: For each worker the descriptors that it reads tasks from and writes answers to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(parent)
    report = os.dup(1)
    os.dup2(2, 1)  # A stray print must not damage the reports.
    # Imports make much that stays, and tasks make much and keep little: looking for cycles that
    # often finds none.
    gc.set_threshold(100_000, 50, 50)
    module, _, name = target.partition(":")
    loaded = importlib.import_module(module)
    function = getattr(loaded, name)
    getattr(loaded, "prepare", lambda: None)()
    gc.freeze()
    here = os.getpid()
    workers: list[int] = []

    def end(*_: object) -> None:
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in workers:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    for number, (tasks, results) in enumerate(ends):
        try:
            pid = os.fork()
        except OSError:
            os._exit(_NO_PROCESS)  # The others end with this one; the parent says it in a line.
        if not pid:
            # The kernel shares processors among sessions: each worker is to have a share.
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _die_with(here)
            # An end is seen as closed only when nobody holds it any more.
            for other in (report, *(each for pair in ends[number + 1 :] for each in pair)):
                os.close(other)
            _answer(function, tasks, results)
            return
        workers.append(pid)
        os.close(tasks)
        os.close(results)
    with suppress(BrokenPipeError):
        os.write(report, b"".join([REPORT.pack(pid, 0) for pid in workers]))
        while workers:
            pid, status = os.wait()
            workers.remove(pid)
            os.write(report, REPORT.pack(pid, os.waitstatus_to_exitcode(status)))


def _answer(function: Callable[[Any], Any], source: int, sink: int) -> None:
    """What a worker does: answer tasks until there are no more."""
    try:
        with os.fdopen(source, "rb") as tasks, os.fdopen(sink, "wb") as results:
            while head := tasks.read(LENGTH.size):
                (length,) = LENGTH.unpack(head)
                given = tasks.read(length)
                if len(given) < length:
                    return
                try:
                    answer = (True, function(pickle.loads(given)))
                except ShardifyError as error:
                    answer = (False, error)
                except Exception as error:
                    answer = (False, f"{type(error).__name__}: {error}".replace("\n", " "))
                data = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
                results.write(LENGTH.pack(len(data)))
                results.write(data)
                results.flush()
                # That ends the whole run: tasks that are on their way are not begun.
                while not answer[0] and tasks.read(_DRAINED):
                    pass
    except BrokenPipeError:
        os._exit(1)  # Who asked is gone, and nobody is there to be told.


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
