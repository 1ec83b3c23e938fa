"""How whatever ends a command is told: one line, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from train.cli import main
from train.settings import settings

FULL = Path("/dev/full")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "runs/a"), "runs/a: Permission denied; fix the"),
        (OSError(36, "File name too long", "x" * 300), "File name too long"),
        (MemoryError(), "out of memory; use a smaller --batch"),
        (UnicodeEncodeError("utf-8", "r\udcffun", 1, 2, "surrogates not allowed"), "valid UTF-8"),
    ],
)
def test_what_no_command_foresaw_is_one_line(monkeypatch, error, says) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("train.evaluation.evaluate.evaluate_shards", fail)
    done = CliRunner().invoke(main, ["eval", "run", "--shards", "data"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ") and says in done.output
    assert done.output.count("\n") == 1


def test_ctrl_c_promises_nothing_that_may_be_false(monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.inference.predict.predict", stop)
    done = CliRunner().invoke(main, ["predict", "run", "--fg-bg", "a.png", "--out", "maps"])
    assert done.exit_code == 130
    assert done.output == "Stopped; all files that were written are complete.\n"


def test_figures_that_are_no_numbers_are_null_in_json(monkeypatch) -> None:
    monkeypatch.setattr(
        "train.evaluation.evaluate.evaluate_shards",
        lambda *_, **__: {"mask_precision": float("nan"), "samples": 3},
    )
    done = CliRunner().invoke(main, ["eval", "run", "--shards", "data", "--json"])
    assert json.loads(done.output) == {"mask_precision": None, "samples": 3}
    assert "NaN" not in done.output


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "train", "config"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    line = "Error: No space left on device; fix the cause and run the command again\n"
    assert done.stderr == line


def test_help_lists_every_setting_under_a_heading() -> None:
    text = CliRunner().invoke(main, ["run", "--help"]).output
    headings = "Data Augmentation Network Loss Optimiser Schedule Device Output Options".split()
    places = [text.index(f"\n{each}:") for each in headings]
    assert places == sorted(places)
    before = text[: places[-1]]
    for setting in settings():
        assert f"--{setting.name.replace('_', '-')}" in before
