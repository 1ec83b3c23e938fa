"""Compare runs: the settings that differ, and the metrics and speed of each run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.errors import RunError
from train.evaluation.metrics import FIGURES
from train.settings import from_toml, settings
from train.tracking.metrics_log import MetricsLog, json_safe

SPEEDS = ("samples_per_s", "data_wait", "peak_memory_mb")
PATHS = {"out", "shards"}
"""Settings that are paths; they are not compared."""


class Comparison:
    """Table of several runs."""

    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        self.runs = list(runs)

    def to_json(self) -> str:
        """Return one JSON object: ``runs``, each with name, settings, metrics and speed."""
        return json.dumps(json_safe({"runs": self.runs}))

    def __str__(self) -> str:
        rows = [["", *(run["run"] for run in self.runs)]]
        rows += [
            [key, *(_setting(run["settings"][key]) for run in self.runs)]
            for key in self.runs[0]["settings"]
        ]
        for name in ("epochs", "steps", "res", "judged_on", *FIGURES, *SPEEDS):
            if any(name in run for run in self.runs):
                rows.append([name, *(_cell(run.get(name)) for run in self.runs)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            ).rstrip()
            for row in rows
        )


def compare(paths: Sequence[Path]) -> Comparison:
    """Read the settings in which runs differ, and the best epoch of each run.

    The best epoch has the lowest loss at the last resolution of the run, on the validation split
    if there is one.

    Raises:
        RunError: A path is not a run, or the run has not finished an epoch.
        ConfigError: The settings of a run cannot be read.
    """
    configs, runs = [], []
    for path in paths:
        records = MetricsLog(path / "metrics.jsonl").read_checked()
        if not (path / "config.toml").is_file() or not records:
            raise RunError(
                f"{path}: not a run with a finished epoch; expected an --out of `train run`"
            )
        configs.append(from_toml(path / "config.toml"))
        last = records[-1]["res"]
        best = min((r for r in records if r["res"] == last), key=lambda r: _loss(r))
        runs.append(
            {
                "run": str(path),
                "epochs": len(records),
                "steps": records[-1]["step"],
                "res": last,
                "judged_on": "val" if best["val"] else "train",
                **(best["val"] or best["train"]),
                **{name: records[-1].get(name) for name in SPEEDS},
            }
        )
    differing = {}
    for setting in settings():
        values = [getattr(getattr(config, setting.section), setting.name) for config in configs]
        if setting.name not in PATHS and any(value != values[0] for value in values):
            differing[setting.key] = values
    for number, run in enumerate(runs):
        run["settings"] = {key: values[number] for key, values in differing.items()}
    return Comparison(runs)


def _loss(record: dict[str, Any]) -> float:
    loss = (record["val"] or record["train"])["loss"]
    return float("inf") if loss is None else float(loss)


def _setting(value: object) -> str:
    """Format a value as on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
