"""Write a run's TensorBoard log: metrics, speed, panels and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.config import Config
from train.settings import settings, to_toml


class TensorBoardLog:
    """TensorBoard log of a run."""

    def __init__(self, folder: Path, config: Config, *, step: int) -> None:
        """Open the log; records of a killed run after ``step`` are hidden.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        # The import takes two seconds; runs without TensorBoard must not pay for it.
        from torch.utils.tensorboard import SummaryWriter

        self._config = config
        self._last: dict[str, float] = {}
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        # Four spaces make it a code block in TensorBoard's Markdown.
        text = "\n".join(f"    {line}" for line in to_toml(config).splitlines())
        self._writer.add_text("settings", text, step)

    def log_epoch(self, record: Mapping[str, Any], panel: Path | None) -> None:
        """Add the record of an epoch (as in ``metrics.jsonl``) and its panel, if there is one."""
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
        self._last = {f"final/{name}": value for name, value in _final_metrics(record).items()}
        self._writer.flush()

    def close(self) -> None:
        """Write settings and last metrics as hyperparameters, and close the log."""
        if self._last:
            values = {
                setting.key: _hparam(getattr(getattr(self._config, setting.section), setting.name))
                for setting in settings()
            }
            self._writer.add_hparams(values, self._last, run_name=".")
        self._writer.close()


def _final_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    return dict(record["val"] or record["train"])


def _hparam(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
