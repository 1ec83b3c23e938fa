"""Write files in a background thread while training continues."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Writer:
    """Runs write jobs in order, in one thread.

    At most ``DEPTH`` jobs wait in the queue; then `submit` blocks, so that a slow disk does not
    fill the memory.
    """

    DEPTH = 3

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[str, Callable[[], object]] | None] = queue.Queue(self.DEPTH)
        self._failures: list[tuple[str, OSError]] = []
        self._thread: threading.Thread | None = None

    def submit(self, name: str, job: Callable[[], object]) -> None:
        """Queue ``job``; if it raises ``OSError``, `failures` reports it under ``name``."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._thread.start()
        self._jobs.put((name, job))

    def failures(self) -> list[tuple[str, OSError]]:
        """Return name and error of each job that failed since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def wait(self) -> None:
        """Wait until all queued jobs are finished."""
        self._jobs.join()

    def close(self) -> None:
        """Finish all queued jobs and end the thread; a later job starts a new one."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            name, job = item
            try:
                job()
            except OSError as error:
                self._failures = [*self._failures, (name, error)]
            finally:
                self._jobs.task_done()
        self._jobs.task_done()


def snapshot(value: Any) -> Any:
    """Return a deep copy; tensors are cloned on their device, without waiting for the GPU."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value
