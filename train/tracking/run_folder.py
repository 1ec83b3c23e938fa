"""Write a run's folder: checkpoints, weights, metrics, panels and the TensorBoard log.

A thread writes large files in the order of the calls. A failed write leaves the previous files. If
the disk is full, `RunFolder.check_writes` ends the run; after another error, a warning is printed
and training continues.
"""

import errno
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from train.checkpoint.async_writer import Writer, snapshot
from train.checkpoint.checkpoint_file import Checkpoints, save
from train.config import Config
from train.errors import RunError
from train.tracking import image_panels
from train.tracking.console import Console, epoch_line
from train.tracking.metrics_log import MetricsLog
from train.tracking.run_folder_setup import TENSORBOARD
from train.tracking.tensorboard import TensorBoardLog

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk or a quota that is full."""


class RunFolder:
    """Output folder of a run; only the first rank writes to it."""

    def __init__(self, out: Path, *, keep: int, console: Console) -> None:
        """Create the writers; the folder itself is created by `run_folder_setup.prepare`."""
        self.out = out
        self.panel: Path | None = None
        """The last panel; None if none was drawn."""
        self.metrics = MetricsLog(out / "metrics.jsonl")
        self._checkpoints = Checkpoints(out / "checkpoints", keep=keep)
        self._writer = Writer()
        self._console = console
        self._tensorboard: TensorBoardLog | None = None
        self._full = ""
        """What could not be written because the disk is full; empty: it is not."""

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Queue a checkpoint of ``state`` after ``step``; it is copied before this returns."""
        self._writer.submit(
            "the checkpoint", partial(self._checkpoints.save, step, snapshot(state))
        )

    def save_weights(
        self, names: tuple[str, ...], weights: Mapping[str, Tensor], about: dict[str, str]
    ) -> None:
        """Queue weights with metadata ``about`` for each of the file ``names``."""
        copied = snapshot(dict(weights))
        for name in names:
            self._writer.submit(name, partial(_write_weights, self.out / name, copied, about))

    def check_writes(self) -> None:
        """Print a warning for each failed write since the last call.

        Raises:
            RunError: The disk is full.
        """
        self._collect_failures()
        if self._full:
            raise RunError(
                f"{self.out}: {self._full} could not be written: the disk is full; "
                f"{_saved_text(self.newest())}; free some space and continue with --resume"
            )

    def check_saved(self, step: int) -> None:
        """Check that all files were written at the end of a run, and the checkpoint of ``step``.

        Raises:
            RunError: The disk is full, or there is no such checkpoint.
        """
        newest = self.newest()
        self.check_writes()
        if newest is None or newest.stem != f"step-{step:08d}":
            raise RunError(
                f"{self.out}: ended at step {step}, which is not saved; {_saved_text(newest)}; "
                "make the folder writable and continue with --resume"
            )

    def open_tensorboard(self, config: Config) -> None:
        """Write a TensorBoard log too, after the epochs in ``metrics.jsonl``, if it is installed.

        Raises:
            RunError: The disk is full.
        """
        last = self.metrics.read()[-1:]
        first = last[0]["step"] + 1 if last else 0
        try:
            self._tensorboard = TensorBoardLog(self.out / TENSORBOARD, config, first=first)
        except ImportError as error:
            self._console.print_line(
                f"TensorBoard is not installed ({error}): no log; --no-tensorboard hides this line"
            )
        except OSError as error:
            self._add_failure("the TensorBoard log", error)
            self.check_writes()

    def log_epoch(self, record: dict[str, Any], *, best: bool) -> None:
        """Write the record of an epoch to the console, ``metrics.jsonl`` and TensorBoard.

        ``best`` marks it on the console as the best epoch of its stage so far.
        """
        self._console.print_line(epoch_line(record, best=best))
        try:
            if not self.metrics.path.exists():
                # Metrics must never exist without a checkpoint: see `check_nothing_lost`.
                self._writer.wait()
            self.metrics.append(record)
        except OSError as error:
            self._add_failure("metrics.jsonl", error)
        if self._tensorboard is not None:
            panel = self._panel_path(record)
            try:
                self._tensorboard.log_epoch(record, panel if self.panel == panel else None)
            except OSError as error:
                self._add_failure("the TensorBoard log", error)

    def draw_panel(
        self,
        record: dict[str, Any],
        rows: image_panels.Rows,
        mean: dict[str, list[float]],
        std: dict[str, list[float]],
    ) -> None:
        """Draw the panel of the epoch of ``record``."""
        path = self._panel_path(record)
        title = f"epoch {record['epoch'] + 1}, {record['res']} px, step {record['step']}"
        try:
            path.parent.mkdir(exist_ok=True)
            image_panels.draw(path, rows, mean=mean, std=std, title=title)
            self.panel = path
        except OSError as error:
            self._add_failure(path.name, error)

    def newest(self) -> Path | None:
        """Finish all queued writes; return the newest checkpoint, or None."""
        self._writer.wait()
        return next(iter(self._checkpoints.files()), None)

    def stop_message(self, step: int) -> str:
        """Return the line for a run stopped after ``step``: whether it is saved, how to resume."""
        newest = self.newest()
        if newest is not None and newest.stem == f"step-{step:08d}":
            return f"{self.out}: stopped by a signal at step {step}; --resume continues from there"
        resume = f"continues from {newest.name}" if newest else "starts from the beginning"
        return (
            f"{self.out}: stopped by a signal at step {step}, which is not saved; --resume {resume}"
        )

    def close(self) -> None:
        """Finish all queued writes and close the logs; `check_saved` tells whether they failed."""
        self._writer.close()
        if self._tensorboard is not None:
            try:
                self._tensorboard.close()
            except OSError as error:
                self._add_failure("the TensorBoard log", error)
            self._tensorboard = None
        self._collect_failures()

    def _panel_path(self, record: dict[str, Any]) -> Path:
        return self.out / "panels" / f"epoch-{record['epoch']:03d}.png"

    def _collect_failures(self) -> None:
        for name, error in self._writer.failures():
            self._add_failure(name, error)

    def _add_failure(self, name: str, error: OSError) -> None:
        if error.errno in DISK_FULL:
            self._full = self._full or name
            return
        self._console.print_line(
            f"Warning: {self.out}: {name} could not be written ({error}); training continues, "
            "previous files are kept"
        )


def _write_weights(path: Path, weights: dict[str, Tensor], about: dict[str, str]) -> None:
    save(path, {name: value.cpu().contiguous() for name, value in weights.items()}, about)


def _saved_text(newest: Path | None) -> str:
    return f"the last whole checkpoint is {newest}" if newest else "there is no checkpoint"
