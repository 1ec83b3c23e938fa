import itertools
import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shardline_tiny_run import TinyNet, TinySource

import train.trainer.state
from shardify.errors import DataError
from shardify.loader.batch import Batch
from train.checkpoint.checkpoint_file import Checkpoints, Stored, read
from train.checkpoint.trained_model import load_trained
from train.config import Config
from train.distributed import World
from train.errors import ConfigError, DivergedError, FitError, Interrupted, PeerError, RunError
from train.evaluation.evaluate import evaluate_split
from train.inference.predict import Predictor
from train.optim.wrapped_model import WrappedModel, translate_compile_errors
from train.settings import resolve, to_toml
from train.tracking import run_folder
from train.tracking.console import Console
from train.tracking.metrics_log import MetricsLog
from train.trainer.signals import StopSignal
from train.trainer.trainer import Trainer

TIMES = {"samples_per_s", "data_wait", "seconds", "val_seconds", "peak_memory_mb"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settings(out: Path, **values: object) -> Config:
    base = {
        "out": str(out),
        "res": (16, 32),
        "epochs": (2, 1),
        "batch": 8,
        "device": "cpu",
        "lr": 0.1,
        "patience": 0,
        "factor": 0.5,
        "panel_rows": 2,
        "log_steps": 3,
        "keep": 100,
        "tensorboard": False,
    }
    return resolve(Config(), {**base, **values})


def make(out: Path, source: TinySource | None = None, **values: object) -> Trainer:
    out.mkdir(exist_ok=True)
    return Trainer(
        settings(out, **values), source or TinySource(40, 10), make_model=TinyNet, console=Console()
    )


def newest(out: Path) -> Stored:
    found = Checkpoints(out / "checkpoints", keep=100).newest()
    assert found is not None
    return found


def figures(out: Path) -> list[dict[str, Any]]:
    """Every epoch's record, but for what the clock decides."""
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in MetricsLog(out / "metrics.jsonl").read()
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser, schedule, figures: all equal, bit for bit."""
    mine, theirs = newest(one).state, newest(other).state
    for state in (mine, theirs):
        del state["about"]  # The settings name different folders.
    assert_equal(mine, theirs)
    assert figures(one) == figures(other)
    for name in ("last.safetensors", "best.safetensors"):
        assert_equal(load_file(one / name), load_file(other / name))


def assert_equal(one: Any, other: Any, at: str = "") -> None:
    assert type(one) is type(other), at
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    elif isinstance(one, dict):
        assert list(one) == list(other), at
        for key in one:
            assert_equal(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{at}/{i}")
    else:
        assert one == other, at


def test_a_run_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = make(out, epochs=(6, 2)).run()
    records = MetricsLog(out / "metrics.jsonl").read()
    assert [(r["epoch"], r["stage"], r["res"]) for r in records] == [
        *((epoch, 0, 16) for epoch in range(6)),
        *((epoch, 1, 32) for epoch in (6, 7)),
    ]
    assert records[-1]["val"]["loss"] < 0.8 * records[0]["val"]["loss"]
    assert summary.steps == records[-1]["step"] == 8 * 5
    assert {path.name for path in out.iterdir()} == {
        "metrics.jsonl", "last.safetensors", "best.safetensors", "checkpoints", "panels",
    }  # fmt: skip
    assert sorted(path.name for path in (out / "panels").iterdir())[-1] == "epoch-007.png"
    assert all(0 <= r["data_wait"] <= 1 and r["samples_per_s"] > 0 for r in records)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / name, seed=seed).run()
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert figures(tmp_path / "a") != figures(tmp_path / "c")


# 5 steps an epoch: in the first, at its end, in the second, at the change of resolution, after it.
@pytest.mark.parametrize("stop_at", [2, 5, 7, 10, 13])
def test_a_resumed_run_is_bit_for_bit_the_one_that_never_stopped(
    tmp_path: Path, stop_at: int
) -> None:
    make(tmp_path / "whole").run()
    first = make(tmp_path / "parts", max_steps=stop_at)
    first.run()
    assert newest(tmp_path / "parts").state["position"]["step"] == stop_at
    second = make(tmp_path / "parts")
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_adamw_and_runs_without_validation_resume_exactly_too(tmp_path: Path) -> None:
    options: dict[str, object] = {"optimizer": "adamw", "lr": 0.01}
    make(tmp_path / "whole", TinySource(40, 0), **options).run()
    make(tmp_path / "parts", TinySource(40, 0), max_steps=8, **options).run()
    second = make(tmp_path / "parts", TinySource(40, 0), **options)
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    records = figures(tmp_path / "whole")
    assert all(record["val"] is None for record in records)
    assert (tmp_path / "whole" / "panels" / "epoch-000.png").is_file()


class Signalling(TinySource):
    """Sends this process a signal while batch ``at`` of a split is made."""

    def __init__(self, split: str, at: int, number: signal.Signals) -> None:
        super().__init__(40, 10)
        self._split, self._at, self._number = split, at, number

    def open(self, split: str, **options: Any) -> Any:
        loader = super().open(split, **options)
        if split == self._split:
            make, left = loader._make, [self._at]

            def made(*args: Any) -> Batch:
                if left[0] == 0:
                    os.kill(os.getpid(), self._number)
                left[0] -= 1
                return make(*args)

            loader._make = made  # type: ignore[method-assign]
        return loader


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("split", "at"), [("train", 1), ("train", 4), ("train", 6), ("val", 1)])
def test_a_signal_saves_the_state_and_the_run_goes_on_exactly(
    tmp_path: Path, number: signal.Signals, split: str, at: int
) -> None:
    make(tmp_path / "whole").run()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="--resume continues"):
        make(tmp_path / "parts", Signalling(split, at, number)).run()
    assert signal.getsignal(number) == before
    second = make(tmp_path / "parts")
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_rank_that_lost_another_is_not_ended_before_it_said_so() -> None:
    """Who started the ranks sends SIGTERM to all that are left when one of them is gone."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        for several, after in ((False, before), (True, signal.SIG_IGN)):
            with pytest.raises(PeerError), StopSignal().handle_signals(several_ranks=several):
                raise PeerError("another rank ended")
            assert signal.getsignal(signal.SIGTERM) == after
        signal.signal(signal.SIGTERM, before)
        with StopSignal().handle_signals(several_ranks=True):
            pass
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)


