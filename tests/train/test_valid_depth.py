"""Depth with holes, from the shards to the figures: they do not count, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from shardline_samples import Images, write_data_set
from shardline_tiny_run import TinyNet

from shardify.loader.batch import Batch
from train.checkpoint.checkpoint_file import Checkpoints
from train.checkpoint.trained_model import Trained, load_trained
from train.cli import main
from train.config import Config
from train.data import ShardDataset
from train.distributed import World
from train.evaluation.evaluate import evaluate_split
from train.evaluation.per_sample import evaluate_samples, group_by_size
from train.report.run_report import write_report
from train.settings import resolve
from train.tracking.image_panels import HOLE
from train.tracking.metrics_log import MetricsLog
from train.trainer.launch import launch

CPU = torch.device("cpu")
RES = 32


def picture(number: int, *, share: float) -> Images:
    """A scene whose depth is its brightness; ``share`` of the depth are holes in blocks."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:RES, :RES] / RES
    gray = 0.5 + 0.3 * np.sin(rng.uniform(2, 7) * x + rng.uniform(0, 6)) * np.cos(5 * y)
    mask = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) < 0.25
    gray = np.where(mask, 0.95, gray)
    fg_bg = np.repeat(np.rint(255 * gray).astype(np.uint8)[..., None], 3, axis=2)
    depth = (60000 * gray).astype(np.uint16)
    blocks = np.random.default_rng([9, number]).random((RES // 4, RES // 4)) < share
    depth[blocks.repeat(4, 0).repeat(4, 1)] = 0
    if share and number % 11 == 0:
        depth[:] = 0
    return fg_bg, np.where(mask, 255, 0).astype(np.uint8), depth


def data_set(folder: Path, share: float) -> Path:
    return write_data_set(
        folder, train=64, val=15, images=lambda number: picture(number, share=share),
        invalid=0 if share else None,
    )  # fmt: skip


def train(shards: Path, out: Path, *, resume: bool = False, **values: Any) -> None:
    torch.set_num_threads(1)
    base = {"shards": str(shards), "out": str(out), "res": RES, "epochs": 8, "batch": 8}
    base |= {"device": "cpu", "threads": 1, "tensorboard": False, "report": False, "lr": 0.1}
    launch(resolve(Config(), {**base, **values}), make_model=TinyNet, resume=resume)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {"whole": data_set(folder / "whole", 0), "holes": data_set(folder / "holes", 0.3)}


@pytest.fixture(scope="module")
def runs(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, shards in sets.items():
        train(shards, folder / name)
    return {name: folder / name for name in sets}


def source(shards: Path, trained: Trained) -> ShardDataset:
    return ShardDataset(
        folder=shards, world=World(), device=CPU, res=RES, threads=1, trained=trained.stats
    )


def judged(run: Path, shards: Path) -> dict[str, float]:
    trained = load_trained(run / "last.safetensors", make_model=TinyNet)
    return evaluate_split(
        trained, source(shards, trained), split="val", res=RES, batch=4, device=CPU
    )


def by_hand(run: Path, shards: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and true depth and validity of the validation split: (N, R, R) each."""
    trained = load_trained(run / "last.safetensors", make_model=TinyNet)
    with torch.no_grad():
        loader = source(shards, trained).open("val", res=RES, batch=15, augment=False, seed=0)
        batch: Batch = next(iter(loader))
        loader.close()
        images = torch.cat((batch.bg, batch.fg_bg), 1)
        predicted = trained.criterion.activate(trained.model(images)).depth
    numbers = range(64, 79)
    true = np.stack([picture(n, share=0.3 if batch.valid else 0)[2] for n in numbers]) / 65535
    return predicted[:, 0].double().numpy(), true, true > 0


def test_a_run_with_holes_learns_the_depth_that_one_without_learns(
    runs: dict[str, Path], sets: dict[str, Path]
) -> None:
    for shards in sets.values():
        whole, holes = judged(runs["whole"], shards), judged(runs["holes"], shards)
        untrained = 0.2  # The depths' own deviation.
        assert whole["depth_rmse"] < 0.5 * untrained
        assert holes["depth_rmse"] < 1.25 * whole["depth_rmse"] + 0.005
        assert holes["mask_iou"] > whole["mask_iou"] - 0.05


@pytest.mark.parametrize("trained_on", ["whole", "holes"])
@pytest.mark.parametrize("judged_on", ["whole", "holes"])
def test_figures_are_those_computed_by_hand_on_either_data_set(
    runs: dict[str, Path], sets: dict[str, Path], trained_on: str, judged_on: str
) -> None:
    figures = judged(runs[trained_on], sets[judged_on])
    predicted, true, valid = by_hand(runs[trained_on], sets[judged_on])
    assert valid.all() == (judged_on == "whole")
    p, t = predicted[valid], true[valid]
    assert figures["depth_mae"] == pytest.approx(np.abs(p - t).mean(), rel=1e-4)
    assert figures["depth_rmse"] == pytest.approx(np.sqrt(((p - t) ** 2).mean()), rel=1e-4)
    assert figures["depth_absrel"] == pytest.approx((np.abs(p - t) / t).mean(), rel=1e-4)
    near = np.maximum(p / t, t / p) < 1.25
    assert figures["depth_delta1"] == pytest.approx(near.mean(), abs=2e-4)


def test_the_run_its_report_and_eval_give_the_same_figures(
    runs: dict[str, Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    record = MetricsLog(runs["holes"] / "metrics.jsonl").read()[-1]["val"]
    figures = judged(runs["holes"], sets["holes"])
    assert {name: figures[name] for name in record} == pytest.approx(record, rel=1e-4)

    trained = load_trained(runs["holes"] / "last.safetensors", make_model=TinyNet)
    data = source(sets["holes"], trained)
    loader = data.open("val", res=RES, batch=4, augment=False, seed=0)
    samples, panel, _ = evaluate_samples(
        trained, loader, device=CPU, worst=3, roles=data.roles
    )  # fmt: skip
    loader.close()
    predicted, true, valid = by_hand(runs["holes"], sets["holes"])
    wanted = [
        np.sqrt(((p - t)[v] ** 2).mean()) if v.any() else np.nan
        for p, t, v in zip(predicted, true, valid, strict=True)
    ]
    assert np.isnan(wanted).sum() == 2  # Of numbers 66 and 77.
    np.testing.assert_allclose([each.rmse for each in samples], wanted, rtol=1e-4)
    assert all(np.isfinite(group.rmse) for group in group_by_size(samples))
    assert panel is not None and panel.batch.valid["depth"].shape == (3, 1, RES, RES)
    page = write_report(
        runs["holes"], data, out=tmp_path / "r.html", device=CPU, make_model=TinyNet
    )
    assert "nan" not in page.read_text().split("Small and large", 1)[1].split("<img", 1)[0].lower()


def test_panels_of_a_run_show_holes(runs: dict[str, Path]) -> None:
    def holes(run: Path) -> int:
        with Image.open(run / "panels" / "epoch-000.png") as image:
            return int((np.asarray(image) == HOLE).all(axis=2).sum())

    assert holes(runs["holes"]) > 500
    assert holes(runs["whole"]) == 0


@pytest.mark.parametrize(
    "options", [{}, {"loss": "ssim"}, {"deep_supervision": 0.3, "loss": "bce"}]
)
def test_a_run_with_holes_resumes_bit_for_bit(
    sets: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    base = {"epochs": 2, "keep": 99, "panel_rows": 0, **options}
    train(sets["holes"], tmp_path / "once", **base)
    train(sets["holes"], tmp_path / "parts", max_steps=3, **base)
    for stop in (11, 0):
        train(sets["holes"], tmp_path / "parts", resume=True, max_steps=stop, **base)
    states = [
        Checkpoints(tmp_path / name / "checkpoints", keep=99).newest() for name in ("once", "parts")
    ]
    assert states[0] is not None and states[1] is not None
    assert states[0].state["position"] == states[1].state["position"]
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("once", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    records = [MetricsLog(tmp_path / name / "metrics.jsonl").read() for name in ("once", "parts")]
    for mine, theirs in zip(*records, strict=True):
        assert all(mine[key] == theirs[key] for key in ("step", "lr", "train", "val"))
        assert np.isfinite(mine["train"]["loss"])


def test_eval_says_that_depth_has_another_scale(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "train.evaluation.evaluate.load_trained",
        lambda path: load_trained(path, make_model=TinyNet),
    )
    for name, scale, unit in (("mm", 1.0, "mm"), ("m", 1000.0, "m")):
        copy = tmp_path / name
        copy.mkdir()
        for file in sets["holes"].iterdir():
            (copy / file.name).symlink_to(file)
        document = json.loads((copy / "manifest.json").read_text())
        document["roles"]["depth"] |= {"scale": scale, "unit": unit}
        (copy / "manifest.json").unlink()
        (copy / "manifest.json").write_text(json.dumps(document))
    train(tmp_path / "mm", tmp_path / "run", max_steps=1, panel_rows=0)
    options = ["--device", "cpu", "--threads", "1", "--json"]
    same = CliRunner().invoke(
        main, ["eval", str(tmp_path / "run"), "--shards", str(tmp_path / "mm"), *options]
    )
    assert same.exit_code == 0 and "depth has" not in same.stderr
    other = CliRunner().invoke(
        main, ["eval", str(tmp_path / "run"), "--shards", str(tmp_path / "m"), *options]
    )
    assert "depth has 16 bits, 1000 steps to 1 m; the network's training data had" in other.stderr
