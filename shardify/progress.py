"""A progress bar on stderr, for people alone: elsewhere nothing is shown, nor imported."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "progress"]


class Bar:
    """Called with what is done and what there is in all."""

    def __init__(self, bar: "Progress", unit: str) -> None:
        self._bar = bar
        self._unit = unit
        self._task = bar.add_task("", total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        speed = self._bar.tasks[0].speed
        rate = f"{speed:,.0f} {self._unit}/s" if speed else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def waiting(self, share: float) -> None:
        """Show that nothing is done until something is read, and how much of it is: in [0, 1]."""
        self._bar.update(self._task, rate=f"waiting for the disk: {share:.0%} read ahead")


@contextmanager
def progress(unit: str) -> Iterator[Bar | None]:
    """A bar on stderr, if that is a terminal; else nothing at all."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield Bar(bar, unit)