# 5 batches an epoch. Of the second set, 3 steps an epoch, the last of 1 batch.
EXACT: list[dict[str, object]] = [
    {"schedule": "cosine", "warmup": 3, "ema": 0.9},
    {"schedule": "onecycle", "ema": 0.9, "deep_supervision": 0.4, "grad_accum": 2},
    {"optimizer": "adamw", "lr": 0.01, "warmup": 6, "ema": 0.9, "deep_supervision": 0.4},
    {"precision": "fp16", "deep_supervision": 0.4, "ema": 0.9, "lr": 0.02},
]


@pytest.fixture
def fp16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow fp16, which is refused on a CPU because it is slow there, to test loss scaling."""
    types = {"fp16": torch.float16}
    monkeypatch.setattr(
        train.trainer.state, "choose_precision", lambda name, _: types.get(name, torch.float32)
    )


@pytest.mark.usefixtures("fp16_on_cpu")
@pytest.mark.parametrize(
    ("options", "at"), [(EXACT[0], 6), (EXACT[1], 1), (EXACT[2], 4), (EXACT[3], 6)]
)
def test_schedules_averages_and_heads_go_on_bit_for_bit(
    tmp_path: Path, options: dict[str, object], at: int
) -> None:
    make(tmp_path / "whole", **options).run()
    with pytest.raises(Interrupted):
        make(tmp_path / "parts", Signalling("train", at, signal.SIGTERM), **options).run()
    second = make(tmp_path / "parts", **options)
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_steps_rate_is_the_schedules_over_all_stages_or_max_steps(tmp_path: Path) -> None:
    for name, most in (("whole", 0), ("short", 8)):
        make(tmp_path / name, schedule="cosine", warmup=2, max_steps=most).run()
        rates = [record["lr"] for record in figures(tmp_path / name)]
        total = most or 15
        ends = [step - 1 for step in (5, 10, 15) if step <= total] + [total - 1] * bool(most)
        wanted = [0.05 * (1 + math.cos(math.pi * (end - 2) / (total - 2))) for end in ends]
        assert rates == pytest.approx(wanted)


def test_a_longer_run_is_told_that_its_rates_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run", schedule="cosine", max_steps=4).run()
    second = make(tmp_path / "run", schedule="cosine")
    second.load_state(newest(tmp_path / "run").state)
    second.run()
    said = capsys.readouterr().out
    assert said.count("the length of the run was 4 steps and is now different") == 1


def test_a_warm_up_as_long_as_a_cosine_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--warmup 15: the run has 15 steps"):
        make(tmp_path / "run", schedule="cosine", warmup=15).run()


def test_averaged_weights_are_what_is_judged_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = make(out, ema=0.5, res=(16,), epochs=(1,))
    before = {
        name: value.clone() for name, value in trainer.state.networks.evaluated.state_dict().items()
    }
    trainer.run()
    state, kept = newest(out).state, load_file(out / "last.safetensors")
    assert kept.keys() == state["average"].keys()
    for name, weight in kept.items():
        assert torch.equal(weight, state["average"][name])
        if weight.is_floating_point():
            assert not torch.equal(weight, state["model"][name])
            assert not torch.equal(weight, before[name])
    trained = load_trained(Checkpoints(out / "checkpoints", keep=9).files()[0], make_model=TinyNet)
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(weight, kept[name])
    figures_again = evaluate_split(
        trained, TinySource(40, 10), split="val", res=16, batch=8, device=torch.device("cpu")
    )
    (record,) = figures(out)
    assert {name: figures_again[name] for name in record["val"]} == record["val"]


def test_heads_for_coarser_scales_are_trained_and_left_behind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = make(out, deep_supervision=0.5, res=(16,), epochs=(1,))
    before = {
        name: value.clone() for name, value in trainer.state.networks.state_dict()["heads"].items()
    }
    trainer.run()
    state = newest(out).state
    assert all(not torch.equal(value, state["heads"][name]) for name, value in before.items())
    plain = set(TinyNet("resunet").state_dict())
    assert set(load_file(out / "best.safetensors")) == set(state["model"]) == plain


def test_checkpoints_come_every_so_many_steps_and_the_newest_are_kept(tmp_path: Path) -> None:
    make(tmp_path / "run", checkpoint_steps=2, keep=4).run()
    names = [path.stem for path in Checkpoints(tmp_path / "run" / "checkpoints", keep=4).files()]
    assert names == ["step-00000015", "step-00000014", "step-00000012", "step-00000010"]


def test_a_checkpoint_comes_when_so_many_minutes_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 20)  # Seconds: who asks finds another third of a minute gone.
    monkeypatch.setattr("train.trainer.checkpoint_policy.monotonic", lambda: next(clock))
    steps = {}
    for minutes in (0.0, 0.5):
        out = tmp_path / str(minutes)
        make(out, checkpoint_minutes=minutes, keep=50).run()
        names = [path.stem for path in Checkpoints(out / "checkpoints", keep=50).files()]
        steps[minutes] = sorted(int(name.removeprefix("step-")) for name in names)
    assert steps[0.0] == [5, 10, 15]
    within = [step for step in steps[0.5] if step % 5]
    assert within == [2, 4, 7, 9, 12, 14], steps


def test_figures_and_weights_say_that_a_checkpoint_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run without one is known for one that lost it, however early it was killed."""
    written: list[str] = []
    real, append = run_folder.Checkpoints.save, run_folder.MetricsLog.append

    def slow(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        time.sleep(0.2)
        path = real(self, step, state)
        written.append(path.stem)
        return path

    def weights(path: Path, *_: object) -> None:
        written.append(path.stem)

    def line(self: MetricsLog, record: dict[str, Any]) -> None:
        written.append(f"epoch {record['epoch']}")
        append(self, record)

    monkeypatch.setattr(run_folder.Checkpoints, "save", slow)
    monkeypatch.setattr(run_folder.MetricsLog, "append", line)
    monkeypatch.setattr(run_folder, "save", weights)
    make(tmp_path / "run", epochs=(1,), res=(16,)).run()
    assert written == ["step-00000005", "last", "best", "epoch 0", "step-00000005"]


def test_max_steps_ends_after_that_many_steps_with_figures(tmp_path: Path) -> None:
    summary = make(tmp_path / "run", max_steps=3).run()
    assert summary.steps == 3
    (record,) = figures(tmp_path / "run")
    assert record["step"] == 3 and record["whole"] is False and record["val"]["loss"] > 0
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_best_is_the_lowest_loss_at_the_last_resolution(tmp_path: Path) -> None:
    out = tmp_path / "run"
    make(out, res=(16, 32), epochs=(1, 3), lr=1.0).run()
    records = figures(out)
    best = min(records[1:], key=lambda record: record["val"]["loss"])

    assert load_trained(out, make_model=TinyNet).step == best["step"]


def test_a_run_grows_through_pictures_that_are_not_square(tmp_path: Path) -> None:
    stages = {"res": ((16, 32), "32x64"), "epochs": (1, 1)}
    whole, out = tmp_path / "whole", tmp_path / "run"
    make(whole, **stages).run()
    make(out, **stages, max_steps=7).run()
    source = TinySource(40, 10)
    resumed = make(out, source, **stages)
    resumed.load_state(newest(out).state)
    resumed.run()
    assert figures(out)[-1] == figures(whole)[-1]
    assert [record["res"] for record in figures(whole)] == ["16x32", "32x64"]
    assert source.opened[-1]._res == (32, 64)
    assert 'res = ["16x32", "32x64"]\n' in to_toml(resumed.config)

    trained = load_trained(out, make_model=TinyNet)
    assert trained.res == (32, 64)
    with Image.open(out / "panels" / "epoch-001.png") as panel:
        assert panel.width > panel.height  # 6 columns and 6 rows of wide cells.
    (maps,) = Predictor(trained)([(np.zeros((50, 70, 3), np.uint8),) * 2])
    assert maps.mask.shape == (50, 70)


def test_more_epochs_of_the_last_stage_must_be_better_than_its_best(tmp_path: Path) -> None:
    out = tmp_path / "run"
    make(out, res=(16,), epochs=(2,)).run()
    best = min(record["val"]["loss"] for record in figures(out))
    longer = make(out, res=(16,), epochs=(3,))
    longer.load_state(newest(out).state)
    assert longer.at.best == best
    added = make(out, res=(16, 32), epochs=(2, 1))
    added.load_state(newest(out).state)
    assert added.at.best is None


def test_the_rate_falls_after_an_epoch_without_a_better_loss(tmp_path: Path) -> None:
    out = tmp_path / "run"
    make(out, res=(16,), epochs=(6,), lr=2.0).run()
    records = figures(out)
    expected, best, rate = [], float("inf"), 2.0
    for record in records:
        expected.append(rate)
        rate *= 1.0 if record["val"]["loss"] < best * (1 - 1e-4) else 0.5
        best = min(best, record["val"]["loss"])
    assert [record["lr"] for record in records] == expected
    assert len(set(expected)) > 1


# 5 steps an epoch; the rate falls after the 4th: before that, at that moment, and after it.
@pytest.mark.parametrize("stop_at", [7, 17, 20, 22])
def test_a_rate_that_falls_falls_at_the_same_epochs_in_a_run_in_pieces(
    tmp_path: Path, stop_at: int
) -> None:
    values: dict[str, object] = {"res": (16,), "epochs": (6,), "lr": 2.0}
    make(tmp_path / "whole", **values).run()
    rates = [record["lr"] for record in figures(tmp_path / "whole")]
    assert rates[3] > rates[4] == rates[5]
    make(tmp_path / "parts", max_steps=stop_at, **values).run()
    second = make(tmp_path / "parts", **values)
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert [record["lr"] for record in figures(tmp_path / "parts")] == rates
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_without_improvement_ends_early_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = make(out, res=(16,), epochs=(9,), stop_after=2, lr=20.0, factor=0.9).run()
    losses = [record["val"]["loss"] for record in figures(out)]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 9
    reason = f"early stopping at epoch {len(losses)} (2 epochs without improvement)"
    assert summary.ended == reason and reason in str(summary)
    assert json.loads(summary.to_json())["ended"] == reason
    again = make(out, res=(16,), epochs=(9,), stop_after=2, lr=20.0, factor=0.9)
    again.load_state(newest(out).state)
    assert again.ending == reason
    longer = make(out, res=(16,), epochs=(9,), stop_after=0, lr=20.0, factor=0.9)
    longer.load_state(newest(out).state)
    assert longer.run().ended == "all epochs are done" and len(figures(out)) == 9


STALE: dict[str, object] = {"epochs": (9, 2), "stop_after": 2, "lr": 20.0, "factor": 0.9}


def test_a_stage_without_improvement_ends_early_and_the_next_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    summary = make(out, **STALE).run()
    records = figures(out)
    first = [record["val"]["loss"] for record in records if record["stage"] == 0]
    assert len(first) == first.index(min(first)) + 3 < 9
    assert [record["epoch"] for record in records] == list(range(len(first) + 2))
    assert [record["stage"] for record in records][-2:] == [1, 1]
    assert summary.ended == f"all stages are done (early stopping at epoch {len(first)})"
    said = capsys.readouterr().out
    assert f"16 px: early stopping at epoch {len(first)} (2 epochs without" in said


# 5 steps an epoch; the first stage ends after its 3rd epoch.
@pytest.mark.parametrize("stop_at", [8, 10, 15, 17])
def test_a_run_with_early_stopping_resumes_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    make(tmp_path / "whole", **STALE).run()
    assert [record["stage"] for record in figures(tmp_path / "whole")] == [0, 0, 0, 1, 1]
    make(tmp_path / "parts", max_steps=stop_at, **STALE).run()
    second = make(tmp_path / "parts", **STALE)
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_schedule_over_a_run_that_early_stopping_shortens_resumes_bit_for_bit(
    tmp_path: Path,
) -> None:
    options = {**STALE, "schedule": "cosine", "warmup": 30}  # Longer than the shortened run.
    make(tmp_path / "whole", **options).run()
    assert [record["stage"] for record in figures(tmp_path / "whole")] == [0, 0, 0, 0, 1, 1]
    with pytest.raises(Interrupted):
        make(tmp_path / "parts", Signalling("train", 6, signal.SIGTERM), **options).run()
    second = make(tmp_path / "parts", **options)
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_summary_says_that_the_steps_or_the_epochs_are_done(tmp_path: Path) -> None:
    assert make(tmp_path / "short", max_steps=3).run().ended == "--max-steps 3"
    assert make(tmp_path / "whole").run().ended == "all epochs are done"


FROZEN: dict[str, object] = {"init": "weights", "freeze": "encoder", "ema": 0.9}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_encoder_changes_only_from_the_stage_that_unfreezes_it(
    tmp_path: Path, optimizer: str
) -> None:
    options: dict[str, object] = {"optimizer": optimizer, "lr": 0.01, "epochs": (1, 1), **FROZEN}
    for name, unfreeze_stage in (("never", 0), ("second", 2)):
        out = tmp_path / name
        trainer = make(out, unfreeze_stage=unfreeze_stage, **options)
        before = {k: v.clone() for k, v in trainer.state.networks.model.state_dict().items()}
        trainer.run()
        first, second = sorted((out / "checkpoints").glob("*5.safetensors")), newest(out).state
        assert second["position"]["step"] == 10
        states = [read(first[0]).state, second]
        for stage, state in enumerate(states):
            for key in state["model"]:
                frozen = key.startswith(("body.0", "body.1")) and not (unfreeze_stage and stage)
                for kind in ("model", "average"):
                    assert torch.equal(state[kind][key], before[key]) == frozen, (key, stage)
        parameters = dict(trainer.state.networks.model.named_parameters())
        assert (parameters["body.0.weight"].grad is None) == (unfreeze_stage == 0)


# 5 steps an epoch; the second stage, from step 10 on, trains the encoder.
@pytest.mark.parametrize("stop_at", [3, 10, 12])
def test_a_run_with_a_frozen_encoder_resumes_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    make(tmp_path / "whole", unfreeze_stage=2, **FROZEN).run()
    make(tmp_path / "parts", unfreeze_stage=2, max_steps=stop_at, **FROZEN).run()
    second = make(tmp_path / "parts", unfreeze_stage=2, **FROZEN)
    second.load_state(newest(tmp_path / "parts").state)
    MetricsLog(tmp_path / "parts" / "metrics.jsonl").keep_before(second.at.epoch)
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("changed", "rates"),
    [
        ({"lr": 0.02}, [0.02]),
        ({"schedule": "constant"}, [0.1]),
        ({"schedule": "constant", "lr": 0.03}, [0.03]),
        ({"schedule": "cosine", "lr": 0.02}, [0.01 * (1 + math.cos(math.pi * 9 / 10))]),
    ],
)
def test_a_resumed_run_takes_another_rate_and_schedule(
    tmp_path: Path, changed: dict[str, object], rates: list[float]
) -> None:
    out = tmp_path / "run"
    make(out, res=(16,), epochs=(2,), max_steps=5).run()
    second = make(out, res=(16,), epochs=(2,), **changed)
    second.load_state(newest(out).state)
    second.run()
    assert [record["lr"] for record in figures(out)[1:]] == pytest.approx(rates)


