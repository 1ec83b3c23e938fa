from pathlib import Path
from typing import Any

import pytest
import torch
from shardline_tiny_run import TinyNet, make_source
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - imported once, not in a test.

from train.config import Config
from train.settings import resolve
from train.tracking import run_folder
from train.tracking.metrics_log import MetricsLog
from train.trainer.launch import launch
from train.trainer.trainer import Trainer


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows it is written."""


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.mark.parametrize("killed_after", ["log", "cut", "epoch"])
def test_no_step_is_there_twice_after_a_kill_and_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: str
) -> None:
    torch.set_num_threads(1)
    out = tmp_path / "run"
    values = {"out": str(out), "shards": "64:10", "res": (16,), "epochs": (3,), "batch": 8}
    values |= {"device": "cpu", "panel_rows": 0, "report": False}
    config = resolve(Config(), values)

    def go(**changed: object) -> None:
        resume = (out / "config.toml").exists()
        now = resolve(config, changed)
        launch(now, resume=resume, make_source=make_source, make_model=TinyNet)

    if killed_after == "cut":
        go(max_steps=12)  # The epoch that was cut is written, and written again at its end.
    else:
        # Either the second epoch is logged, but not in a checkpoint yet; or all is written.
        where = (run_folder.RunFolder, "check_writes") if killed_after == "log" else (
            Trainer, "_train_epoch"
        )  # fmt: skip
        real = getattr(*where)

        def kill(self: Any, *rest: object) -> object:
            folder = self if isinstance(self, run_folder.RunFolder) else self._out
            if len(MetricsLog(out / "metrics.jsonl").read()) == 2:
                folder.close = lambda: None
                raise Killed
            return real(self, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(*where, kill)
            with pytest.raises(Killed):
                go()
    go()
    steps = [record["step"] for record in MetricsLog(out / "metrics.jsonl").read()]
    assert steps == [8, 16, 24]
    for split in ("train", "val"):
        scalars = events(out / "tensorboard" / split)
        for tag in scalars.Tags()["scalars"]:
            assert [event.step for event in scalars.Scalars(tag)] == steps, tag
    whole = events(out / "tensorboard")
    for tag in whole.Tags()["scalars"]:
        found = [event.step for event in whole.Scalars(tag)]
        assert found == sorted(set(found)) and found[-1] == 24, tag
    texts = [event.step for event in whole.Tensors("settings/text_summary")]
    assert texts == sorted(set(texts))
