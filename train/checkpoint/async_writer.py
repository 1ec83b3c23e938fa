"""A thread that writes files while training goes on.

Does what it is given, in order; what fails it remembers. It knows no formats.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Writer", "snapshot"]


class Writer:
    """Writes files in the order they are asked for, beside the training thread.

    At most ``DEPTH`` jobs wait: a disk slower than training slows it down instead of filling the
    memory.
    """

    DEPTH = 3

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[str, Callable[[], object]] | None] = queue.Queue(self.DEPTH)
        self._failures: list[str] = []
        self._thread: threading.Thread | None = None

    def submit(self, what: str, job: Callable[[], object]) -> None:
        """Have ``job`` done; an ``OSError`` of it becomes a failure, named by ``what``."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._thread.start()
        self._jobs.put((what, job))

    def failures(self) -> list[str]:
        """What could not be written since the last call, and why: a line each."""
        found, self._failures = self._failures, []
        return found

    def wait(self) -> None:
        """Return when everything asked for is on the disk, or has failed."""
        self._jobs.join()

    def close(self) -> None:
        """Finish what was asked for and end the thread; a later job starts another."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            what, job = item
            try:
                job()
            except OSError as error:
                self._failures = [*self._failures, f"{what} could not be written ({error})"]
            finally:
                self._jobs.task_done()
        self._jobs.task_done()


def snapshot(value: Any) -> Any:
    """A copy that training does not change; tensors stay where they lie, so a GPU is not awaited.

    Args:
        value: Dicts, lists, tuples and leaves; tensors among the leaves are cloned.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value
