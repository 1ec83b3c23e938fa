"""The folder of a run: what an epoch and a checkpoint leave in it, and what the user is told.

Large files are written by a thread, in the order they were asked for. A disk that is full is no
reason to lose a run: the user is told, training goes on, and what was there before stands.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from train.checkpoint.async_writer import Writer, snapshot
from train.checkpoint.checkpoint_file import Checkpoints, save
from train.config import Config
from train.tracking import image_panels
from train.tracking.console import Screen, epoch_line
from train.tracking.metrics_log import MetricsLog
from train.tracking.tensorboard import TensorBoardLog

__all__ = ["RunFolder"]


class RunFolder:
    """Where a run writes; only the first rank has one that does."""

    def __init__(self, out: Path, *, keep: int, screen: Screen) -> None:
        """Describe a folder; it is made elsewhere, and touched by the first write.

        Args:
            out: The folder.
            keep: How many of the newest checkpoints stay.
            screen: Where warnings and epochs are told.
        """
        self.out = out
        self.panel: Path | None = None
        self.metrics = MetricsLog(out / "metrics.jsonl")
        self._checkpoints = Checkpoints(out / "checkpoints", keep=keep)
        self._writer = Writer()
        self._screen = screen
        self._board: TensorBoardLog | None = None

    def checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Have the state after ``step`` written; it is copied before this returns."""
        self._writer.submit(
            "the checkpoint", partial(self._checkpoints.save, step, snapshot(state))
        )
        self._tell()

    def weights(
        self, names: tuple[str, ...], weights: Mapping[str, Tensor], about: dict[str, str]
    ) -> None:
        """Have weights written under each of some names, with metadata ``about`` them."""
        copied = snapshot(dict(weights))
        for name in names:
            self._writer.submit(name, partial(_write_weights, self.out / name, copied, about))
        self._tell()

    def board(self, config: Config, step: int) -> None:
        """Write for TensorBoard too, from ``step`` on, if it is installed."""
        try:
            self._board = TensorBoardLog(self.out / "tensorboard", config, step=step)
        except ImportError as error:
            self._screen.say(f"Without TensorBoard ({error}); --no-tensorboard says so at once")

    def epoch(self, record: dict[str, Any]) -> None:
        """Tell of an epoch on the screen, in ``metrics.jsonl``, and with its panel on the board."""
        self._screen.say(epoch_line(record))
        try:
            if not self.metrics.path.exists():
                # Figures say that a checkpoint stood: see `train.tracking.run_folder_setup`.
                self._writer.wait()
            self.metrics.append(record)
            if self._board is not None:
                drawn = self._panel_path(record)
                self._board.epoch(record, drawn if self.panel == drawn else None)
        except OSError as error:
            self._warn(f"the epoch's figures could not be written ({error})")

    def draw(
        self,
        record: dict[str, Any],
        rows: image_panels.Rows,
        mean: dict[str, list[float]],
        std: dict[str, list[float]],
    ) -> None:
        """Draw the panel of the epoch that ``record`` is of."""
        path = self._panel_path(record)
        title = f"epoch {record['epoch']}, {record['res']} px, step {record['step']}"
        try:
            path.parent.mkdir(exist_ok=True)
            image_panels.draw(path, rows, mean=mean, std=std, title=title)
            self.panel = path
        except OSError as error:
            self._warn(f"{path.name} could not be written ({error})")

    def newest(self) -> Path | None:
        """The newest checkpoint, everything asked for written first; None if there is none."""
        self._writer.wait()
        return next(iter(self._checkpoints.files()), None)

    def farewell(self, step: int) -> str:
        """The line for somebody who stopped the run after ``step``: is it saved, what goes on."""
        newest = self.newest()
        if newest is not None and newest.stem == f"step-{step:08d}":
            return f"{self.out}: stopped at step {step}; --resume goes on from there"
        goes_on = f"goes on from {newest.name}" if newest else "begins again"
        return f"{self.out}: stopped at step {step}, which is not saved; --resume {goes_on}"

    def close(self) -> None:
        """Finish writing."""
        self._writer.close()
        if self._board is not None:
            self._board.close()
            self._board = None
        self._tell()

    def _panel_path(self, record: dict[str, Any]) -> Path:
        return self.out / "panels" / f"epoch-{record['epoch']:03d}.png"

    def _tell(self) -> None:
        for failure in self._writer.failures():
            self._warn(failure)

    def _warn(self, what: str) -> None:
        self._screen.say(f"Warning: {self.out}: {what}; training goes on, what was there stands")


def _write_weights(path: Path, weights: dict[str, Tensor], about: dict[str, str]) -> None:
    save(path, {name: value.cpu().contiguous() for name, value in weights.items()}, about)
