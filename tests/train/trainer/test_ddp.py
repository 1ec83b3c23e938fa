"""Several processes under torchrun and gloo: one run, whatever the number of ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.checkpoint.checkpoint_file import Checkpoints
from train.evaluation.metrics import FIGURES
from train.tracking.metrics_log import MetricsLog

pytestmark = pytest.mark.ddp
SCRIPT = Path(__file__).resolve().parents[2] / "helpers" / "shardline_tiny_run.py"
COMMON = {
    "res": "16,32", "epochs": "2,1", "device": "cpu", "torch-threads": 1, "panel-rows": 2,
    "model": "unet", "lr": 0.1, "log-steps": 2, "keep": 50, "ema": 0.8,
    "deep-supervision": 0.3,
}  # fmt: skip


def command(ranks: int, out: Path, *extra: str, restarts: int = 0, **options: object) -> list[str]:
    """`train run` under torchrun; the global batch is 12 unless said otherwise."""
    flags = {**COMMON, "batch": 12 // ranks, "shards": "48:11", **options, "out": out}
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"),
    ]
    return [
        *(torchrun if ranks > 1 else [sys.executable]),
        *(str(SCRIPT), "run"),
        *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
        *("--no-tensorboard", *extra),
    ]


def run(ranks: int, out: Path, *extra: str, code: int = 0, **options: object) -> str:
    done = subprocess.run(
        command(ranks, out, *extra, **options), capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(1, out)
    return out


def assert_equal_runs(one: Path, other: Path, *, tolerance: float) -> None:
    mine, theirs = (MetricsLog(out / "metrics.jsonl").read() for out in (one, other))
    assert [r["step"] for r in mine] == [r["step"] for r in theirs]
    assert [r["lr"] for r in mine] == [r["lr"] for r in theirs]
    for a, b in zip(mine, theirs, strict=True):
        for split in ("train", "val"):
            for name in FIGURES:
                assert a[split][name] == pytest.approx(b[split][name], abs=tolerance), name
    for name, weight in load_file(one / "last.safetensors").items():
        torch.testing.assert_close(
            weight, load_file(other / "last.safetensors")[name], atol=tolerance, rtol=0
        )


@pytest.mark.slow
def test_ranks_together_start_from_weights_and_unfreeze_the_encoder(
    alone: Path, tmp_path: Path
) -> None:
    for ranks in (1, 2):
        run(
            ranks, tmp_path / str(ranks), init=alone, freeze="encoder", unfreeze_stage=2,
            epochs="1,1",
        )  # fmt: skip
    assert_equal_runs(tmp_path / "1", tmp_path / "2", tolerance=2e-4)
    first = load_file(alone / "best.safetensors")
    last = load_file(tmp_path / "2" / "last.safetensors")
    assert not torch.equal(first["body.0.weight"], last["body.0.weight"])


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_together_are_one_rank_with_their_global_batch(
    alone: Path, tmp_path: Path, ranks: int
) -> None:
    """Loss, figures and weights within 2e-4: sums are taken in another order, nothing else."""
    out = tmp_path / "run"
    said = run(ranks, out, "--json")
    assert_equal_runs(alone, out, tolerance=2e-4)
    assert said.count("epoch 1 (16 px)") == 1  # One rank speaks,
    assert json.loads(said.splitlines()[0])["steps"] == 12  # and says what came out.
    assert (out / "panels" / "epoch-002.png").is_file()
    assert "tiny100010" in (out / "report.html").read_text()  # Written by one rank, of all samples.


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    """Stopped within an epoch at 2 ranks, on with 3, ended with 1: the samples are the same."""
    out = tmp_path / "run"
    run(2, out, max_steps=1)
    run(3, out, "--resume", max_steps=6)
    run(1, out, "--resume", max_steps=0)
    assert_equal_runs(alone, out, tolerance=2e-4)


def test_what_is_the_users_to_mend_is_said_once(tmp_path: Path) -> None:
    """By all ranks' spokesman, or by the one rank that knows while others lose it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("")
    for options, says in (({"res": "16,100"}, "--res 100: "), ({}, "run: is not empty")):
        said = run(2, tmp_path / "run", code=1, **options)  # torchrun's own, whatever theirs.
        assert len(re.findall(r"^Error: ", said, re.M)) == 1, said
        assert says in said


def test_a_killed_rank_ends_the_others_with_a_clear_word(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = {"shards": "48:11:0.3", "checkpoint_steps": 1}
    process = subprocess.Popen(
        command(2, out, **flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for_checkpoint(out, process)
    os.kill(rank_pids(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert re.search(r"Error: rank 0 of 2: another rank ended or does not respond", err) or (
        "stopped by a signal at step" in err
    ), err


@pytest.mark.slow
def test_torchrun_brings_a_killed_rank_back_and_the_run_ends_as_it_would_have(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    # With batch norm: every rank has statistics of its own, and yet not a bit differs.
    flags = {"checkpoint_steps": 1, "model": "resunet", "schedule": "onecycle"}
    process = subprocess.Popen(
        command(2, out, restarts=2, **flags, shards="48:11:0.2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for_checkpoint(out, process)
    os.kill(rank_pids(process.pid)[0], signal.SIGKILL)
    said, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert "resumed after step" in said
    run(2, tmp_path / "whole", **flags)
    assert_equal_runs(tmp_path / "whole", out, tolerance=0)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_with_one_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(2, out, shards="48:11:0.2", checkpoint_steps=1), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for_checkpoint(out, process)
    os.kill(rank_pids(process.pid)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    stopped = {
        int(step) for step in re.findall(r"stopped by a signal at step (\d+); --resume", err)
    }
    assert len(stopped) == 1, err
    newest = Checkpoints(out / "checkpoints", keep=50).newest()
    assert newest is not None and newest.state["position"]["step"] in stopped


@pytest.mark.slow
def test_a_signal_within_a_long_step_saves_the_last_whole_one_of_all_ranks(
    alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(2, out, checkpoint_steps=1), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TINY_SLOW": "2"},
    )  # fmt: skip
    wait_for_checkpoint(out, process)
    time.sleep(1)  # Step 3 of 4 takes a minute.
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)  # As a scheduler does: to torchrun, which passes it on.
    _, err = process.communicate(timeout=100)
    assert time.monotonic() - asked < 30
    assert f"{out}: stopped by a signal at step 2; --resume continues from there" in err
    run(1, out, "--resume", batch=12)
    assert_equal_runs(alone, out, tolerance=2e-4)


def wait_for_checkpoint(out: Path, process: "subprocess.Popen[str]") -> None:
    for _ in range(1000):
        if list((out / "checkpoints").glob("step-*")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no checkpoint in 50 s")


def rank_pids(parent: int) -> dict[int, int]:
    """Rank → process, of torchrun's children."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text()
            if int(stat.rpartition(")")[2].split()[1]) != parent:
                continue
            environ = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        for item in environ:
            if item.startswith(b"RANK="):
                found[int(item[5:])] = int(entry.name)
    return found
