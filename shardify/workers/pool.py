"""The pool protocol, and a pool that runs tasks in the calling process.

Every pool gives the same results; only the order of finishing differs.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from shardify.workers.process_pool import RETRY_SECONDS


class Pool(Protocol):
    """Runs tasks. A context manager; leaving its block a second time does nothing."""

    @property
    def max_in_flight(self) -> int:
        """Maximum number of tasks taken from the iterator and not yet finished."""
        ...

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, its result), in the order of finishing.

        A task may be None if none is ready yet; the next is requested a little later.
        """
        ...

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *_: object) -> None: ...


class InlinePool:
    """Runs each task in this process, when its result is requested."""

    def __init__(self, target: str) -> None:
        self._function = load_function(target)
        self.max_in_flight = 1

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, its result), in order."""
        for number, task in enumerate(skip_missing_tasks(tasks)):
            yield number, self._function(task)


def skip_missing_tasks(tasks: Iterable[Any]) -> Iterator[Any]:
    """Yield the tasks that are not None; sleep briefly for each None."""
    for task in tasks:
        if task is None:
            time.sleep(RETRY_SECONDS)
        else:
            yield task


def load_function(target: str) -> Callable[[Any], Any]:
    """Import the function named by ``module:function``."""
    module, _, name = target.partition(":")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return function