class Broken(TinySource):
    """A training sample holds NaN from step ``at`` on."""

    def __init__(self, at: int, split: str = "train") -> None:
        super().__init__(40, 10)
        self._at, self._split = at, split

    def open(self, split: str, **options: Any) -> Any:
        loader = super().open(split, **options)
        if split == self._split:
            make, left = loader._make, [self._at]

            def made(*args: Any) -> Batch:
                batch = make(*args)
                left[0] -= 1
                return batch if left[0] >= 0 else batch._replace(bg=batch.bg * float("nan"))

            loader._make = made  # type: ignore[method-assign]
        return loader


def test_a_loss_that_is_no_number_ends_the_run_and_no_such_weights_are_saved(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    with pytest.raises(DivergedError) as caught:
        make(out, Broken(7), checkpoint_steps=1).run()
    message = str(caught.value)
    assert "lower --lr (now 0.1)" in message and "step-00000007.safetensors" in message
    assert newest(out).state["position"]["step"] == 7
    for tensor in newest(out).state["model"].values():
        assert torch.isfinite(tensor).all()


def test_a_validation_loss_that_is_no_number_ends_the_run_too(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="loss is nan"):
        make(tmp_path / "run", Broken(1, "val")).run()


@pytest.mark.parametrize(("after", "whole"), [(4, "is .*step-00000002"), (0, "no checkpoint")])
def test_a_full_disk_ends_the_run_and_names_the_last_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, whole: str
) -> None:
    out = tmp_path / "run"
    trainer = make(out, max_steps=4, checkpoint_steps=1)
    real, calls = os.fsync, [0]

    def full(file: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=f"disk is full; .*{whole}.*; free some space and continue"):
        trainer.run()


