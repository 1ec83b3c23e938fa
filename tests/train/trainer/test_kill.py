"""Real processes, really killed: what is left must carry the run to the same end, bit for bit."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train.checkpoint.checkpoint_file import Checkpoints
from train.tracking.metrics_log import MetricsLog

SCRIPT = Path(__file__).resolve().parents[2] / "helpers" / "shardline_tiny_run.py"
# 8 steps an epoch; 2 epochs at 16 px, 1 at 32 px: boundaries at 8, 16 (resolution), 24.
OPTIONS = {
    "res": "16,32", "epochs": "2,1", "batch": 8, "device": "cpu", "torch-threads": 1,
    "panel-rows": 0, "checkpoint-steps": 2, "keep": 3, "lr": 0.1,
    "schedule": "cosine", "warmup": 3, "ema": 0.9, "deep-supervision": 0.3,
}  # fmt: skip
CLOCK = {"samples_per_s", "data_wait", "seconds", "val_seconds", "peak_memory_mb"}


def start_command(out: Path, *extra: str, delay: float = 0.0) -> list[str]:
    """Return the command `train run` on the tiny data set."""
    flags = [f"--{name}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, str(SCRIPT), "run", *flags, f"--out={out}"]
    return [*command, f"--shards=64:10:{delay}", "--no-tensorboard", "--no-report", *extra]


@pytest.fixture(autouse=True)
def hangup_is_not_ignored() -> Iterator[None]:
    """A process inherits what is ignored, as by nohup, and a run respects it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(out: Path, *extra: str, delay: float = 0.0, **popen: Any) -> "subprocess.Popen[str]":
    """`train run` on the tiny data set, as a process of its own."""
    command = start_command(out, *extra, delay=delay)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing happened for a minute")


def newest_step(out: Path) -> int:
    files = Checkpoints(out / "checkpoints", keep=3).files()
    return int(files[0].stem.removeprefix("step-")) if files else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(out))
    yield out


def assert_same_end(one: Path, other: Path) -> None:
    states = [Checkpoints(out / "checkpoints", keep=3).newest() for out in (one, other)]
    mine, theirs = (dict(found.state) if found else {} for found in states)
    for state in (mine, theirs):
        del state["about"]
    assert_equal(mine, theirs)
    for name in ("last.safetensors", "best.safetensors"):
        assert_equal(load_file(one / name), load_file(other / name))
    records = [MetricsLog(out / "metrics.jsonl").read() for out in (one, other)]
    for mine, theirs in zip(*records, strict=True):
        for key in mine.keys() - CLOCK:
            assert mine[key] == theirs[key], key


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


