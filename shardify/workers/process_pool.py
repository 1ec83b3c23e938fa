"""Run tasks in worker processes (parent side).

A fresh interpreter imports what the workers need and forks into them; they read pickled tasks from
pipes. They work the same from a script, a notebook or a test, share no memory with the parent, and
end when the parent ends. A worker that dies, or an error in one, ends the whole run with a one-line
error.
"""

import fcntl
import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import Any

from shardify.errors import BuildError, ShardifyError

_START_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from shardify.workers.worker_process import run_workers; "
    "run_workers({target!r}, {parent}, {ends!r})"
)
_ENVIRONMENT = {
    # There is one process per core, so linear algebra must not start threads.
    "OPENBLAS_NUM_THREADS": "1",
    # Keep freed memory: the C library would return the memory of each image to the system, which
    # clears every page again for the next image. Bytes.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""Environment variables of the workers, unless already set."""
_PROTOCOL = pickle.HIGHEST_PROTOCOL
_PIPE_BYTES = 1 << 20
"""Holds the tasks of two shards; ordinary users may not ask for more. Bytes."""
_STOP_TIMEOUT = 10
"""Seconds that the first process has to end the workers before it is killed."""
RETRY_SECONDS = 0.02
"""Seconds before the next task is requested again after a None."""
_END = (-1, b"")


@dataclass(eq=False, slots=True)
class _Worker:
    number: int
    tasks: Connection
    results: Connection
    room: int
    """Capacity of the task pipe. Bytes."""


class Workers:
    """A pool of processes that start at once and end with the ``with`` block.

    ``target`` is the ``module:function`` of one argument, imported once for all workers.

    Raises:
        BuildError: They cannot be started (limits on memory, processes or open files).
    """

    idle_work: Iterator[object] | None = None
    """Work in small steps that ``map`` runs in this process whenever no result is ready. Steps left
    at the end are not run. ``map`` raises what a step raises."""

    def __init__(self, target: str, count: int) -> None:
        self._all: list[_Worker] = []
        self._pids: list[int] = []
        ends: list[tuple[int, int]] = []
        try:
            for number in range(count):
                ends.append(self._connect(number))
            start = _START_CODE.format(path=sys.path, target=target, parent=os.getpid(), ends=ends)
            # In its own session, so that Ctrl-C reaches only the parent, which ends the workers.
            self._first = subprocess.Popen(
                [sys.executable, "-c", start],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                pass_fds=list(chain.from_iterable(ends)),
                env={**_ENVIRONMENT, **os.environ},
            )
            assert self._first.stdout is not None
            with self._first.stdout as reports:
                self._reports = Connection(os.dup(reports.fileno()), writable=False)
        except OSError as error:
            self._close()
            raise BuildError(
                f"{count} workers cannot be started ({error}); expected a system that has room "
                "for them; pass fewer --workers, or raise its limits"
            ) from error
        finally:
            for descriptor in chain.from_iterable(ends):
                os.close(descriptor)

    @property
    def max_in_flight(self) -> int:
        """Maximum unfinished tasks: one running and one queued per worker."""
        return 2 * len(self._all)

    @property
    def pids(self) -> list[int]:
        """Process IDs of all workers, once they have started; empty if they could not start."""
        if not self._pids:
            with suppress(EOFError):
                self._pids = self._reports.recv()
        return list(self._pids)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        # Killing a worker damages no published file: files appear by rename.
        self._first.terminate()
        try:
            self._first.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._first.kill()
            self._first.wait()
        self._reports.close()
        self._close()

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Send tasks to the workers; each gets its next task while the current one runs.

        Args:
            tasks: May contain None where no task is ready yet; it gets no number.

        Yields:
            (number of the task, its result), in the order of finishing.

        Raises:
            ShardifyError: Raised by a task.
            BuildError: A worker died, or raised something else.
        """
        pickled = _pickle_tasks(tasks)
        in_flight: dict[_Worker, list[tuple[int, int]]] = {worker: [] for worker in self._all}
        pending: tuple[int, bytes] | None = None
        exhausted = False
        by_results: dict[Any, _Worker] = {worker.results: worker for worker in self._all}
        while True:
            while not exhausted:
                pending = pending or next(pickled, _END)
                exhausted = pending is _END
                if pending is None or exhausted:
                    break
                number, data = pending
                idle = _choose_worker(in_flight, len(data))
                if idle is None:
                    break
                self._send(idle, data)
                in_flight[idle].append((number, len(data)))
                pending = None
            if exhausted and not any(in_flight.values()):
                return
            waiting_for_task = pending is None and not exhausted
            while self.idle_work is not None and not wait(by_results, 0):
                if next(self.idle_work, self) is self:
                    self.idle_work = None
                if waiting_for_task:
                    break
            retry = RETRY_SECONDS if self.idle_work is None else 0
            for ready in wait(by_results, retry if waiting_for_task else None):
                worker = by_results[ready]
                result = self._receive(worker)
                yield in_flight[worker].pop(0)[0], result

    def _connect(self, number: int) -> tuple[int, int]:
        """Create the pipes of a worker and return the worker's ends."""
        source, tasks = os.pipe()
        try:
            results, sink = os.pipe()
        except OSError:
            os.close(source)
            os.close(tasks)
            raise
        own_ends = Connection(tasks, readable=False), Connection(results, writable=False)
        self._all.append(_Worker(number, *own_ends, _enlarge_pipe(tasks)))
        return source, sink

    def _close(self) -> None:
        """Close the parent's ends of all pipes."""
        for worker in self._all:
            worker.results.close()
            worker.tasks.close()

    def _send(self, worker: _Worker, data: bytes) -> None:
        try:
            worker.tasks.send_bytes(data)
        except OSError:
            raise self._death_error(worker) from None

    def _receive(self, worker: _Worker) -> Any:
        try:
            succeeded, value = worker.results.recv()
        except (EOFError, OSError):
            raise self._death_error(worker) from None
        if succeeded:
            return value
        if isinstance(value, ShardifyError):
            raise value
        raise BuildError(
            f"a worker failed: {value}; this is a defect of shardify: please report it"
        )

    def _death_error(self, worker: _Worker) -> BuildError:
        pids = self.pids
        pid, code = pids[worker.number] if pids else self._first.pid, None
        while code is None:
            try:
                ended, status = self._reports.recv()
                code = status if ended == pid else None
            except EOFError:  # They could not start, or ended with the first.
                code = self._first.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return BuildError(
            f"worker {pid} died {how} (killed, or out of memory?); what is finished is "
            "kept: run the same command again, with fewer --workers if memory is short"
        )


def _choose_worker(in_flight: dict[_Worker, list[tuple[int, int]]], size: int) -> _Worker | None:
    """Return the least busy worker that can take a task of ``size`` bytes; None if none can."""
    free = [
        worker
        for worker, unfinished in in_flight.items()
        # A task that fits into the pipe is sent without waiting for the worker to read it.
        if not unfinished or (len(unfinished) == 1 and unfinished[0][1] + size <= worker.room)
    ]
    return min(free, key=lambda worker: len(in_flight[worker]), default=None)


def _pickle_tasks(tasks: Iterable[Any]) -> Iterator[tuple[int, bytes] | None]:
    """Yield (number, pickled task); None where no task is ready yet."""
    number = 0
    for task in tasks:
        yield None if task is None else (number, pickle.dumps(task, _PROTOCOL))
        number += task is not None


def _enlarge_pipe(pipe: int) -> int:
    """Enlarge a pipe where the system allows it. Returns the bytes that two tasks may fill."""
    room = 0
    if sys.platform == "linux":
        with suppress(OSError):
            room = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # Each write starts a new page, so two lengths and two tasks may waste four pages.
    return room - 4 * mmap.PAGESIZE