@pytest.mark.parametrize("last", [False, True])
def test_another_error_of_the_disk_ends_the_run_only_if_its_end_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: bool
) -> None:
    out = tmp_path / "run"
    trainer = make(out, max_steps=4, checkpoint_steps=1)
    real = Checkpoints.save

    def save(self: Checkpoints, step: int, state: dict[str, Any]) -> Path:
        if step == 2 or (last and step == 4):
            raise OSError(5, "Input/output error")
        return real(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    if last:
        with pytest.raises(RunError, match=r"at step 4, which is not saved; .*step-00000003"):
            trainer.run()
    else:
        assert trainer.run().steps == 4
    warning = "Warning: .*the checkpoint could not be written .*; training continues"
    assert len(re.findall(warning, capsys.readouterr().out)) == 1 + last


@pytest.mark.parametrize("name", ["metrics.jsonl", "epoch-000.png"])
def test_metrics_and_panels_end_the_run_on_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if name == "metrics.jsonl":
        monkeypatch.setattr(MetricsLog, "append", full)
    else:
        monkeypatch.setattr(run_folder.image_panels, "draw", full)
    with pytest.raises(RunError, match=f"{name} could not be written: the disk is full; the last"):
        make(tmp_path / "run").run()


def test_the_summary_names_weights_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_folder.save

    def told(name: str, *unwritten: str) -> tuple[str, object]:
        def save(path: Path, *rest: Any) -> None:
            if path.name in unwritten:
                raise OSError(5, "Input/output error")
            real(path, *rest)

        monkeypatch.setattr(run_folder, "save", save)
        summary = make(tmp_path / name, max_steps=1).run()
        return str(summary), json.loads(summary.to_json())["weights"]

    best, last = (f"{name}.safetensors" for name in ("best", "last"))
    for name, unwritten, expected in (("a", [], best), ("b", [best], last)):
        text, weights = told(name, *unwritten)
        assert weights == str(tmp_path / name / expected) and f"weights    {weights}" in text
    text, weights = told("c", best, last)
    assert weights is None and "weights    none were written" in text


def test_other_data_is_refused_on_resume(tmp_path: Path) -> None:
    make(tmp_path / "run", max_steps=2).run()
    other = make(tmp_path / "run", TinySource(40, 10, fingerprint="other"))
    with pytest.raises(DataError, match="was trained on other data"):
        other.load_state(newest(tmp_path / "run").state)


def test_an_empty_training_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'train' has no samples"):
        make(tmp_path / "run", TinySource(0, 10))


def test_every_loader_is_closed(tmp_path: Path) -> None:
    source = TinySource(40, 10)
    make(tmp_path / "run", source).run()
    assert len(source.opened) == 4 and all(loader.closed for loader in source.opened)


def test_a_stage_counts_its_epochs_on_so_that_no_order_repeats(tmp_path: Path) -> None:
    source = TinySource(40, 0)
    make(tmp_path / "run", source, panel_rows=0).run()
    train = [loader for loader in source.opened if loader._augment]
    assert [loader.epoch for loader in train] == [2, 3]


def test_gradients_of_several_batches_make_one_step_and_none_is_left_over(tmp_path: Path) -> None:
    options: dict[str, object] = {"model": "unet", "res": (16,), "epochs": (2,)}
    make(tmp_path / "one", TinySource(40, 10), batch=8, **options).run()
    make(tmp_path / "two", TinySource(40, 10), batch=4, grad_accum=2, **options).run()
    make(tmp_path / "odd", TinySource(40, 10), batch=4, grad_accum=4, **options).run()
    one, two, odd = (figures(tmp_path / name) for name in ("one", "two", "odd"))
    assert [r["step"] for r in one] == [r["step"] for r in two] == [5, 10]
    assert [r["step"] for r in odd] == [3, 6]  # 10 batches an epoch: 4, 4 and 2.
    for a, b in zip(one, two, strict=True):
        for name, value in a["val"].items():
            assert value == pytest.approx(b["val"][name], abs=1e-4), name


def test_a_batch_that_does_not_fit_ends_the_run_with_one_that_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TinyNet.forward

    def limited(self: TinyNet, x: torch.Tensor) -> Any:
        if x.shape[0] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, x)

    monkeypatch.setattr(TinyNet, "forward", limited)
    with pytest.raises(FitError, match=r"--batch 8: .* at 16 px; the largest that fits is 5"):
        make(tmp_path / "run").run()


