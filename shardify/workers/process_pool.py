"""Worker processes: tasks out, results in, nothing left running.

Workers come of a fresh interpreter, which imports what they need and forks into them; they read
pickled tasks from pipes. So they work the same from a script, a notebook or a test, hold nothing
of the parent's memory, and die with the parent. A worker that dies, and an error in one, ends the
whole run with one line. Knows nothing of what a task does.
"""

import fcntl
import mmap
import os
import pickle
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from shardify.errors import BuildError, ShardifyError
from shardify.workers.worker_process import LENGTH, REPORT

__all__ = ["RETRY_SECONDS", "Workers"]

_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from shardify.workers.worker_process import run_workers; "
    "run_workers({target!r}, {parent}, {ends!r})"
)
_SETTINGS = {
    # One process a core is the plan: no threads for algebra beside.
    "OPENBLAS_NUM_THREADS": "1",
    # Memory that was freed is used again: the C library would give each picture's back to the
    # system, which clears every page of it for the next. Bytes.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""Of the workers, where the environment does not say otherwise."""
_PROTOCOL = pickle.HIGHEST_PROTOCOL
_PIPE = 1 << 20
"""Room for two shards' tasks; more is not allowed to everyone. Bytes."""
_PATIENCE = 10
"""How long the first process may take to end the others, before it is killed. Seconds."""
RETRY_SECONDS = 0.02
"""Seconds until a task that was not there yet is asked for again."""
_OVER = (-1, b"")


@dataclass(eq=False, slots=True)
class _Worker:
    number: int
    tasks: IO[bytes]
    results: IO[bytes]
    """Unbuffered: what was read ahead here, the selector would not tell of."""
    room: int
    """What the pipe of tasks holds, unread. Bytes."""


class Workers:
    """A pool that starts at once and is gone when its ``with`` block ends, however it ends.

    Args:
        target: ``module:function`` of one argument, imported once for all workers.
        count: Processes.

    Raises:
        BuildError: They cannot be started, for want of memory, processes or open files.
    """

    idle_work: Iterator[object] | None = None
    """Work in small steps that ``map`` does here whenever no result is ready; what is left of it
    at the end is left. What it raises, ``map`` raises."""

    def __init__(self, target: str, count: int) -> None:
        self._all: list[_Worker] = []
        self._pids: list[int] = []
        ends: list[tuple[int, int]] = []
        try:
            for number in range(count):
                ends.append(self._connect(number))
            given = [each for pair in ends for each in pair]
            start = _START.format(path=sys.path, target=target, parent=os.getpid(), ends=ends)
            # A session of its own: Ctrl-C reaches the parent alone, which then ends the workers.
            self._first = subprocess.Popen(
                [sys.executable, "-c", start],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                pass_fds=given,
                env={**_SETTINGS, **os.environ},
            )
        except OSError as error:
            self._close()
            raise BuildError(
                f"{count} workers cannot be started ({error}); expected a system that has room "
                "for them; pass fewer --workers, or raise its limits"
            ) from error
        finally:
            for pair in ends:
                for each in pair:
                    os.close(each)

    @property
    def max_in_flight(self) -> int:
        """Tasks at work, or waiting for it, at most: each worker's at hand, and its next."""
        return 2 * len(self._all)

    @property
    def pids(self) -> list[int]:
        """Process numbers of all workers, once they have started; empty if they could not."""
        while len(self._pids) < len(self._all):
            report = self._reported()
            if report is None:
                return []
            self._pids.append(report[0])
        return list(self._pids)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Nothing published is at stake: files appear by rename alone.
        self._first.terminate()
        try:
            self._first.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._first.kill()
            self._first.wait()
        assert self._first.stdout is not None
        self._first.stdout.close()
        self._close()

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Hand out tasks, each worker's next before it is done with the one at hand.

        Args:
            tasks: None among them is no task, and has no number: there is none yet.

        Yields:
            (number of the task, its result), in the order of finishing.

        Raises:
            ShardifyError: What a task raised.
            BuildError: A worker died, or raised something else.
        """
        pickled = _pickled(tasks)
        given: dict[_Worker, list[tuple[int, int]]] = {worker: [] for worker in self._all}
        first: tuple[int, bytes] | None = None
        over = False
        with selectors.DefaultSelector() as selector:
            for worker in self._all:
                selector.register(worker.results, selectors.EVENT_READ, worker)
            while True:
                while not over:
                    first = first or next(pickled, _OVER)
                    over = first is _OVER
                    idle = self._free(given, len(first[1])) if first and not over else None
                    if first is None or idle is None:
                        break
                    self._send(idle, first[1])
                    given[idle].append((first[0], len(first[1])))
                    first = None
                if over and not any(given.values()):
                    return
                again = first is None and not over
                while self.idle_work is not None and not selector.select(0):
                    if next(self.idle_work, self) is self:
                        self.idle_work = None
                    if again:
                        break
                wait = None if not again else RETRY_SECONDS if self.idle_work is None else 0
                ready = [key.data for key, _ in selector.select(wait)]
                for worker in ready:
                    result = self._receive(worker)
                    yield given[worker].pop(0)[0], result

    def _free(self, given: dict[_Worker, list[tuple[int, int]]], size: int) -> _Worker | None:
        """Who has least to do of those that can take a task of so many bytes."""
        free = [
            worker
            for worker, held in given.items()
            # What fits into the pipe is sent without waiting for it to be read.
            if not held or (len(held) == 1 and held[0][1] + size <= worker.room)
        ]
        return min(free, key=lambda each: len(given[each]), default=None)

    def _connect(self, number: int) -> tuple[int, int]:
        """Make a worker's pipes. Returns its ends of them."""
        source, tasks = os.pipe()
        try:
            results, sink = os.pipe()
        except OSError:
            os.close(source)
            os.close(tasks)
            raise
        self._all.append(
            _Worker(number, os.fdopen(tasks, "wb"), os.fdopen(results, "rb", 0), _widened(tasks))
        )
        return source, sink

    def _close(self) -> None:
        """Close this side's ends of all pipes."""
        for worker in self._all:
            worker.results.close()
            with suppress(OSError):
                worker.tasks.close()

    def _send(self, worker: _Worker, data: bytes) -> None:
        try:
            worker.tasks.write(LENGTH.pack(len(data)))
            worker.tasks.write(data)
            worker.tasks.flush()
        except OSError:
            raise self._died(worker) from None

    def _receive(self, worker: _Worker) -> Any:
        head = _read(worker.results, LENGTH.size)
        if len(head) < LENGTH.size:
            raise self._died(worker)
        (length,) = LENGTH.unpack(head)
        data = _read(worker.results, length)
        if len(data) < length:
            raise self._died(worker)
        good, value = pickle.loads(data)
        if good:
            return value
        if isinstance(value, ShardifyError):
            raise value
        raise BuildError(
            f"a worker failed: {value}; this is a defect of shardify: please report it"
        )

    def _died(self, worker: _Worker) -> BuildError:
        pids = self.pids
        pid, code = pids[worker.number] if pids else self._first.pid, None
        while code is None:
            report = self._reported()
            if report is None:  # They could not even start, or all went down with the first.
                code = self._first.wait()
            elif report[0] == pid:
                code = report[1]
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return BuildError(
            f"worker {pid} died {how} (killed, or out of memory?); what is finished is "
            "kept: run the same command again, with fewer --workers if memory is short"
        )

    def _reported(self) -> tuple[int, int] | None:
        """What the first process tells next of a worker; None when it has ended."""
        assert self._first.stdout is not None
        data = _read(self._first.stdout, REPORT.size)
        if len(data) < REPORT.size:
            return None
        pid, code = REPORT.unpack(data)
        return pid, code


def _pickled(tasks: Iterable[Any]) -> Iterator[tuple[int, bytes] | None]:
    """Each task's number and what is sent of it; None where there is none yet."""
    number = 0
    for task in tasks:
        yield None if task is None else (number, pickle.dumps(task, _PROTOCOL))
        number += task is not None


def _read(pipe: IO[bytes], size: int) -> bytes:
    """So many bytes of an unbuffered pipe; fewer only where it ends."""
    data = bytearray()
    while len(data) < size:
        more = pipe.read(size - len(data))
        if not more:
            break
        data += more
    return bytes(data)


def _widened(pipe: int) -> int:
    """Give a pipe more room, where the system does that. Returns how much two tasks may fill."""
    room = 0
    if sys.platform == "linux":
        with suppress(OSError):
            room = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
    # A write begins a page of its own, so each of two lengths and two tasks may waste one.
    return room - 4 * mmap.PAGESIZE
