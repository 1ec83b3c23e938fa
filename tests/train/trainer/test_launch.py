"""What a run checks before it takes its folder, and what it leaves there if it cannot begin."""

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from shardline_samples import write_data_set
from shardline_tiny_run import TinyNet

from model.registry import create
from shardify.errors import DataError, ShardifyError
from train.checkpoint import checkpoint_file
from train.checkpoint.trained_model import read_weights
from train.cli import main
from train.config import Config
from train.distributed import World
from train.errors import ConfigError, TrainError
from train.optim.wrapped_model import WrappedModel
from train.report import run_report
from train.settings import from_toml, resolve, to_toml
from train.trainer.launch import configure, launch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data") / "data", train=24, val=4)


def settings(**values: object) -> Config:
    torch.set_num_threads(1)
    base = {"res": 16, "batch": 8, "device": "cpu", "threads": 1, "panel_rows": 0}
    return resolve(Config(), {**base, "tensorboard": False, "report": False, **values})


def start(config: Config, **options: Any) -> None:
    launch(config, make_model=TinyNet, **options)


def again(out: str, **values: object) -> Config:
    return configure({"out": out, **values}, file=None, resume=True)


def test_a_run_with_a_relative_data_set_is_resumed_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    out = tmp_path / "run"
    start(settings(shards="data", out=str(out), max_steps=1))
    assert from_toml(out / "config.toml").data.shards == str(data)
    assert read_weights(out / "last.safetensors").config.data.shards == str(data)
    monkeypatch.chdir(tmp_path)
    start(again("run", max_steps=2), resume=True)
    assert checkpoint_file.Checkpoints(out / "checkpoints", keep=9).newest() is not None
    assert (out / "checkpoints" / "step-00000002.safetensors").is_file()


def test_a_relative_path_of_an_older_version_is_resumed_where_the_run_began(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    out = tmp_path / "run"
    start(settings(shards="data", out=str(out), max_steps=1))
    relative = resolve(from_toml(out / "config.toml"), {"shards": "data"})
    (out / "config.toml").write_text(to_toml(relative))
    start(again(str(out), max_steps=2), resume=True)
    assert from_toml(out / "config.toml").data.shards == str(data)
    (out / "config.toml").write_text(to_toml(relative))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"stored as the relative path 'data'; .* with --shards"):
        start(again(str(out)), resume=True)


def test_a_data_set_that_is_gone_is_told_as_gone_and_may_be_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = functools.partial(run_report.load_trained, make_model=TinyNet)
    monkeypatch.setattr(run_report, "load_trained", load)
    moved, old, out = tmp_path / "moved", tmp_path / "old", tmp_path / "run"
    shutil.copytree(data, old)
    start(settings(shards=str(old), out=str(out), max_steps=1))
    old.rename(moved)
    for use in (lambda: start(again(str(out)), resume=True), lambda: run_report.report_run(out)):
        with pytest.raises(DataError) as caught:
            use()
        text = str(caught.value)
        assert text.startswith(f"{old}: no data set there; {out} was trained on it; restore it")
        assert "build it" not in text and "--shards" in text
    old.mkdir()  # An empty folder is no data set either.
    with pytest.raises(DataError, match="no data set there"):
        start(again(str(out)), resume=True)
    start(again(str(out), shards=str(moved), max_steps=2), resume=True)
    assert from_toml(out / "config.toml").data.shards == str(moved)


@pytest.mark.parametrize("model", ["resunet", "unet"])
def test_one_value_a_channel_of_a_batch_norm_is_refused_before_the_folder_is_taken(
    data: Path, tmp_path: Path, model: str
) -> None:
    out = tmp_path / "run"
    config = settings(shards=str(data), out=str(out), batch=1, res=(32, 16), model=model)
    with pytest.raises(ConfigError, match="--batch 1: at --res 16 a batch norm gets one value"):
        launch(config)
    assert not out.exists()


@pytest.mark.parametrize(
    ("values", "size"),
    [({"batch": 2}, 1), ({"res": 32}, 1), ({"sync_bn": True}, 2), ({}, 1)],
)
def test_more_values_a_channel_or_no_batch_norm_at_one_pixel_are_accepted(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, object], size: int
) -> None:
    monkeypatch.setattr(WrappedModel, "_distributed", lambda _, model: model)
    config = settings(**{"batch": 1, **values})
    networks = WrappedModel(
        config, world=World(size=size), device=CPU, make_model=create if values else TinyNet
    )
    assert networks.model.training
    for name, buffer in networks.model.named_buffers():
        assert not name.endswith("num_batches_tracked") or buffer == 0, name


def damage(data: Path) -> None:
    """Make all masks of the training split unreadable, in their headers."""
    for shard in data.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x89PNX"))


WRONG: dict[str, dict[str, object]] = {
    "loader": {"exclude": "nobody"},
    "samples": {"batch": 500},
    "warmup": {"schedule": "cosine", "warmup": 10_000},
    "device": {"device": "cuda:77"},
    "precision": {"precision": "fp16"},
    "init": {"init": "nothing"},
    "data": {"shards": "nowhere"},
    "damaged": {"tensorboard": True, "profile": True},
}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_before_the_first_step_leaves_nothing_behind(
    data: Path, tmp_path: Path, wrong: str, there: bool
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    if wrong == "damaged":
        damage(copy)
    out = tmp_path / "folder" / "run"
    if there:
        out.mkdir(parents=True)
    with pytest.raises((TrainError, ShardifyError)):
        start(settings(**{"shards": str(copy), "out": str(out), **WRONG[wrong]}))
    assert {path.name for path in tmp_path.iterdir()} == {"data", *(["folder"] if there else [])}
    if there:
        assert list(out.iterdir()) == []
        out.rmdir()
    start(settings(shards=str(data), out=str(out), max_steps=1))
    assert (out / "last.safetensors").is_file()


def test_files_of_others_and_an_earlier_config_stay_after_an_error(
    data: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, copy)
    damage(copy)
    config = settings(shards=str(copy), out=str(out), tensorboard=True)

    class Noted(TinyNet):
        def train(self, mode: bool = True) -> "Noted":
            if (out / "config.toml").exists():
                (out / "notes.txt").write_text("mine")
            return super().train(mode)

    with pytest.raises(DataError):
        launch(config, make_model=Noted)
    assert {path.name for path in out.iterdir()} == {"notes.txt"}
    (out / "notes.txt").unlink()
    (out / "config.toml").write_text(to_toml(config))  # As a kill before the first step leaves it.
    with pytest.raises(DataError):
        start(config, resume=True)
    assert {path.name for path in out.iterdir()} == {"config.toml"}


def test_fp16_on_a_cpu_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for command in ("run", "config"):
        flags = ["--shards", str(data), "--out", str(out), "--device", "cpu", "--precision", "fp16"]
        result = CliRunner().invoke(main, [command, *flags])
        assert result.exit_code == 2
        assert result.stderr == (
            "Error: --precision fp16: needs a GPU; this run is on a CPU; use --precision fp32 or "
            "bf16\n"
        )
    assert not out.exists()
