"""A run in TensorBoard: figures, speed, panels and settings, an epoch at a time.

Writes what it is given. Where TensorBoard is not installed, a run goes on without it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.config import Config
from train.settings import settings, to_toml

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """The folder ``tensorboard`` of a run."""

    def __init__(self, folder: Path, config: Config, *, step: int) -> None:
        """Open it; what a killed run wrote after ``step`` is hidden.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        # Two seconds to import, which runs without it need not spend.
        from torch.utils.tensorboard import SummaryWriter

        self._config = config
        self._last: dict[str, float] = {}
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        # Four spaces make it a code block in TensorBoard's Markdown.
        text = "\n".join(f"    {line}" for line in to_toml(config).splitlines())
        self._writer.add_text("settings", text, step)

    def epoch(self, record: Mapping[str, Any], panel: Path | None) -> None:
        """Add an epoch: its record as in ``metrics.jsonl``, and its panel if one was drawn."""
        step = record["step"]
        for split in ("train", "val"):
            for name, value in (record[split] or {}).items():
                kind, _, rest = name.partition("_")
                self._writer.add_scalar(f"{kind}/{rest or 'total'}/{split}", value, step)
        for name in ("lr", "samples_per_s", "data_wait", "peak_memory_mb"):
            self._writer.add_scalar(f"run/{name}", record[name], step)
        if panel is not None:
            with Image.open(panel) as image:
                pixels = np.asarray(image)
            self._writer.add_image("panel", pixels, step, dataformats="HWC")
        self._last = {f"final/{name}": value for name, value in _judged(record).items()}
        self._writer.flush()

    def close(self) -> None:
        """Write the settings beside the last figures, for TensorBoard's comparison of runs."""
        if self._last:
            values = {
                setting.key: _plain(getattr(getattr(self._config, setting.section), setting.name))
                for setting in settings()
            }
            self._writer.add_hparams(values, self._last, run_name=".")
        self._writer.close()


def _judged(record: Mapping[str, Any]) -> dict[str, float]:
    return dict(record["val"] or record["train"])


def _plain(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
