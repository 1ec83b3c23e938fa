"""The workers of a Dask cluster as a pool: a worker that dies is made up for by the others.

Starts no cluster, and knows nothing of what a task does.
"""

import importlib
import itertools
import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from shardify.errors import BuildError, ShardifyError
from shardify.storage.paths import PathOrUrl, Url, as_path
from shardify.version import version as _version
from shardify.workers.pool import awaited, function_of

__all__ = ["Cluster"]

_PATIENCE = 30
"""How long to wait for a first worker. Seconds."""
_CONNECT = 10
_POLL = 0.005
_AHEAD = 2
"""Tasks handed out for each thread of the cluster, so that none waits for the next."""


class Cluster:
    """The workers of a Dask cluster that is already there.

    Raises:
        BuildError: It cannot be reached, has no workers, runs another version of this package, or
            does not see the places.
    """

    def __init__(self, target: str, scheduler: str, places: Sequence[PathOrUrl] = ()) -> None:
        self._scheduler = scheduler
        self._target = target
        self._quiet = _Quiet()
        self._seen = 0.0
        self.max_in_flight = _AHEAD
        """As of every pool; known once tasks are handed out."""
        try:
            self._dask = importlib.import_module("distributed")
        except ImportError as error:
            raise BuildError(
                f"{scheduler}: --scheduler needs the package distributed, which is not installed; "
                "pip install distributed"
            ) from error
        with self._quiet:
            self._client = self._connect()
            try:
                self._examine(places)
            except BaseException:
                self._client.close()
                raise

    def __enter__(self) -> "Cluster":
        self._quiet.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Results that nobody waits for are dropped with the client; the cluster is not ours.
        with suppress(OSError, TimeoutError):
            self._client.close()
        self._quiet.__exit__()

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Hand out tasks as workers come free; a dead worker's are handed out again.

        Raises:
            ShardifyError: What a task raised.
            BuildError: Workers died again and again, the scheduler is gone, or a task failed.
        """
        run = uuid.uuid4().hex
        numbered = enumerate(awaited(tasks))
        self.max_in_flight = max(1, sum(self._client.nthreads().values()) * _AHEAD)
        queue = self._dask.as_completed(loop=self._client.loop)
        numbers: dict[str, int] = {}

        def submit(number: int, task: Any) -> None:
            key = f"shardify-{run}-{number}"
            numbers[key] = number
            queue.add(self._client.submit(_run, self._target, task, key=key, pure=False))

        for number, task in itertools.islice(numbered, self.max_in_flight):
            submit(number, task)
        while numbers:
            future = self._next_of(queue)
            number = numbers.pop(future.key)
            result = self._result_of(future)
            future.release()
            following = next(numbered, None)
            if following is not None:
                submit(*following)
            yield number, result

    def _next_of(self, queue: Any) -> Any:
        """The next future that is done."""
        self._seen = looked = time.monotonic()
        while not queue.has_ready():
            time.sleep(_POLL)
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                self._look_for_workers()
        return next(queue)

    def _look_for_workers(self) -> None:
        """Raise BuildError when none has been left for long: nothing would ever be done."""
        with suppress(OSError, TimeoutError):  # The futures will tell.
            if self._client.nthreads():
                self._seen = time.monotonic()
        if time.monotonic() - self._seen > _PATIENCE:
            raise BuildError(
                f"{self._scheduler}: no worker was left for {_PATIENCE} s; what is finished is "
                "kept: start workers and run the same command again"
            )

    def _result_of(self, future: Any) -> Any:
        try:
            while True:
                try:
                    return future.result(timeout=1)
                except TimeoutError:
                    # The worker died that had the result; it is being made again.
                    if future.status == "error":
                        raise
                    self._look_for_workers()
        except ShardifyError:
            raise
        except Exception as error:
            name = type(error).__name__
            if name == "KilledWorker":
                raise BuildError(
                    f"{self._scheduler}: one task after another killed the worker that ran it (out "
                    "of memory?); what is finished is kept: run the same command again, with "
                    "workers of fewer threads or more memory"
                ) from error
            if future.status in ("cancelled", "lost") or name in ("CommClosedError",):
                raise BuildError(
                    f"{self._scheduler}: the scheduler is gone; what is finished is kept: start it "
                    "and run the same command again"
                ) from error
            raise BuildError(
                f"{self._scheduler}: a worker failed: {name}: {error}; see its log, and run the "
                "same command again"
            ) from error

    def _connect(self) -> Any:
        # A client that is refused its address complains again when it is collected.
        if not re.fullmatch(r"(tcp|tls|ucx|ws|wss|inproc)://.+", self._scheduler):
            raise BuildError(
                f"{self._scheduler}: no address of a Dask scheduler; expected tcp://HOST:PORT of "
                "one that runs; correct --scheduler, or go without"
            )
        try:
            client = self._dask.Client(self._scheduler, timeout=_CONNECT, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise BuildError(
                f"{self._scheduler}: no Dask scheduler answers; expected tcp://HOST:PORT of one "
                "that runs; start it, or go without --scheduler"
            ) from error
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            client.close()
            raise BuildError(
                f"{self._scheduler}: no worker came within {_PATIENCE} s; expected at least one; "
                "start workers"
            ) from error
        return client

    def _examine(self, places: Sequence[PathOrUrl]) -> None:
        """Whether every worker can do the work, before any of it is handed out."""
        sources = [str(each.absolute()) for each in places if not isinstance(each, Url)]
        here = _version()
        try:
            answers = self._client.run(_look, sources)
        except Exception as error:
            raise BuildError(
                f"{self._scheduler}: its workers cannot run shardline ({type(error).__name__}: "
                f"{error}); expected version {here}; install it on every worker"
            ) from error
        seen_here = set(_look(sources)[1])
        for worker, (version, seen) in sorted(answers.items()):
            if version != here:
                raise BuildError(
                    f"{self._scheduler}: worker {worker} has shardline {version}; expected {here}, "
                    "as here; install it on every worker"
                )
            for path in sorted(seen_here - set(seen)):
                raise BuildError(
                    f"{path}: worker {worker} of {self._scheduler} does not see it; expected a "
                    "folder that all share, or a URL"
                )


class _Quiet:
    """Dask's own log tells of lost connections at length; here the one line that counts is told."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("distributed")
        self._level = self._logger.level

    def __enter__(self) -> None:
        self._logger.setLevel(logging.CRITICAL)
        for name in ("client", "comm", "core", "worker", "utils", "batched"):
            logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


def _look(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Run on each worker: its version, and which of the paths (or their folders) it sees."""
    return _version(), [each for each in paths if as_path(each).exists()]


def _run(target: str, task: Any) -> Any:
    """Run on a worker: one task."""
    return function_of(target)(task)
