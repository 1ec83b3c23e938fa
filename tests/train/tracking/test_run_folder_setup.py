"""A folder is taken whole or not at all, and no mistake in a first command closes it."""

import errno
import fcntl
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from shardline_tiny_run import TinyNet, TinySource, make_source

import train.trainer.launch
from shardify.errors import DataError
from train.cli import main
from train.config import Config
from train.distributed import World
from train.errors import ConfigError, RunError
from train.settings import resolve
from train.tracking.metrics_log import MetricsLog
from train.tracking.run_folder_setup import prepare, run_lock
from train.trainer.launch import configure, launch

SHORT = [
    *("--res", "16", "--epochs", "2", "--batch", "8"),
    *("--panel-rows", "0", "--no-report", "--device", "cpu"),
]
LONG = "x" * 300


class Picky(TinySource):
    """As the real loader: a batch larger than the split is refused when it is opened."""

    def open(self, split: str, *, batch: int, **options: Any) -> Any:
        if split == "train" and batch > self.samples(split):
            raise DataError(f"--batch {batch}: more than there are; make it smaller")
        return super().open(split, batch=batch, **options)


def picky(config: Config, world: World, device: torch.device) -> Picky:
    assert device.type == "cpu" and config.data.batch
    return Picky(64, 10, world=world)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    run = functools.partial(launch, make_source=picky, make_model=TinyNet)
    monkeypatch.setattr(train.trainer.launch, "launch", run)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    for part in parts:
        assert part in lines[0]


def files_of(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_folder_is_held_by_one_and_let_go_of_at_the_end_and_after_an_error(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    says = "run: another run uses it; wait until that run ends, or choose another --out"
    for _ in range(2):
        with run_lock(out), pytest.raises(RunError, match=says), run_lock(out):
            raise AssertionError("held by two")
        with pytest.raises(ZeroDivisionError), run_lock(out):
            raise ZeroDivisionError
    assert list(out.iterdir()) == []


def test_a_run_goes_without_a_lock_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert call("run", *SHORT, "--out", tmp_path / "run", "--max-steps", 1).exit_code == 0


def test_a_folder_that_was_made_for_nothing_is_removed_again(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "run"
    with run_lock(out):
        assert out.is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with run_lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (["--batch", 1000], "--batch 1000"),
        (["--schedule", "cosine", "--warmup", 1000], "--warmup 1000"),
    ],
)
@pytest.mark.parametrize("profile", [[], ["--profile"]])
def test_a_mistake_in_the_first_command_does_not_close_the_folder_to_the_second(
    tmp_path: Path, mistake: list[object], says: str, profile: list[str]
) -> None:
    out = tmp_path / "run"
    assert_one_line(call("run", *SHORT, "--out", out, *mistake, *profile), says)
    assert not out.exists()
    assert_one_line(call("run", *SHORT, "--out", out, *mistake, "--resume"), says)
    assert not out.exists()
    result = call("run", *SHORT, "--out", out, "--max-steps", 1)
    assert result.exit_code == 0, result.output


def test_a_mistake_on_resuming_is_not_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out, "--max-steps", 1).exit_code == 0
    before = files_of(out)
    again = ["run", "--resume", "--out", out, "--max-steps", 2]
    assert_one_line(call(*again, "--batch", 1000), "--batch 1000")
    assert files_of(out) == before
    assert call(*again).exit_code == 0


def test_settings_bind_nobody_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"  # Killed, or diverged, within its first steps.
    flags = {"out": str(out), "res": (16,), "batch": 8, "device": "cpu", "lr": 1e9}
    prepare(out, configure(flags, file=None, resume=False), 0)
    config = configure({"out": str(out), "lr": 0.1}, file=None, resume=True)
    assert (config.optim.lr, config.data.batch) == (0.1, 8)
    result = call("run", "--resume", "--out", out, "--lr", 0.1, "--max-steps", 1, "--no-report")
    assert result.exit_code == 0, result.output
    with pytest.raises(ConfigError, match=r"optim\.lr is 0\.1, but the command says 0\.2"):
        configure({"out": str(out), "lr": 0.2}, file=None, resume=True)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b'{"epoch": 1, "tr\n', "not JSON"),
        (b'{"epoch": 1, "train": "\xff"}\n', "not UTF-8"),
        (b"[1]\n", "not a JSON object"),
        (b"[" * 100_000 + b"\n", "not JSON"),
    ],
)
def test_a_damaged_record_within_is_refused_and_no_later_one_erased(
    tmp_path: Path, bad: bytes, says: str
) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out).exit_code == 0
    metrics = out / "metrics.jsonl"
    first, second = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(first + bad + second)
    before = files_of(out)
    again = ["run", "--resume", "--out", out, "--epochs", 3]
    line = f"{metrics}: line 2: {says}; expected the record of an epoch; restore or remove"
    assert_one_line(call(*again), line)
    assert files_of(out) == before
    assert_one_line(call("compare", out, out), line)
    metrics.write_bytes(first + b"\n\n" + second)
    assert call(*again).exit_code == 0
    assert [record["epoch"] for record in MetricsLog(metrics).read()] == [0, 1, 2]


