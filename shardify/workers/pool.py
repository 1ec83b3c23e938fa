"""What does tasks, of whatever kind: hands them out, gives back results in the order of finishing.

What a pool gives does not depend on which pool it is. Here is the one that needs no other process;
``workers`` and ``cluster`` have the others, ``hire`` chooses.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol

from shardify.workers.process_pool import RETRY_SECONDS

__all__ = ["InlinePool", "Pool", "awaited", "function_of"]


class Pool(Protocol):
    """What ``Workers`` is, too. To leave its block a second time is to do nothing."""

    @property
    def max_in_flight(self) -> int:
        """Tasks at work, or waiting for it, at most, of those that were asked for."""
        ...

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, its result), in the order of finishing.

        A task that is None stands for none yet: the next is asked for a little later.
        """
        ...

    def __enter__(self) -> "Pool": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class InlinePool:
    """No workers at all: each task is done when its result is asked for."""

    def __init__(self, target: str) -> None:
        self._function = function_of(target)
        self.max_in_flight = 1

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the task, its result), in order."""
        for number, task in enumerate(awaited(tasks)):
            yield number, self._function(task)


def awaited(tasks: Iterable[Any]) -> Iterator[Any]:
    """Tasks alone: waits where there is none yet."""
    for task in tasks:
        if task is None:
            time.sleep(RETRY_SECONDS)
        else:
            yield task


def function_of(target: str) -> Callable[[Any], Any]:
    """The function that ``module:function`` names."""
    module, _, name = target.partition(":")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return function
