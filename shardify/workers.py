"""Worker processes: tasks out, results in, nothing left running.

A worker is a fresh interpreter that reads pickled tasks from its standard input, so it works the
same from a script, a notebook or a test, holds nothing of the parent's memory, and dies with the
parent. A worker that dies, and an error in one, ends the whole run with one line. Knows nothing
of what a task does.
"""

import ctypes
import gc
import importlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Any

from shardify.errors import BuildError, ShardifyError

__all__ = ["Workers", "serve"]

_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from shardify.workers import serve; serve({target!r}, {parent})"
)


class Workers:
    """A pool that starts at once and is gone when its ``with`` block ends, however it ends.

    Args:
        target: ``module:function`` of one argument, imported in each worker.
        count: Processes.
    """

    meanwhile: Iterator[object] | None = None
    """Work in small steps that ``map`` does here whenever no result is ready; what is left of it
    at the end is left. What it raises, ``map`` raises."""

    def __init__(self, target: str, count: int) -> None:
        command = [
            sys.executable,
            "-c",
            _START.format(path=sys.path, target=target, parent=os.getpid()),
        ]
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            # A session of its own: Ctrl-C reaches the parent alone, which then ends the workers.
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                # One process a core is the plan: no threads for algebra beside.
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
            self._all.append(worker)
            self._idle.append(worker)

    @property
    def pids(self) -> list[int]:
        """Process numbers of all workers."""
        return [worker.pid for worker in self._all]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._all:
            # Nothing published is at stake: files appear by rename alone.
            worker.kill()
        for worker in self._all:
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        continue
            worker.wait()

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Hand out tasks as workers come free.

        Yields:
            (number of the task, its result), in the order of finishing.

        Raises:
            ShardifyError: What a task raised.
            BuildError: A worker died, or raised something else.
        """
        numbered = enumerate(tasks)
        busy: dict[subprocess.Popen[bytes], int] = {}
        with selectors.DefaultSelector() as selector:
            while True:
                while self._idle:
                    try:
                        number, task = next(numbered)
                    except StopIteration:
                        break
                    worker = self._idle.pop()
                    self._send(worker, task)
                    busy[worker] = number
                    selector.register(_pipe(worker.stdout), selectors.EVENT_READ, worker)
                if not busy:
                    return
                while self.meanwhile is not None and not selector.select(0):
                    if next(self.meanwhile, self) is self:
                        self.meanwhile = None
                for ready, _ in selector.select():
                    worker = ready.data
                    selector.unregister(ready.fileobj)
                    result = self._receive(worker)
                    number = busy.pop(worker)
                    self._idle.append(worker)
                    yield number, result

    def _send(self, worker: "subprocess.Popen[bytes]", task: Any) -> None:
        data = pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            pipe = _pipe(worker.stdin)
            pipe.write(_LENGTH.pack(len(data)))
            pipe.write(data)
            pipe.flush()
        except OSError:
            raise self._died(worker) from None

    def _receive(self, worker: "subprocess.Popen[bytes]") -> Any:
        pipe = _pipe(worker.stdout)
        head = pipe.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise self._died(worker)
        (length,) = _LENGTH.unpack(head)
        data = pipe.read(length)
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

    def _died(self, worker: "subprocess.Popen[bytes]") -> BuildError:
        worker.kill()
        code = worker.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return BuildError(
            f"worker {worker.pid} died {how} (killed, or out of memory?); what is finished is "
            "kept: run the same command again, with fewer --workers if memory is short"
        )


def serve(target: str, parent: int) -> None:
    """What a worker runs: answer the tasks of process ``parent`` until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    tasks = os.fdopen(os.dup(0), "rb")
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # A stray print must not damage the stream of results.
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    # Tasks make much and keep little: looking for cycles that often finds none.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    while head := tasks.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        task = pickle.loads(tasks.read(length))
        try:
            answer = (True, function(task))
        except ShardifyError as error:
            answer = (False, error)
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}".replace("\n", " "))
        data = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        results.write(_LENGTH.pack(len(data)))
        results.write(data)
        results.flush()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, even by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