# About an epoch's end, and about the change of resolution.
@pytest.mark.parametrize("step", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_a_run_killed_about_a_boundary_ends_with_the_same_bits(
    tmp_path: Path, whole: Path, step: int
) -> None:
    out = tmp_path / "run"
    process = start(out, delay=0.03)
    wait_for(lambda: newest_step(out) >= step, process)
    process.kill()
    finish_killed(process)
    stdout, _ = finish(start(out, "--resume"))
    assert "resumed after step" in stdout
    assert_same_end(out, whole)


def finish_killed(process: "subprocess.Popen[str]") -> None:
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    kills = 0
    while True:
        process = start(out, "--resume", delay=0.02)
        reached = newest_step(out) + 5
        while process.poll() is None and newest_step(out) < min(reached, 24):
            time.sleep(0.01)
        if newest_step(out) >= 24:
            finish(process)
            break
        process.kill()
        finish_killed(process)
        kills += 1
    assert kills >= 3
    assert_same_end(out, whole)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGUSR2)),
        signal.SIGUSR1,
    ],
    ids=lambda n: n.name,
)
def test_a_signal_ends_the_process_with_130_and_a_saved_state(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = start(out, delay=0.05)
    wait_for(lambda: newest_step(out) >= 4, process)
    asked = time.monotonic()
    process.send_signal(number)
    _, err = finish(process, 130)
    assert time.monotonic() - asked < 25
    assert "--resume continues from there" in err and len(err.strip().splitlines()) == 1
    stopped_at = newest_step(out)
    assert f"stopped by a signal at step {stopped_at}" in err
    finish(start(out, "--resume"))
    assert_same_end(out, whole)


@pytest.mark.slow
def test_a_signal_that_was_ignored_when_the_run_began_does_not_stop_it(
    tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    command = ["sh", "-c", 'trap "" HUP USR1; exec "$@"', "sh", *start_command(out, delay=0.02)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # As nohup does.
    wait_for(lambda: newest_step(out) >= 4, process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    finish(process)
    assert_same_end(out, whole)


def test_a_closed_terminal_ends_the_run_with_a_saved_state(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    main, terminal = os.openpty()
    # The leader of a session opens a terminal: it becomes the session's.
    command = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(terminal)]
    process = subprocess.Popen([*command, *start_command(out, delay=0.3)], start_new_session=True)
    os.close(terminal)
    wait_for(lambda: newest_step(out) >= 4, process)
    os.close(main)
    assert process.wait(timeout=60) == 130
    assert 4 <= newest_step(out) < 24
    finish(start(out, "--resume"))
    assert_same_end(out, whole)


@pytest.mark.slow
def test_the_slurm_script_requeues_a_run_that_the_signal_stopped(
    tmp_path: Path, whole: Path
) -> None:
    """`srun` and `scontrol` are stand-ins: one starts the tiny run, the other takes a note."""
    out, tools = tmp_path / "run", tmp_path / "tools"
    tools.mkdir()
    command = shlex.join(start_command(out, "--resume", delay=0.05))
    for name, line in {
        "srun": f'echo "$@" > {tmp_path}/srun; echo $$ > {tmp_path}/pid; exec {command}',
        "scontrol": f'echo "$@" > {tmp_path}/scontrol',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    script = Path(__file__).parents[3] / "docs" / "train.sbatch"
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "SHARDS": "out/", "RUN": str(out),
        "SLURM_JOB_ID": "42",
    }  # fmt: skip
    job = ["bash", str(script)]
    process = subprocess.Popen(job, env=environment)
    wait_for(lambda: newest_step(out) >= 4, process)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"
    assert (
        f"train run --shards out/ --res 64,256 --epochs 10,5 --out {out} --resume"
        in (tmp_path / "srun").read_text()
    )
    (tmp_path / "scontrol").unlink()
    assert subprocess.run(job, env=environment, timeout=120).returncode == 0
    assert not (tmp_path / "scontrol").exists()
    assert_same_end(out, whole)


# One signal, and the few seconds that a step is given; or two.
@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_signal_within_a_long_step_saves_the_last_whole_one(
    tmp_path: Path, whole: Path, numbers: list[signal.Signals]
) -> None:
    out = tmp_path / "run"
    process = start(out, env={**os.environ, "TINY_SLOW": "5"})
    wait_for(lambda: newest_step(out) >= 4, process)
    time.sleep(0.5)  # Step 5 takes no time, and step 6 a minute.
    asked = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)  # Two at once would be one.
    _, err = finish(process, 130)
    assert time.monotonic() - asked < 25
    assert err.strip() == f"{out}: stopped by a signal at step 5; --resume continues from there"
    finish(start(out, "--resume"))
    assert_same_end(out, whole)


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_swept_away(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    process = start(out, delay=0.05)
    wait_for(lambda: newest_step(out) >= 4, process)
    process.kill()
    finish_killed(process)
    (out / "checkpoints" / ".step-00000005.safetensors.tmp").write_bytes(b"half")
    (out / ".last.safetensors.tmp").write_bytes(b"half")
    (out / ".tmpAb3xYz").write_bytes(b"half")  # What safetensors calls its own.
    (out / "checkpoints" / ".tmp012345").write_bytes(b"half")
    (out / "panels").mkdir(exist_ok=True)
    (out / "panels" / ".epoch-001.png.tmp").write_bytes(b"half")
    mine = [out / ".tmp-my-notes", out / ".tmpfolder"]
    mine[0].write_text("kept")
    mine[1].mkdir()
    finish(start(out, "--resume"))
    assert sorted(path for path in out.rglob("*") if ".tmp" in path.name) == sorted(mine)
    assert_same_end(out, whole)


@pytest.mark.slow
def test_a_second_run_into_the_folder_of_one_at_work_is_refused(
    tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, delay=2.0)  # At work until both others have tried.
    wait_for(lambda: newest_step(out) >= 2, process)
    for extra in ([], ["--resume"]):
        _, err = finish(start(out, *extra), 1)
        assert err.strip() == (
            f"Error: {out}: another run uses it; wait until that run ends, or choose another --out"
        )
    process.kill()
    finish_killed(process)
    finish(start(out, "--resume"))  # The lock has died with its holder.
    assert_same_end(out, whole)


def private_mounts() -> list[str] | None:
    """A command that runs another where it may mount what it likes, seen by nobody else."""
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *options]
        trial = ["sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
        try:
            if subprocess.run([*command, *trial], capture_output=True).returncode == 0:
                return command
        except OSError:
            return None
    return None


@pytest.mark.parametrize(
    "log", [pytest.param("--no-tensorboard", marks=pytest.mark.slow), "--tensorboard"]
)
def test_a_disk_that_is_really_full_ends_the_run_which_goes_on_once_it_has_room(
    tmp_path: Path, whole: Path, log: str
) -> None:
    unshare = private_mounts()
    if unshare is None:
        pytest.skip("needs unshare and the right to mount a tmpfs in a namespace of its own")
    (tmp_path / "disk").mkdir()
    flags = [f"--{name}={value}" for name, value in OPTIONS.items()]
    train = [sys.executable, str(SCRIPT), "run", *flags, "--out=disk/run", "--shards=64:10"]
    again = shlex.join([*train, log, "--no-report", "--resume"])
    (newest, *_) = Checkpoints(whole / "checkpoints", keep=3).files()
    size = newest.stat().st_size * 7 // 4  # One checkpoint has room there, two have not.
    size += 12 * 1024 * (log == "--tensorboard")
    script = f"""
        cd {shlex.quote(str(tmp_path))} && mount -t tmpfs -o size={size} none disk || exit 9
        {again} > /dev/null 2> told
        test $? = 1 || exit 8
        cp -a disk/run full
        mount -o remount,size=8m disk
        {again} || exit 7
        cp -a disk/run run
    """
    done = subprocess.run([*unshare, "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text()
    (line,) = told.splitlines()
    assert line.startswith("Error: disk/run: the checkpoint could not be written: the disk is full")
    assert "; the last whole checkpoint is disk/run/checkpoints/step-00000002.safetensors; " in line
    assert newest_step(tmp_path / "full") == 2
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_file_that_would_be_too_large_ends_the_run_and_old_checkpoints_stand(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    finish(start(out, "--max-steps=4"))
    before = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    largest = min(len(content) for content in before.values()) // 2

    def small_files() -> None:
        # What is written past this many bytes fails, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    _, told = finish(start(out, "--resume", "--max-steps=8", preexec_fn=small_files), code=1)
    assert "could not be written: the disk is full" in told
    after = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    assert after == before
