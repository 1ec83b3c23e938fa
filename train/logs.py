"""What a run tells while it goes: a line of JSON an epoch, a bar on a terminal, or plain lines.

Writes what it is given; it measures nothing and decides nothing. ``metrics.jsonl`` survives a kill
at any moment: a line that was cut is dropped when the run goes on.
"""

import errno
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["JsonLines", "Screen", "epoch_line", "plain"]


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


class JsonLines:
    """``metrics.jsonl``: an object a line, appended and flushed to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; numbers that JSON does not have (NaN, infinity) become null.

        Raises:
            OSError: No room, no permission; nothing of the line is left.
        """
        line = (json.dumps(plain(record)) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # The next line would be added to half of this one.
                raise

    def read(self) -> list[dict[str, Any]]:
        """All whole records, each with its ``epoch``; none if there is no file."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break  # Cut by a kill while it was written: the last one.
            if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                records.append(record)  # Anything else is no record of a run.
        return records

    def keep_before(self, epoch: int) -> None:
        """Drop the lines of ``epoch`` and after, which a resumed run will write again."""
        kept = [record for record in self.read() if record["epoch"] < epoch]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


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
        if self._progress is not None and self._lines.isatty():
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=self._lines, flush=True)

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


def plain(value: Any) -> Any:
    """``value`` without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
