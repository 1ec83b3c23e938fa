"""Progress bar and epoch lines on the terminal."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Screen", "epoch_line"]


SHOWN = {
    "mask_iou": ("IoU", 3),
    "mask_dice": ("Dice", 3),
    "mask_precision": ("precision", 3),
    "mask_recall": ("recall", 3),
    "depth_mae": ("depth MAE", 4),
    "depth_rmse": ("RMSE", 4),
    "depth_absrel": ("AbsRel", 3),
    "depth_delta1": ("delta<1.25", 3),
}
"""Figures of an epoch's line, as they are called there, and their digits."""


class Screen:
    """A progress bar on a terminal; elsewhere, and after each epoch, a plain line."""

    def __init__(self, *, to_stderr: bool = False, quiet: bool = False) -> None:
        """Speak to the user.

        Args:
            to_stderr: Keep standard output free: lines go where the bar goes.
            quiet: Say nothing.
        """
        self._lines: TextIO = sys.stderr if to_stderr else sys.stdout
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._progress: Progress | None = None

    def hush(self) -> None:
        """Say nothing from now on: another rank speaks."""
        self._quiet = True

    def say(self, line: str) -> None:
        """One line, above the bar if there is one."""
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
            # A run does not end because nobody hears of it any more.
            if self._lines is sys.stdout:
                # What it still holds would fail once more when the interpreter ends.
                sys.stdout, self._lines = None, sys.stderr
                self.say(f"Warning: standard output cannot be written ({error}); hear it here")
                self.say(line)

    def result(self, text: str) -> None:
        """What a command came to, on standard output."""
        if not self._quiet:
            print(text, flush=True)

    def begin(self, title: str, steps: int) -> None:
        """Start a bar of ``steps``."""
        self.end()
        if self._quiet or not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._progress.add_task(title, total=steps, note="")
        self._progress.start()

    def step(self, done: int, note: str | None = None) -> None:
        """Move the bar; ``note`` stands beside it until the next one."""
        if self._progress is not None:
            task = self._progress.task_ids[0]
            if note is None:
                self._progress.update(task, completed=done)
            else:
                self._progress.update(task, completed=done, note=note)

    def end(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def epoch_line(record: Mapping[str, Any]) -> str:
    """An epoch's record as a person reads it."""
    judged = record["val"] or record["train"]
    parts = [
        f"epoch {record['epoch']} ({record['res']} px)",
        f"train loss {record['train']['loss']:.4f}",
    ]
    if record["val"]:
        parts.append(f"val loss {judged['loss']:.4f}")
    parts += [
        f"{what} {judged[name]:.{digits}f}"
        for name, (what, digits) in SHOWN.items()
        if name in judged
    ]
    parts += [
        f"lr {record['lr']:.2g}",
        f"{record['samples_per_s']:.1f} samples/s",
        f"data-wait {100 * record['data_wait']:.1f} %",
    ]
    return " · ".join(parts)
