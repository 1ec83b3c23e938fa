"""What a run tells while it goes: a line of JSON an epoch, a bar on a terminal, or plain lines.

Writes what it is given; it measures nothing and decides nothing. ``metrics.jsonl`` survives a kill
at any moment: a line that was cut is dropped when the run goes on.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardify.storage.atomic_write import write_text
from train.errors import RunError

__all__ = ["MetricsLog", "plain"]


NUMBERS = ("step", "res", "lr", "samples_per_s", "data_wait", "peak_memory_mb")
"""What an epoch's record has besides the figures of its splits."""


class MetricsLog:
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
        """All records, each with its ``epoch``; none if there is no file.

        Raises:
            RunError: The file cannot be read, or a line is damaged that no kill has cut.
        """
        return [record for _, record in self._numbered()]

    def figures(self) -> list[dict[str, Any]]:
        """As `read`, for whoever shows them: each with all that an epoch's record has.

        Raises:
            RunError: As `read`; or something is missing, or of another type.
        """
        records = []
        for number, record in self._numbered():
            wrong = [name for name in NUMBERS if not _is_number(record.get(name))]
            for split in ("train", "val"):
                found = record.get(split, "")
                if split == "val" and found is None:
                    continue
                if not isinstance(found, dict) or "loss" not in found:
                    wrong.append(split)
                    continue
                wrong += [
                    f"{split}.{name}"
                    for name, value in found.items()
                    if value is not None and not _is_number(value)
                ]
            if wrong:
                raise self._refused(number, f"{wrong[0]} is missing or no figure")
            records.append(record)
        return records

    def keep_before(self, epoch: int) -> None:
        """Drop the lines of ``epoch`` and after, which a resumed run will write again.

        Raises:
            RunError: As `read`; nothing is dropped.
            OSError: No room, no permission.
        """
        kept = [record for record in self.read() if record["epoch"] < epoch]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def _numbered(self) -> list[tuple[int, dict[str, Any]]]:
        """The records, each with the number of its line, from 1."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be read ({error.strerror}); expected a run's records"
            ) from error
        records = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break  # Cut by a kill while it was written: no line's end came after it.
                what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
                raise self._refused(number, what) from error
            if not isinstance(record, dict):
                raise self._refused(number, "no JSON object")
            if isinstance(record.get("epoch"), int):
                records.append((number, record))  # Anything else is no record of a run.
        return records

    def _refused(self, number: int, what: str) -> RunError:
        return RunError(
            f"{self.path}: line {number}: {what}; expected the record of an epoch; "
            "restore that line, or remove it"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """``value`` without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