def test_an_error_of_the_network_is_not_taken_for_missing_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(TinyNet, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        make(tmp_path / "run").run()


@pytest.mark.parametrize("steps", [20, 5])
def test_a_profile_is_written_even_of_a_short_run(
    tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run", profile=True, max_steps=steps, panel_rows=0).run()
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any("conv" in name for name in names)
    assert capsys.readouterr().out.count(f"{tmp_path / 'run' / 'trace.json'}: written") == 1


def test_norms_over_all_ranks_need_gpus(tmp_path: Path) -> None:
    config = settings(tmp_path / "run", sync_bn=True)
    world = World(rank=0, size=2)
    with pytest.raises(ConfigError, match="--sync-bn"):
        Trainer(config, TinySource(40, 10), world=world, make_model=TinyNet)


def test_norms_over_all_ranks_of_one_rank_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run", sync_bn=True, max_steps=1).run()
    assert capsys.readouterr().out.count("--sync-bn: has no effect with one rank") == 1


def test_a_network_that_cannot_be_compiled_is_told_from_one_that_is_wrong() -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    with pytest.raises(ConfigError, match=r"--compile yes: .*\(No working C\+\+ compiler") as told:
        with translate_compile_errors("yes"):
            raise InvalidCxxCompiler
    assert "\n" not in str(told.value) and "--resume --compile no" in str(told.value)
    with pytest.raises(RuntimeError, match="shapes"), translate_compile_errors("yes"):
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize(("accum", "ranks"), [(2, 1), (1, 2)])
def test_cuda_graphs_take_one_batch_a_step_on_one_gpu(accum: int, ranks: int) -> None:
    config = Config(
        compute=replace(Config().compute, compile="graphs"),
        optim=replace(Config().optim, grad_accum=accum),
    )
    asked = SimpleNamespace(
        _config=config, _device=torch.device("cuda"), _world=SimpleNamespace(size=ranks)
    )
    with pytest.raises(
        ConfigError, match=r"--compile graphs: supports one GPU and one batch per step only"
    ):
        WrappedModel._compiled(asked, torch.nn.Identity())


def test_cuda_graphs_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--compile graphs: .*use --device cuda, or"):
        make(tmp_path / "run", compile="graphs")


@pytest.mark.usefixtures("fp16_on_cpu")
def test_fp16_trains(tmp_path: Path) -> None:
    make(tmp_path / "run", precision="fp16", epochs=(1, 1), panel_rows=0).run()
    plain, half = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert half["res"] == 32 and half["train"]["loss"] < plain["train"]["loss"]


@pytest.mark.slow
def test_a_compiled_network_gives_the_figures_of_the_plain_one(tmp_path: Path) -> None:
    options: dict[str, object] = {"model": "unet", "res": (16,), "epochs": (1,), "panel_rows": 0}
    make(tmp_path / "plain", **options).run()
    make(tmp_path / "compiled", compile="yes", **options).run()
    for a, b in zip(figures(tmp_path / "plain"), figures(tmp_path / "compiled"), strict=True):
        for name, value in a["val"].items():
            assert value == pytest.approx(b["val"][name], abs=1e-3), name
