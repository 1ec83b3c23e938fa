"""A data set that lacks masks, depth or backgrounds: what is left is trained, judged and used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shardline_tiny_run import TinyNet, TinySource

from model.blocks import Prediction
from model.losses import Criterion
from model.registry import create
from shardify.errors import DataError
from train.checkpoint.checkpoint_file import Checkpoints
from train.checkpoint.trained_model import load_trained
from train.config import Config
from train.distributed import World
from train.errors import ConfigError
from train.evaluation.evaluate import evaluate_split
from train.evaluation.metrics import describe
from train.inference.export import export
from train.inference.input_pairs import find_pairs
from train.inference.predict import Predictor, predict_files
from train.optim.wrapped_model import WrappedModel
from train.report.compare import compare
from train.report.run_report import write_report
from train.settings import resolve
from train.tracking.console import Console
from train.tracking.image_panels import COLUMNS, GAP, SMALLEST
from train.tracking.metrics_log import MetricsLog
from train.tracking.run_folder_setup import prepare
from train.trainer.trainer import Trainer

CPU = torch.device("cpu")
ALL = frozenset({"bg", "fg_bg", "mask", "depth"})
LACKING = {"depth": "mask", "mask": "depth"}


def config(out: Path, **values: object) -> Config:
    base = {"out": str(out), "res": 16, "epochs": 2, "batch": 8, "lr": 0.1, "device": "cpu"}
    return resolve(Config(), {**base, "panel_rows": 2, "tensorboard": False, **values})


def source(*lacks: str) -> TinySource:
    return TinySource(40, 10, roles=ALL - set(lacks))


def train(out: Path, *lacks: str, **values: object) -> Path:
    torch.set_num_threads(1)
    prepare(out, config(out, **values), 0)
    Trainer(
        config(out, **values), source(*lacks), make_model=TinyNet, console=Console()
    ).run()  # fmt: skip
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on a data set without each of the roles."""
    folder = tmp_path_factory.mktemp("runs")
    return {role: train(folder / role, role) for role in ("depth", "mask", "bg")}


@pytest.mark.parametrize("lacking", LACKING)
def test_only_what_there_is_truth_for_is_trained_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    kept = LACKING[lacking]
    out = train(tmp_path / "run", lacking, deep_supervision=0.3, ema=0.5)
    said = capsys.readouterr().out
    assert said.count(f"this data set has no {lacking}: only the {kept} is trained\n") == 1
    assert ("IoU" in said, "RMSE" in said) == (kept == "mask", kept == "depth")
    for record in MetricsLog(out / "metrics.jsonl").read():
        for split in ("train", "val"):
            assert not any(lacking in name for name in record[split])
            weight = {"mask": 2.0, "depth": 1.0}[kept]
            assert record[split]["loss"] == pytest.approx(weight * record[split][f"loss_{kept}"])
    with Image.open(out / "panels" / "epoch-001.png") as panel:
        assert panel.width == (len(COLUMNS) - 2) * (SMALLEST + GAP) + GAP


def test_without_backgrounds_the_network_sees_fg_bg_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(tmp_path / "run", "bg")
    assert "this data set has no bg: only fg_bg is used as input\n" in capsys.readouterr().out
    trained = load_trained(out, make_model=TinyNet)
    fg_bg = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        bgs = torch.randn(2, 2, 3, 16, 16)
        one, other = (trained.model(torch.cat((bg, fg_bg), 1)) for bg in bgs)
    assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("samples", [40, 1])
def test_without_validation_a_run_is_judged_by_its_training_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], samples: int
) -> None:
    out, data = tmp_path / "run", TinySource(samples, 0)
    settings = config(out, batch=min(8, samples))
    prepare(out, settings, 0)
    Trainer(settings, data, make_model=TinyNet, console=Console()).run()
    says = "this data set has no validation samples: the training loss is used instead\n"
    assert capsys.readouterr().out.count(says) == 1
    records = MetricsLog(out / "metrics.jsonl").read()
    assert len(records) == 2 and all(record["val"] is None for record in records)
    trained = load_trained(out, make_model=TinyNet)
    page = write_report(out, data, out=tmp_path / "r.html", device=CPU, make_model=TinyNet)
    assert "Worst samples (train)" in page.read_text() and "tiny0" in page.read_text()
    with pytest.raises(DataError, match=r"^split 'val': has no samples; .* --split$"):
        evaluate_split(trained, data, split="val", res=16, batch=8, device=CPU)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("lacking", ["depth", "mask", "bg"])
