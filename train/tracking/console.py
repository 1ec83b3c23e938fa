"""Progress bar and epoch lines on the terminal."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_EPOCH_LINE_METRICS = {
    "mask_iou": ("IoU", 3),
    "mask_dice": ("Dice", 3),
    "mask_precision": ("precision", 3),
    "mask_recall": ("recall", 3),
    "depth_mae": ("depth MAE", 4),
    "depth_rmse": ("RMSE", 4),
    "depth_absrel": ("AbsRel", 3),
    "depth_delta1": ("delta<1.25", 3),
}
"""Metrics of an epoch's line: key → label and number of digits."""


class Console:
    """Print lines, and draw a progress bar if standard error is a terminal."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        """Create a console without a bar.

        Lines are printed on standard output, or with ``to_stderr`` on standard error, where the bar
        is.
        """
        self._lines: TextIO = sys.stderr if to_stderr else sys.stdout
        self._quiet = False
        self._rich = RichConsole(stderr=True)
        self._has_terminal = self._rich.is_terminal
        self._progress: Progress | None = None

    def silence(self) -> None:
        """Print nothing from now on (ranks other than the first)."""
        self._quiet = True

    def print_line(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._quiet:
            return
        try:
            if self._progress is not None and self._lines.isatty():
                self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
            else:
                coding = self._lines.encoding or "utf-8"
                text = line.encode(coding, "replace").decode(coding)
                print(text, file=self._lines, flush=True)
        except OSError as error:
            # A run must not end because its output cannot be written.
            if self._lines is sys.stdout:
                # Its buffer would fail once more when the interpreter exits.
                sys.stdout, self._lines = None, sys.stderr
                self.print_line(
                    f"Warning: standard output cannot be written ({error}); using standard error"
                )
                self.print_line(line)

    def print_result(self, text: str) -> None:
        """Print the result of a command on standard output."""
        if not self._quiet:
            print(text, flush=True)

    def start_bar(self, title: str, steps: int) -> None:
        """Draw a new bar of ``steps`` steps."""
        self.remove_bar()
        if self._quiet or not self._has_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._rich,
            transient=True,
        )
        self._progress.add_task(title, total=steps, note="")
        with self._without_terminal():
            self._progress.start()

    def update_bar(self, done: int, note: str | None = None) -> None:
        """Set the bar to ``done`` steps; ``note``, if given, replaces the text beside it."""
        if self._progress is not None:
            task = self._progress.task_ids[0]
            fields: dict[str, Any] = {} if note is None else {"note": note}
            with self._without_terminal():
                self._progress.update(task, completed=done, **fields)

    def remove_bar(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            with self._without_terminal():
                self._progress.stop()
            self._progress = None

    @contextmanager
    def _without_terminal(self) -> Iterator[None]:
        """Go on without a bar if the terminal was closed: its signal saves the state."""
        try:
            yield
        except OSError:
            self._progress, self._has_terminal = None, False


def duration(seconds: float) -> str:
    """Format a time as ``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def epoch_line(record: Mapping[str, Any], *, best: bool = False) -> str:
    """Format the record of an epoch as one line; ``best``: its loss is the lowest of its stage.

    Records count epochs from 0, the line counts from 1.
    """
    metrics = record["val"] or record["train"]
    parts = [
        f"epoch {record['epoch'] + 1} ({record['res']} px)",
        f"train loss {record['train']['loss']:.4f}",
    ]
    if record["val"]:
        parts.append(f"val loss {metrics['loss']:.4f}")
    parts += [
        f"{label} {metrics[name]:.{digits}f}"
        for name, (label, digits) in _EPOCH_LINE_METRICS.items()
        if name in metrics
    ]
    parts += [
        f"lr {record['lr']:.2g}",
        f"{record['samples_per_s']:.1f} samples/s",
        f"data-wait {100 * record['data_wait']:.1f} %",
    ]
    return " · ".join([*parts, "best so far"] if best else parts)
