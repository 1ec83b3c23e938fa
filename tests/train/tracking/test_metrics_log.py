import io
import json
import os
import sys
from pathlib import Path

import pytest

from train.errors import RunError
from train.tracking.console import Console, duration, epoch_line
from train.tracking.metrics_log import MetricsLog

FIGURES = {
    "loss": 0.5, "mask_iou": 0.8, "mask_dice": 0.9, "mask_precision": 0.7, "mask_recall": 0.6,
    "depth_mae": 0.1, "depth_rmse": 0.2, "depth_absrel": 0.3, "depth_delta1": 0.4,
}  # fmt: skip
RECORD = {
    "epoch": 3, "res": 64, "lr": 0.05, "samples_per_s": 12.34, "data_wait": 0.021,
    "train": FIGURES, "val": {**FIGURES, "loss": 0.25},
}  # fmt: skip


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    lines = MetricsLog(tmp_path / "m.jsonl")
    assert lines.read() == []
    lines.append({"epoch": 0, "loss": 0.1})
    lines.append({"epoch": 1, "val": {"x": float("nan")}, "list": [float("inf"), 1]})
    assert lines.read() == [
        {"epoch": 0, "loss": 0.1},
        {"epoch": 1, "val": {"x": None}, "list": [None, 1]},
    ]


def test_a_line_cut_by_a_kill_is_dropped_and_epochs_to_run_again_too(tmp_path: Path) -> None:
    lines = MetricsLog(tmp_path / "m.jsonl")
    for epoch in range(4):
        lines.append({"epoch": epoch})
    with lines.path.open("a") as file:
        file.write('{"epoch": 4, "los')
    assert len(lines.read()) == 4
    lines.keep_before(2)
    lines.append({"epoch": 2})
    assert [json.loads(line)["epoch"] for line in lines.path.read_text().splitlines()] == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [lines.path]


def test_of_a_line_that_finds_no_room_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = MetricsLog(tmp_path / "m.jsonl")
    lines.append({"epoch": 0})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        lines.append({"epoch": 1})
    monkeypatch.undo()
    lines.append({"epoch": 2})
    assert lines.read() == [{"epoch": 0}, {"epoch": 2}]


@pytest.mark.parametrize("line", ['{"a": 1}', '{"epoch": "x"}', '{"epoch": true}', "{}"])
def test_an_object_that_is_no_record_is_told_with_its_line_and_kept(
    tmp_path: Path, line: str
) -> None:
    lines = MetricsLog(tmp_path / "m.jsonl")
    text = f'{{"epoch": 0}}\n{line}\n'
    lines.path.write_text(text)
    for use in (lines.read, lines.read_checked, lambda: lines.keep_before(0)):
        with pytest.raises(RunError, match=r"m.jsonl: line 2: has no epoch number; .* remove that"):
            lines.path.write_text(text.replace('{"epoch": 0}\n', "\n"))
            use()
    assert lines.path.read_text() == f"\n{line}\n"


def test_an_epoch_is_one_line_with_the_figures_of_validation() -> None:
    line = epoch_line(RECORD)
    for part in ("epoch 4 (64 px)", "train loss 0.5000", "val loss 0.2500", "IoU 0.800",
                 "12.3 samples/s", "data-wait 2.1 %"):  # fmt: skip
        assert part in line
    assert "\n" not in line
    assert "val loss" not in epoch_line({**RECORD, "val": None})


def test_the_best_epoch_is_marked_on_its_line() -> None:
    assert epoch_line(RECORD, best=True) == epoch_line(RECORD) + " · best so far"


def test_a_time_is_hours_minutes_and_seconds() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3600 * 30 + 59.6)] == [
        "0:00:00", "0:01:01", "30:01:00",
    ]  # fmt: skip


def test_no_bar_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.start_bar("epoch 0", 10)
    console.update_bar(5, "note")
    console.print_line("a line")
    console.remove_bar()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a line\n", "")


def test_a_bar_on_a_terminal_shows_steps_and_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    console = Console(to_stderr=True)
    console.start_bar("epoch 0", 10)
    console.update_bar(5, "loss 0.1234")
    console.print_line("a line")
    console.remove_bar()
    shown = terminal.getvalue()
    assert "5/10" in shown and "loss 0.1234" in shown and "a line" in shown


def test_a_silenced_console_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(to_stderr=True)
    console.print_line("one")
    console.silence()
    console.print_line("two")
    assert capsys.readouterr() == ("", "one\n")


class Lost:
    """Standard output whose disk is full, or whose reader has left."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_run_continues_when_standard_output_cannot_be_written(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdout", Lost())
    console = Console()
    console.print_line("epoch 0")
    console.print_line("epoch 1")
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("Warning: standard output cannot be written ([Errno 28]")
    assert others == ["epoch 0", "epoch 1"]


def test_a_line_fits_any_coding_of_standard_output(monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console().print_line("IoU 0.9 \u00b7 RMSE 0.02")
    assert raw.getvalue() == b"IoU 0.9 ? RMSE 0.02\n"
