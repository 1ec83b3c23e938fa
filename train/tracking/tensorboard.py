"""Write a run's TensorBoard log: metrics, speed, panels and settings.

Metrics of training and validation have the same names in the runs ``train`` and ``val``, so that
TensorBoard draws both in one chart.
"""

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.config import Config
from train.settings import settings, to_toml


class TensorBoardLog:
    """TensorBoard log of a run."""

    def __init__(self, folder: Path, config: Config, *, first: int) -> None:
        """Open the log; what a killed run wrote from step ``first`` on is hidden.

        Raises:
            ImportError: TensorBoard is not installed.
            OSError: The log cannot be written, for example because the disk is full.
        """
        # The import takes two seconds; runs without TensorBoard must not pay for it.
        from torch.utils.tensorboard import SummaryWriter

        _silence_writer_threads()
        self._config = config
        self._last: dict[str, float] = {}
        self._step = first
        self._writer: Any = SummaryWriter(str(folder), purge_step=first)
        self._splits: dict[str, Any] = {
            split: SummaryWriter(str(folder / split), purge_step=first)
            for split in ("train", "val")
        }
        # Four spaces make it a code block in TensorBoard's Markdown.
        text = "\n".join(f"    {line}" for line in to_toml(config).splitlines())
        self._writer.add_text("settings", text, first)

    def log_epoch(self, record: Mapping[str, Any], panel: Path | None) -> None:
        """Add the record of an epoch (as in ``metrics.jsonl``) and its panel, if there is one.

        Raises:
            OSError: The log cannot be written.
        """
        self._step = record["step"]
        for split, writer in self._splits.items():
            for name, value in (record[split] or {}).items():
                kind, _, rest = name.partition("_")
                writer.add_scalar(f"{kind}/{rest or 'total'}", value, self._step)
            writer.flush()
        for name in ("lr", "samples_per_s", "data_wait", "peak_memory_mb"):
            self._writer.add_scalar(f"run/{name}", record[name], self._step)
        if panel is not None:
            with Image.open(panel) as image:
                pixels = np.asarray(image)
            self._writer.add_image("panel", pixels, self._step, dataformats="HWC")
        self._last = {f"final/{name}": value for name, value in _final_metrics(record).items()}
        self._writer.flush()

    def close(self) -> None:
        """Write settings and last metrics as hyperparameters, and close the log.

        Raises:
            OSError: The log cannot be written.
        """
        try:
            if self._last:
                values = {
                    setting.key: _hparam(
                        getattr(getattr(self._config, setting.section), setting.name)
                    )
                    for setting in settings()
                }
                # With the step, because each part of a resumed run writes them.
                self._writer.add_hparams(values, self._last, run_name=".", global_step=self._step)
        finally:
            for writer in (self._writer, *self._splits.values()):
                writer.close()


@cache
def _silence_writer_threads() -> None:
    """Print no traceback for an OSError in TensorBoard's threads; the next call raises it again."""
    default = threading.excepthook

    def hook(details: Any) -> None:
        writer = type(details.thread).__module__.startswith("tensorboard.")
        if not (writer and isinstance(details.exc_value, OSError)):
            default(details)

    threading.excepthook = hook


def _final_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    return dict(record["val"] or record["train"])


def _hparam(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
