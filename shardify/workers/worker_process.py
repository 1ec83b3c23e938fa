"""Run tasks in worker processes (child side): one fresh interpreter imports, then forks.

Modules are imported once for all workers. If the module of the target has a function ``prepare``,
it is called before the fork, to import what the first task would. The first process runs no task:
it reports the process ID and the exit code of each worker, and ends the workers when it ends.
This module must stay light.
"""

import ctypes
import gc
import importlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

from shardify.errors import ShardifyError

_PR_SET_PDEATHSIG = 1
_EXIT_NO_PROCESS = 71
"""Exit code if the system starts no more processes: ``EX_OSERR`` of sysexits.h."""


def run_workers(target: str, parent: int, ends: Sequence[tuple[int, int]]) -> None:
    """Fork the workers and wait until they end.

    Reports go to standard output: the process IDs of all workers, and, as each ends, its process ID
    and exit code.

    Args:
        target: ``module:function`` of one argument.
        parent: Process ID of the process that sends the tasks.
        ends: For each worker, the descriptors to read tasks from and to write answers to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _exit_with_parent(parent)
    report = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # A stray print must not damage the reports.
    # Imports create many lasting objects and tasks leave few cycles, so frequent cycle collection
    # would find nothing.
    gc.set_threshold(100_000, 50, 50)
    module, _, name = target.partition(":")
    target_module = importlib.import_module(module)
    function = getattr(target_module, name)
    getattr(target_module, "prepare", lambda: None)()
    gc.freeze()
    own_pid = os.getpid()
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
            # The other workers end with this process; the parent reports it.
            os._exit(_EXIT_NO_PROCESS)
        if not pid:
            # The kernel divides CPU time between sessions, so each worker gets its own.
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _exit_with_parent(own_pid)
            # A pipe counts as closed only when no process holds its end.
            report.close()
            for descriptor in chain.from_iterable(ends[number + 1 :]):
                os.close(descriptor)
            _serve_tasks(function, tasks, results)
            return
        workers.append(pid)
        os.close(tasks)
        os.close(results)
    with suppress(BrokenPipeError):
        report.send(list(workers))
        while workers:
            pid, status = os.wait()
            workers.remove(pid)
            report.send((pid, os.waitstatus_to_exitcode(status)))


def _serve_tasks(function: Callable[[Any], Any], source: int, sink: int) -> None:
    """Read tasks, run them and write the answers, until the task pipe ends."""
    tasks, results = Connection(source, writable=False), Connection(sink, readable=False)
    with suppress(EOFError, OSError):  # The parent has ended.
        while True:
            pickled = tasks.recv_bytes()
            try:
                answer = (True, function(pickle.loads(pickled)))
            except ShardifyError as error:
                answer = (False, error)
            except Exception as error:
                answer = (False, f"{type(error).__name__}: {error}".replace("\n", " "))
            results.send(answer)
            # An error ends the whole run: queued tasks are discarded.
            while not answer[0]:
                tasks.recv_bytes()


def _exit_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, even by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
