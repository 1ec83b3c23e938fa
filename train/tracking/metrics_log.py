"""Append to and read ``metrics.jsonl``: one JSON record per epoch.

The file survives a kill at any moment: an incomplete last line is dropped when the run is resumed.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardify.resolution import Resolution, is_resolution
from shardify.storage.atomic_write import write_text
from train.errors import RunError

_NUMBERS = ("step", "lr", "samples_per_s", "data_wait", "peak_memory_mb")
"""Numbers that each record has besides the metrics of its splits."""


class MetricsLog:
    """The file ``metrics.jsonl``: one JSON object per line, flushed to disk after each append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record as one line; NaN and infinity become null.

        Raises:
            OSError: No space or no permission; no part of the line is left in the file.
        """
        line = (json.dumps(json_safe(record)) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # Else the next line would be appended to an incomplete one.
                raise

    def read(self) -> list[dict[str, Any]]:
        """Return all records; an empty list if there is no file.

        Raises:
            RunError: The file cannot be read, or a line other than the last is damaged.
        """
        return [record for _, record in self._numbered()]

    def read_checked(self) -> list[dict[str, Any]]:
        """Return all records like `read`, and check that they are complete.

        Raises:
            RunError: As `read`, or a value is missing or of the wrong type.
        """
        records = []
        for number, record in self._numbered():
            wrong = [name for name in _NUMBERS if not _is_number(record.get(name))]
            wrong += [] if is_resolution(record.get("res")) else ["res"]
            for split in ("train", "val"):
                metrics = record.get(split, "")
                if split == "val" and metrics is None:
                    continue
                if not isinstance(metrics, dict) or "loss" not in metrics:
                    wrong.append(split)
                    continue
                wrong += [
                    f"{split}.{name}"
                    for name, value in metrics.items()
                    if value is not None and not _is_number(value)
                ]
            if wrong:
                raise self._line_error(number, f"{wrong[0]} is missing or not a number")
            records.append(record)
        return records

    def keep_before(self, epoch: int) -> None:
        """Remove the records from ``epoch`` on; a resumed run writes them again.

        Raises:
            RunError: As `read`; nothing is removed.
            OSError: No space or no permission.
        """
        kept = [record for record in self.read() if record["epoch"] < epoch]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def _numbered(self) -> list[tuple[int, dict[str, Any]]]:
        """Return each record with its line number, from 1."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be read ({error.strerror}); expected the metrics of a run"
            ) from error
        records = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break  # Incomplete: the process was killed while writing it.
                problem = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
                raise self._line_error(number, problem) from error
            if not isinstance(record, dict):
                raise self._line_error(number, "not a JSON object")
            if type(record.get("epoch")) is not int:
                raise self._line_error(number, "has no epoch number")
            records.append((number, record))
        return records

    def _line_error(self, number: int, problem: str) -> RunError:
        return RunError(
            f"{self.path}: line {number}: {problem}; expected the record of an epoch; "
            "restore or remove that line"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_safe(value: Any) -> Any:
    """Return ``value`` for JSON: None for NaN and infinity, resolutions as they are written."""
    if isinstance(value, Resolution):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
