import functools
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from shardline_tiny_run import TinyNet, make_source

import train.trainer.launch
from train.cli import main
from train.config import Config
from train.errors import ConfigError, RunError
from train.settings import resolve, settings, to_toml
from train.tracking.metrics_log import MetricsLog
from train.trainer.launch import configure, launch

SHORT = [
    *("--res", "16", "--epochs", "2", "--batch", "8"),
    *("--panel-rows", "0", "--no-tensorboard", "--no-report", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train run` trains the tiny network on the tiny data set."""
    torch.set_num_threads(1)
    monkeypatch.setattr(
        train.trainer.launch,
        "launch",
        functools.partial(launch, make_source=make_source, make_model=TinyNet),
    )


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(result: Result, code: int, *parts: str) -> None:
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    for part in parts:
        assert part in lines[0]


def test_run_prints_epochs_and_a_summary_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = call("run", *SHORT, "--out", out, "--max-steps", 3)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0].startswith("epoch 1 (16 px) · train loss")
    assert "data-wait" in first.stdout and "samples/s" in first.stdout
    second = call("run", "--resume", "--out", out, "--max-steps", 0)
    assert second.exit_code == 0, second.output
    assert "resumed after step 3" in second.stdout
    assert [record["epoch"] for record in MetricsLog(out / "metrics.jsonl").read()] == [0, 1]
    assert "max_steps = 0" in (out / "config.toml").read_text()


def test_json_is_one_object_on_stdout(tmp_path: Path) -> None:
    result = call("run", *SHORT, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["steps"] == 16 and summary["last"]["val"]["mask_iou"] >= 0
    assert "epoch 1" in result.stderr


def test_the_run_leaves_its_settings_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "my.toml").write_text("[optim]\nlr = 0.25\n[run]\nseed = 3\n")
    options = ["--config", tmp_path / "my.toml", "--seed", "4", "--max-steps", "1"]
    assert call("run", *SHORT, "--out", out, *options).exit_code == 0
    expected = {"lr": 0.25, "seed": 4, "res": 16, "epochs": 2, "batch": 8, "device": "cpu"}
    expected |= {"panel_rows": 0, "tensorboard": False, "report": False}
    expected |= {"max_steps": 1, "out": str(out)}
    assert (out / "config.toml").read_text() == to_toml(resolve(Config(), expected))


def test_config_prints_what_run_would_take(tmp_path: Path) -> None:
    result = call("config", "--res", "64,256", "--epochs", "10,5", "--no-augment", "--lr", "0.5")
    assert result.exit_code == 0
    path = tmp_path / "my.toml"
    path.write_text(result.stdout)
    # What a file lists besides may mean nothing: only a flag that does is a mistake.
    assert configure({"schedule": "cosine"}, file=path, resume=False).optim.patience == 2
    values = {"res": (64, 256), "epochs": (10, 5), "augment": False, "lr": 0.5}
    assert configure({}, file=path, resume=False) == resolve(Config(), values)


@pytest.mark.parametrize("command", ["run", "config"])
def test_a_resolution_the_network_does_not_take_is_wrong_usage(command: str) -> None:
    assert_one_line(call(command, "--res", "100"), 2, "--res 100", "multiple of 16", "96 or 112")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--epochs", "1,2,3"], "--epochs 1,2,3"),
        (["--lr", "0"], "--lr 0"),
        (["--config", "none.toml"], "none.toml: No such file"),
        (["--device", "tpu"], "--device tpu"),
        (["--schedule", "cosine", "--patience", "3"], "--patience: has no effect with --schedule"),
        (["--optimizer", "adamw", "--momentum", "0.8"], "use --optimizer sgd"),
        (["--loss", "l1", "--dice-weight", "2"], "use --loss dice+l1"),
        (["--loss", "ssim", "--deep-supervision", "1"], "--res 64: expected 96 or more"),
        (["--ema", "1"], "--ema 1.0: expected 0 or more, and less than 1"),
    ],
)
def test_wrong_settings_are_wrong_usage_in_one_line(options: list[str], says: str) -> None:
    assert_one_line(call("run", *options), 2, says)


def test_a_flag_that_other_programs_have_is_answered_with_its_name_here() -> None:
    for command, flag, says in (
        ("run", "--learning-rate", "Did you mean '--lr'?"),
        ("config", "--batch-size", "Did you mean '--batch'?"),
        ("eval", "--workers", "Did you mean '--threads'?"),
    ):
        result = call(command, flag, 3)
        assert result.exit_code == 2 and says in result.stderr
    assert "--lr" not in call("eval", "--learning-rate", 3).stderr


def test_resolutions_are_squares_or_height_by_width_in_lists_or_repeated() -> None:
    for flags in (
        ["--res", "64,128x224,256"],
        ["--res", "64", "--res", "128x224,256x256"],
    ):
        result = call("config", *flags, "--epochs", "3", "--epochs", "2,1")
        assert result.exit_code == 0, result.output
        assert 'res = [64, "128x224", 256]\nepochs = [3, 2, 1]\n' in result.stdout
    for wrong in ("128x", "64;128", "64,", "1e3", "9999"):
        result = call("config", "--res", wrong)
        assert result.exit_code == 2 and "or HEIGHTxWIDTH like 128x224" in result.stderr
    result = call("config", "--res", "64,128x100")
    assert_one_line(result, 2, "--res 128x100: size 128x100: 100 is not a positive multiple of 16")


@pytest.mark.parametrize("command", ["eval", "predict", "bench"])
@pytest.mark.parametrize("flag", ["--batch", "--res", "--threads"])
def test_a_count_of_nothing_is_wrong_usage(command: str, flag: str) -> None:
    if (command, flag) != ("predict", "--threads"):
        result = call(command, "run", flag, 0) if command != "bench" else call(command, flag, 0)
        says = "resolution 0: expected" if flag == "--res" else "0 is not in the range"
        assert result.exit_code == 2 and f"'{flag}': {says}" in result.stderr


def test_an_unknown_key_of_a_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[optim]\nlearning_rate = 1\n")
    result = call("run", "--config", tmp_path / "my.toml")
    assert_one_line(result, 2, "my.toml: optim.learning_rate", "optim.lr")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = call("run", *SHORT[:-2], "--device", "cuda", "--out", tmp_path / "run")
    assert_one_line(result, 2, "--device cuda: torch finds no GPU")
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out, "--max-steps", 1).exit_code == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir())
    assert_one_line(call("run", *SHORT, "--out", out), 1, "contains a run", "--resume")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir()) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert_one_line(call("run", *SHORT, "--out", tmp_path / "other"), 1, "is not empty")
    (tmp_path / "file").write_text("")
    assert_one_line(call("run", *SHORT, "--out", tmp_path / "file"), 1, "is a file")


def test_a_resumed_run_keeps_its_settings_and_refuses_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out, "--lr", "0.2", "--max-steps", 2).exit_code == 0
    result = call("run", "--resume", "--out", out, "--lr", "0.1")
    assert_one_line(result, 2, "optim.lr is 0.2, but the command says 0.1")
    config = configure({"out": str(out), "max_steps": 5}, file=None, resume=True)
    assert (config.optim.lr, config.run.max_steps, config.data.res) == (0.2, 5, ((16, 16),))


def test_override_changes_the_rate_of_a_resumed_run_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out, "--lr", "0.2", "--max-steps", 8).exit_code == 0
    again = ["run", "--resume", "--out", out, "--lr", "0.1", "--max-steps", 0]
    assert_one_line(call(*again), 2, "add --override", f"--init {out} and another --out")
    assert_one_line(call(*again, "--override", "--seed", 3), 2, "run.seed", "cannot change it")
    result = call(*again, "--override")
    assert result.exit_code == 0, result.output
    assert f"{out}: --override: optim.lr was 0.2 and is 0.1 from here on" in result.stdout
    assert [r["lr"] for r in MetricsLog(out / "metrics.jsonl").read()] == [0.2, 0.1]
    assert "lr = 0.1\n" in (out / "config.toml").read_text()
    assert_one_line(call("run", "--override"), 2, "--override: has no effect without --resume")


def test_a_run_starts_from_the_weights_of_another_and_is_resumed_without_them(
    tmp_path: Path,
) -> None:
    first, out = tmp_path / "first", tmp_path / "run"
    assert call("run", *SHORT, "--out", first, "--max-steps", 3).exit_code == 0
    again = ["--init", first, "--freeze", "encoder"]
    result = call("run", *SHORT, "--out", out, *again, "--max-steps", 3)
    assert result.exit_code == 0, result.output
    best = first / "best.safetensors"
    assert f"{out}: starts from {best}" in result.stdout
    network = configure({"out": str(out)}, file=None, resume=True).network
    assert network.init == str(best)
    assert network.init_sha256 == hashlib.sha256(best.read_bytes()).hexdigest()
    one, other = (load_file(folder / "last.safetensors") for folder in (first, out))
    for key, value in other.items():
        assert torch.equal(value, one[key]) == key.startswith(("body.0", "body.1")), key
    line = call("run", "--resume", "--out", out, "--init", first)
    assert_one_line(line, 2, f"--init {first}: a resumed run has its own weights")
    shutil.rmtree(first)
    assert call("run", "--resume", "--out", out, "--max-steps", 0).exit_code == 0
    result = call("run", *SHORT, "--out", tmp_path / "new", "--init", first)
    assert_one_line(result, 1, f"--init {first}: cannot be read")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model", "unet", "network.model is 'resunet', but the command says 'unet'"),
        ("optimizer", "adamw", "optim.optimizer is 'sgd', but the command says 'adamw'"),
        ("ema", 0.9, "optim.ema is 0.98, but the command says 0.9"),
        ("seed", 1, "run.seed is 0, but the command says 1"),
    ],
)
def test_a_checkpoint_says_the_settings_when_the_file_of_them_is_gone(
    tmp_path: Path, name: str, value: object, says: str
) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out, "--lr", "0.2", "--max-steps", 2).exit_code == 0
    (out / "config.toml").unlink()
    moved = out.rename(tmp_path / "moved")
    newest = moved / "checkpoints" / "step-00000002.safetensors"
    before = newest.read_bytes()
    result = call("run", "--resume", "--out", moved, f"--{name}", value)
    assert_one_line(result, 2, f"{newest}: {says}", "a resumed run cannot change it")
    config = configure({"out": str(moved)}, file=None, resume=True)
    assert (config.optim.lr, config.data.res, config.run.out) == (0.2, ((16, 16),), str(moved))
    other = resolve(config, {name: value})
    with pytest.raises(ConfigError, match="a resumed run cannot change it"):
        launch(other, resume=True, make_source=make_source, make_model=TinyNet)
    assert newest.read_bytes() == before and not (moved / "config.toml").exists()
    assert call("run", "--resume", "--out", moved, "--max-steps", 3).exit_code == 0
    assert configure({"out": str(moved)}, file=None, resume=True).optim.lr == 0.2


def test_a_resumed_run_may_be_given_more_epochs_but_no_other_past(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out).exit_code == 0
    again = ["run", "--resume", "--out", out]
    assert_one_line(
        call(*again, "--res", "32"), 2, "epoch 1 was trained at 16 px, but the command says 32 px"
    )
    assert call(*again, "--res", "16,32", "--epochs", "2,1").exit_code == 0
    assert [r["res"] for r in MetricsLog(out / "metrics.jsonl").read()] == [16, 16, 32]


def test_a_page_that_cannot_be_written_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise RunError("report.html: cannot be written (No space left on device)")

    monkeypatch.setattr(train.trainer.launch, "write_report", full)
    out = tmp_path / "run"
    result = call("run", *SHORT, "--out", out, "--max-steps", 1, "--report")
    assert result.exit_code == 0, result.output
    assert "Warning: no report: report.html: cannot be written" in result.stdout
    assert f"retry with `train report {out}`" in result.stdout


def test_resuming_what_was_never_begun_begins(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("run", "--resume", *SHORT, "--out", out, "--max-steps", 1)
    assert result.exit_code == 0
    assert "no checkpoint found; starting at step 0" in result.stdout
    assert (out / "last.safetensors").is_file()


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again_over_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out).exit_code == 0
    for checkpoint in (out / "checkpoints").iterdir():
        checkpoint.unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = ["run", "--resume", *SHORT, "--out", out]
    put_back = f"restore one in {out / 'checkpoints'}, or start a new run with another --out"
    assert_one_line(call(*again), 1, "contains 2 epochs of a run, but no checkpoint", put_back)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text(lines[0] + "\n")
    (out / "checkpoints").rmdir()
    assert_one_line(call(*again), 1, "contains 1 epoch of a run, but no checkpoint")
    (out / "metrics.jsonl").unlink()
    assert_one_line(call(*again), 1, "contains best.safetensors, but no checkpoint")
    (out / "config.toml").unlink()
    result = call(*again)
    assert_one_line(result, 1, "contains best.safetensors, but no config.toml and", put_back)
    assert not (out / "config.toml").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "run"  # Killed while it wrote the first one.
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / ".step-00000008.safetensors.tmp").write_bytes(b"half")
    config = configure(
        {"out": str(out), "res": (16,), "batch": 8, "device": "cpu"}, file=None, resume=False
    )
    (out / "config.toml").write_text(to_toml(config))
    assert call("run", "--resume", *SHORT, "--out", out, "--max-steps", 1).exit_code == 0
    bare = tmp_path / "bare"  # Killed before its settings were written.
    bare.mkdir()
    (bare / ".config.toml.tmp").write_text("[da")
    assert call("run", "--resume", *SHORT, "--out", bare, "--max-steps", 1).exit_code == 0


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("run", *SHORT, "--out", out, "--checkpoint-steps", 3).exit_code == 0
    newest, before, *_ = sorted((out / "checkpoints").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-5])
    result = call("run", "--resume", "--out", out)
    assert_one_line(result, 1, f"{newest}: damaged", f"from the previous one, {before}")
    newest.unlink()
    assert call("run", "--resume", "--out", out).exit_code == 0


@pytest.mark.parametrize("command", [["run"], ["eval", "trained"]])
def test_shards_without_a_manifest_are_refused_in_one_line(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.trainer.launch, "launch", launch)
    if command[0] == "eval":
        assert call("run", *SHORT, "--out", tmp_path / "trained", "--max-steps", "0").exit_code
        monkeypatch.setattr(
            "train.evaluation.evaluate.load_trained", lambda _: SimpleNamespace(res=16, stats={})
        )
    (tmp_path / "empty").mkdir()
    options = [] if command[0] == "eval" else [*SHORT, "--out", tmp_path / "run"]
    for folder in (tmp_path / "empty", tmp_path / "none"):
        result = call(*command, "--shards", folder, *options)
        assert_one_line(result, 1, str(folder), "manifest.json")
    assert not (tmp_path / "run").exists()


def test_run_without_shards_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.trainer.launch, "launch", launch)
    result = call("run", *SHORT, "--out", tmp_path / "run")
    assert_one_line(result, 2, "--shards: missing")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = resolve(Config(), {"out": str(tmp_path / "file" / "run"), "res": 16, "device": "cpu"})
    with pytest.raises(RunError, match="cannot be written"):
        launch(config, make_source=make_source, make_model=TinyNet)


def test_python_callers_get_the_same_errors() -> None:
    with pytest.raises(ConfigError, match="--res 100"):
        launch(resolve(Config(), {"res": 100}))


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_every_command_has_help_and_an_example(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"train {command}" in result.stdout.split("\n", 1)[1]


def test_every_setting_is_a_flag_with_its_help() -> None:
    flags = {option.name: option for option in main.commands["run"].params}
    for setting in settings():
        assert setting.help in str(flags[setting.name].help)


def test_help_answers_without_loading_torch() -> None:
    code = "import sys, train.cli; sys.exit('torch' in sys.modules or 'nvidia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda:", "cpu:0", "mps", ""])
@pytest.mark.parametrize(
    "command",
    [
        "run --shards data", "config", "eval run --shards data", "report run",
        "predict run --fg-bg x.png --out maps", "bench --shards data --res 16",
        "bench --suite --out out",
    ],
)  # fmt: skip
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, device: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if device == "" and command.startswith("bench"):
        return  # As if it were not given.
    result = call(*command.split(), "--device", device)
    assert_one_line(result, 2, f"--device {device}: expected cpu, cuda, cuda:N or auto")
    assert list(tmp_path.iterdir()) == []