def test_a_last_line_that_a_kill_cut_is_dropped_whatever_its_bytes(tmp_path: Path) -> None:
    lines = MetricsLog(tmp_path / "m.jsonl")
    for half in (b'{"epoch": 1, "x', b"\xc3", b"\0\0\0"):
        lines.path.write_bytes(b'{"epoch": 0}\n' + half)
        assert lines.read() == [{"epoch": 0}]
    lines.path.write_bytes(b'{"epoch": 0}\n{"epoch": 1, "x\n')
    with pytest.raises(RunError, match="line 2: not JSON"):  # It was whole once.
        lines.keep_before(1)
    assert lines.path.read_bytes() == b'{"epoch": 0}\n{"epoch": 1, "x\n'


@pytest.mark.parametrize(
    "command",
    [
        lambda path: ("run", *SHORT, "--out", path),
        lambda path: ("run", *SHORT, "--out", path / "deeper"),
        lambda path: ("run", *SHORT, "--out", path, "--resume"),
        lambda path: ("eval", path, "--shards", "x"),
        lambda path: ("compare", path, path),
        lambda path: ("report", path),
    ],
)
@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EACCES])
def test_a_folder_that_cannot_be_looked_into_is_one_line(
    tmp_path: Path,
    command: Callable[[Path], tuple[object, ...]],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / LONG
    if number == errno.EACCES:  # Whoever is root may look into all.
        path = tmp_path / "locked" / "run"
        real_stat, real_open = os.stat, os.open

        def locked(real: Callable[..., Any], name: Any, *args: Any, **options: Any) -> Any:
            if str(name).startswith(str(path)):
                raise PermissionError(number, os.strerror(number), str(name))
            return real(name, *args, **options)

        monkeypatch.setattr(os, "stat", functools.partial(locked, real_stat))
        monkeypatch.setattr(os, "open", functools.partial(locked, real_open))
        monkeypatch.setattr("pathlib.io.open", functools.partial(locked, open))
    result = call(*command(path))
    assert_one_line(result, path.name, os.strerror(number))
    assert "fix the cause" not in result.stderr  # What is said of any file, wherever it was met.
    assert not (tmp_path / "locked").exists()


def test_a_name_that_is_no_utf8_is_one_line(tmp_path: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/r\xffun")
    assert_one_line(call("run", *SHORT, "--out", out), "--out ", "r\\udcffun: not UTF-8")
    shards = ["--shards", os.fsdecode(b"d\xff")]
    assert_one_line(call("run", *SHORT, "--out", tmp_path / "run", *shards), "--shards d")
    with pytest.raises(ConfigError, match="not UTF-8"):
        launch(resolve(Config(), {"out": out}), make_source=make_source, make_model=TinyNet)
    assert list(tmp_path.iterdir()) == []


def test_records_come_with_their_figures_or_one_line(tmp_path: Path) -> None:
    good = {
        **dict.fromkeys(("step", "res", "lr", "samples_per_s", "data_wait", "peak_memory_mb"), 1),
        "epoch": 0,
        "train": {"loss": None, "mask_iou": 0.5},
        "val": None,
    }
    lines = MetricsLog(tmp_path / "m.jsonl")
    lines.path.write_text(json.dumps(good))
    assert lines.read_checked() == [good]
    for change, wrong in (
        ({"res": "64"}, "res"),
        ({"lr": None}, "lr"),
        ({"step": True}, "step"),
        ({"train": None}, "train"),
        ({"val": [1]}, "val"),
        ({"val": {"loss": "low"}}, r"val\.loss"),
        ({"train": {"mask_iou": 1}}, "train"),
    ):
        lines.path.write_text("\n" + json.dumps(good | change))
        with pytest.raises(RunError, match=f"line 2: {wrong} is missing or not a number"):
            lines.read_checked()
    lines.path.write_text('{"epoch": 2}\n')
    with pytest.raises(RunError, match="line 1: step is missing or not a number"):
        lines.read_checked()
