"""Run tasks on the workers of an existing Dask cluster.

The tasks of a worker that dies run again on the others.
"""

import importlib
import itertools
import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from shardify.errors import BuildError, ShardifyError
from shardify.storage.paths import PathOrUrl, Url, as_path
from shardify.version import version as _version
from shardify.workers.pool import load_function, skip_missing_tasks

_WORKER_TIMEOUT = 30
"""Seconds to wait for a worker, at the start and when none is left."""
_CONNECT_TIMEOUT = 10
_POLL_SECONDS = 0.005
_TASKS_PER_THREAD = 2
"""Tasks submitted per thread of the cluster, so that no thread waits for its next task."""


class DaskPool:
    """A pool over the workers of a running Dask cluster.

    Raises:
        BuildError: The cluster cannot be reached, has no workers, runs another version of this
            package, or cannot access one of the paths.
    """

    def __init__(self, target: str, scheduler: str, places: Sequence[PathOrUrl] = ()) -> None:
        self._scheduler = scheduler
        self._target = target
        self._stack = ExitStack()
        self._last_seen = 0.0
        self.max_in_flight = _TASKS_PER_THREAD
        """See ``Pool``; set when ``map`` starts."""
        try:
            self._dask = importlib.import_module("distributed")
        except ImportError as error:
            raise BuildError(
                f"{scheduler}: --scheduler needs the package distributed, which is not installed; "
                "pip install distributed"
            ) from error
        with _muted_dask_log():
            self._client = self._connect()
            try:
                self._check_workers(places)
            except BaseException:
                self._client.close()
                raise

    def __enter__(self) -> "DaskPool":
        self._stack.enter_context(_muted_dask_log())
        return self

    def __exit__(self, *_: object) -> None:
        # Closing the client drops unused results. The cluster itself is not ours to stop.
        with suppress(OSError, TimeoutError):
            self._client.close()
        self._stack.close()

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Submit tasks as workers become free; the tasks of a dead worker are submitted again.

        Raises:
            ShardifyError: Raised by a task.
            BuildError: Workers died again and again, the scheduler is gone, or a task failed.
        """
        run = uuid.uuid4().hex
        numbered = enumerate(skip_missing_tasks(tasks))
        self.max_in_flight = max(1, sum(self._client.nthreads().values()) * _TASKS_PER_THREAD)
        queue = self._dask.as_completed(loop=self._client.loop)
        numbers: dict[str, int] = {}

        def submit(number: int, task: Any) -> None:
            key = f"shardify-{run}-{number}"
            numbers[key] = number
            queue.add(self._client.submit(_run_task, self._target, task, key=key, pure=False))

        for number, task in itertools.islice(numbered, self.max_in_flight):
            submit(number, task)
        while numbers:
            future = self._next_finished(queue)
            number = numbers.pop(future.key)
            result = self._result(future)
            future.release()
            following = next(numbered, None)
            if following is not None:
                submit(*following)
            yield number, result

    def _next_finished(self, queue: Any) -> Any:
        """Wait for the next finished future and return it."""
        self._last_seen = last_check = time.monotonic()
        while not queue.has_ready():
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - last_check > 1:
                last_check = time.monotonic()
                self._check_for_workers()
        return next(queue)

    def _check_for_workers(self) -> None:
        """Raise BuildError if the cluster has had no worker for ``_WORKER_TIMEOUT`` seconds."""
        with suppress(OSError, TimeoutError):  # The futures report it.
            if self._client.nthreads():
                self._last_seen = time.monotonic()
        if time.monotonic() - self._last_seen > _WORKER_TIMEOUT:
            raise BuildError(
                f"{self._scheduler}: no worker was left for {_WORKER_TIMEOUT} s; what is finished "
                "is kept: start workers and run the same command again"
            )

    def _result(self, future: Any) -> Any:
        try:
            while True:
                try:
                    return future.result(timeout=1)
                except TimeoutError:
                    # The worker that held the result died; the task runs again.
                    if future.status == "error":
                        raise
                    self._check_for_workers()
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
        # A client that gets a bad address reports it a second time when it is collected.
        if not re.fullmatch(r"(tcp|tls|ucx|ws|wss|inproc)://.+", self._scheduler):
            raise BuildError(
                f"{self._scheduler}: no address of a Dask scheduler; expected tcp://HOST:PORT of "
                "one that runs; correct --scheduler, or go without"
            )
        try:
            client = self._dask.Client(
                self._scheduler, timeout=_CONNECT_TIMEOUT, set_as_default=False
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise BuildError(
                f"{self._scheduler}: no Dask scheduler answers; expected tcp://HOST:PORT of one "
                "that runs; start it, or go without --scheduler"
            ) from error
        try:
            client.wait_for_workers(1, timeout=_WORKER_TIMEOUT)
        except TimeoutError as error:
            client.close()
            raise BuildError(
                f"{self._scheduler}: no worker came within {_WORKER_TIMEOUT} s; expected at least "
                "one; start workers"
            ) from error
        return client

    def _check_workers(self, places: Sequence[PathOrUrl]) -> None:
        """Raise BuildError if a worker has another version or cannot access a path."""
        sources = [str(place.absolute()) for place in places if not isinstance(place, Url)]
        own_version = _version()
        try:
            answers = self._client.run(_inspect_worker, sources)
        except Exception as error:
            raise BuildError(
                f"{self._scheduler}: its workers cannot run shardline ({type(error).__name__}: "
                f"{error}); expected version {own_version}; install it on every worker"
            ) from error
        visible_here = set(_inspect_worker(sources)[1])
        for worker, (version, visible) in sorted(answers.items()):
            if version != own_version:
                raise BuildError(
                    f"{self._scheduler}: worker {worker} has shardline {version}; expected "
                    f"{own_version}, as here; install it on every worker"
                )
            for path in sorted(visible_here - set(visible)):
                raise BuildError(
                    f"{path}: worker {worker} of {self._scheduler} does not see it; expected a "
                    "folder that all share, or a URL"
                )


@contextmanager
def _muted_dask_log() -> Iterator[None]:
    """Mute Dask's log, so that an error stays one line."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    for name in ("client", "comm", "core", "worker", "utils", "batched"):
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _inspect_worker(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the version of a worker and the paths that exist for it; runs on each worker."""
    return _version(), [path for path in paths if as_path(path).exists()]


def _run_task(target: str, task: Any) -> Any:
    """Run one task; runs on a worker."""
    return load_function(target)(task)