def test_eval_report_and_export_know_what_is_missing(
    runs: dict[str, Path], tmp_path: Path, lacking: str
) -> None:
    run = runs[lacking]
    trained = load_trained(run, make_model=TinyNet)
    (record,) = (r for r in MetricsLog(run / "metrics.jsonl").read() if r["step"] == trained.step)
    for data in (source(lacking), source()):  # A data set that has more adds nothing.
        figures = evaluate_split(trained, data, split="val", res=16, batch=8, device=CPU)
        assert list(figures) == [*record["val"], "samples"]
        assert figures["loss"] == pytest.approx(record["val"]["loss"])
    assert len(describe(figures).splitlines()) == len(record["val"]) + 1
    page = write_report(
        run, source(lacking), out=tmp_path / "r.html", device=CPU, make_model=TinyNet
    ).read_text()
    assert ("Mask: IoU" in page and "Small and large" in page) == (lacking != "mask")
    assert ("Depth: RMSE" in page and "depth RMSE" in page) == (lacking != "depth")
    path = export(run, kind="torchscript", out=tmp_path / "net.pt", make_model=TinyNet)
    pictures = torch.rand(2, 1, 3, 32, 32)
    answer = torch.jit.load(str(path))(*(pictures if lacking != "bg" else pictures[1:]))
    assert len(answer) == (2 if lacking == "bg" else 1)


@pytest.mark.parametrize(
    ("lacking", "names"),
    [
        ("depth", ["x_mask.png", "x_overlay.png"]),
        ("mask", ["x_depth.png", "x_depth_color.png"]),
        ("bg", ["x_mask.png", "x_depth.png", "x_depth_color.png", "x_overlay.png"]),
    ],
)
def test_predict_writes_what_the_network_was_trained_for(
    runs: dict[str, Path], tmp_path: Path, lacking: str, names: list[str]
) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "x.png")
    predictor = Predictor(load_trained(runs[lacking], make_model=TinyNet), device=CPU)
    background = None if lacking == "bg" else tmp_path / "x.png"
    files = predict_files(predictor, find_pairs(background, tmp_path / "x.png"), tmp_path / "out")
    assert [file.name for file in files] == names
    if lacking != "bg":
        with pytest.raises(ConfigError, match="--bg: missing"):
            predict_files(predictor, find_pairs(None, tmp_path / "x.png"), tmp_path / "none")


def test_runs_on_other_roles_stand_side_by_side(runs: dict[str, Path]) -> None:
    text = str(compare([runs["depth"], runs["mask"]]))
    assert "mask_iou" in text and "depth_rmse" in text
    assert set(json.loads(compare([runs["depth"]]).to_json())["runs"][0]) >= {"mask_iou", "loss"}


def test_nothing_in_common_to_judge_by_is_refused(runs: dict[str, Path]) -> None:
    trained = load_trained(runs["mask"], make_model=TinyNet)
    with pytest.raises(DataError, match="was trained for depth, which this data set lacks"):
        evaluate_split(trained, source("depth"), split="val", res=16, batch=8, device=CPU)


def test_a_run_does_not_go_on_with_other_roles(runs: dict[str, Path], tmp_path: Path) -> None:
    stored = Checkpoints(runs["depth"] / "checkpoints", keep=9).newest()
    assert stored is not None
    other = Trainer(config(tmp_path / "run"), source(), make_model=TinyNet, console=Console())
    with pytest.raises(DataError, match="was trained on other data"):
        other.load_state(stored.state)


def test_a_weight_of_0_for_all_there_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--mask-weight 0: the data set has no other target"):
        Trainer(config(tmp_path, mask_weight=0.0), source("depth"), make_model=TinyNet)


@pytest.mark.parametrize("target", ["mask", "depth"])
def test_what_serves_the_missing_target_alone_rests(target: str) -> None:
    """The depth decoder feeds the mask's; the mask's feeds nothing."""
    torch.manual_seed(0)
    networks = WrappedModel(
        config(Path("run"), deep_supervision=0.5, ema=0.5), world=World(), device=CPU,
        make_model=create, targets=(target,),
    )  # fmt: skip
    rests = [name for name, p in networks.model.named_parameters() if not p.requires_grad]
    served = ("depth_head",) if target == "mask" else ("mask_head", "mask_up")
    names = [name for name, _ in networks.model.named_parameters()]
    assert rests == [name for name in names if name.startswith(served)]
    said = networks.training(torch.randn(2, 6, 32, 32))
    raws = [getattr(one, target) for one in (said.prediction, *said.coarse)]
    sum(raw.sum() for raw in raws).backward()
    assert all(p.grad is not None for p in networks.parameters)


def test_a_missing_targets_loss_is_nothing_and_not_computed() -> None:
    raw = Prediction(depth=torch.full((2, 1, 8, 8), float("nan")), mask=torch.zeros(2, 1, 8, 8))
    mask = torch.ones(2, 1, 8, 8)
    parts = Criterion(targets=("mask",))(raw, mask, torch.zeros_like(mask))
    assert float(parts.depth) == 0 and float(parts.total) == pytest.approx(2 * float(parts.mask))
    with pytest.raises(ValueError, match="targets"):
        Criterion(targets=())
