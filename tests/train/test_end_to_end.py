"""Real photographs, the real loader and networks: what the tiny stand-ins cannot show."""

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from shardline_tiny_run import TinyNet

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.errors import DataError
from train.checkpoint.checkpoint_file import Checkpoints
from train.checkpoint.trained_model import load_trained
from train.cli import main
from train.config import Config
from train.data import ShardDataset
from train.distributed import World
from train.inference.input_pairs import find_pairs
from train.inference.predict import Predictor, read_image
from train.optim.criterion import make_criterion
from train.settings import resolve
from train.tracking.metrics_log import MetricsLog
from train.trainer.launch import launch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def zipped(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four backgrounds of the photographs and what stands on them: some 80 samples."""
    path = tmp_path_factory.mktemp("zip") / "small.zip"
    wanted = [f"bg_{number:03d}" for number in (3, 21, 40, 77)]
    parks = [name.replace("bg_", "park") for name in wanted]
    with zipfile.ZipFile(photos) as whole, zipfile.ZipFile(path, "w") as part:
        for info in whole.infolist():
            name = info.filename
            if any(f"/{key}" in f"/{name}" and name.endswith("g") for key in wanted + parks):
                part.writestr(info, whole.read(info))
    return path


@pytest.fixture(scope="module")
def shards(zipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    build([zipped], out, BuildOptions(val=0.25, workers=1))
    return out


def unpack(zipped: Path, folder: Path) -> Path:
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(folder)
    return folder / "data_all"


def call(*arguments: object) -> Any:
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResUNet after three steps."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = ["--res", 32, "--batch", 4, "--max-steps", 3, "--device", "cpu", "--threads", 1]
    call("run", "--shards", shards, *options, "--out", out, "--json")
    return out


def test_a_real_network_trains_on_photographs_and_is_judged_alike(
    shards: Path, trained: Path
) -> None:
    (record,) = MetricsLog(trained / "metrics.jsonl").read()
    assert record["step"] == 3 and 0 < record["val"]["loss"] < 3
    assert (trained / "report.html").stat().st_size > 10_000
    assert any((trained / "tensorboard").iterdir())
    with Image.open(trained / "panels" / "epoch-000.png") as panel:
        assert panel.size[0] > 500
    last = trained / "last.safetensors"
    figures = json.loads(call("eval", last, "--shards", shards, "--threads", 1, "--json").stdout)
    for name, value in record["val"].items():
        assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    text = call("eval", trained, "--shards", shards, "--split", "train", "--res", 16).stdout
    assert "mask_iou" in text


def test_predict_writes_four_files_a_photograph(
    zipped: Path, trained: Path, tmp_path: Path
) -> None:
    unpacked = unpack(zipped, tmp_path)
    jobs = find_pairs(unpacked / "bg", unpacked / "fg_bg" / "bg_021")
    assert {job.bg.stem for job in jobs} == {"park021"} and len(jobs) > 5
    folders = ["--bg", unpacked / "bg", "--fg-bg", unpacked / "fg_bg" / "bg_021"]
    call("predict", trained, *folders, "--out", tmp_path / "maps", "--bits", "16")
    assert len(list((tmp_path / "maps").iterdir())) == 4 * len(jobs)
    one = jobs[0].fg_bg
    for kind in ("mask", "depth", "depth_color", "overlay"):
        with (
            Image.open(one) as original,
            Image.open(tmp_path / "maps" / f"{one.stem}_{kind}.png") as picture,
        ):
            assert picture.size == original.size


@pytest.fixture
def dark_pictures(tmp_path: Path) -> Path:
    """Another data set, of dark pictures: 8 samples of 32x32 pixels on two backgrounds."""
    random = np.random.default_rng(5)
    folder = tmp_path / "dark"
    for role in ("bg", "fg_bg", "mask", "depth"):
        (folder / role).mkdir(parents=True)
    for number in range(2):
        scene = random.integers(0, 60, (32, 32, 3), np.uint8)
        Image.fromarray(scene).save(folder / "bg" / f"{number}.png")
        for place in range(4):
            name, corner = f"bg_{number}_{place}.png", slice(4 * place, 4 * place + 12)
            mask, pasted = np.zeros((32, 32), np.uint8), scene.copy()
            mask[corner, corner] = 255
            pasted[corner, corner] = random.integers(30, 90, 3)
            Image.fromarray(pasted).save(folder / "fg_bg" / name)
            Image.fromarray(mask).save(folder / "mask" / name)
            depth = random.integers(0, 256, (32, 32), np.uint8)
            Image.fromarray(depth).save(folder / "depth" / name)
    return folder


def test_eval_on_another_data_set_equals_the_figures_of_predicted_maps(
    dark_pictures: Path, trained: Path, tmp_path: Path
) -> None:
    build([dark_pictures], tmp_path / "out", BuildOptions(val=0.5, workers=1))
    options = [
        "--shards",
        tmp_path / "out",
        "--split",
        "train",
        "--batch",
        4,
        "--threads",
        1,
        "--json",
    ]
    result = call("eval", trained, *options)
    assert "fg_bg has mean / deviation" in result.stderr
    figures = json.loads(result.stdout)

    predictor = Predictor(load_trained(trained), device=CPU)
    keys = set[str]()
    for shard in (tmp_path / "out").glob("train-*.tar"):
        with tarfile.open(shard) as tar:
            keys |= {name.split(".")[0] for name in tar.getnames()}
    errors, both, either = [], 0, 0
    for job in find_pairs(dark_pictures / "bg", dark_pictures / "fg_bg"):
        if job.fg_bg.stem not in keys:
            continue
        (maps,) = predictor([(read_image(job.bg), read_image(job.fg_bg))])
        with Image.open(dark_pictures / "mask" / job.fg_bg.name) as mask:
            wanted = np.asarray(mask) > 0
        with Image.open(dark_pictures / "depth" / job.fg_bg.name) as depth:
            errors.append(np.abs(maps.depth - np.asarray(depth) / 255).mean())
        both += int((wanted & (maps.mask > 0.5)).sum())
        either += int((wanted | (maps.mask > 0.5)).sum())
    assert len(errors) == figures["samples"] == 4
    assert figures["depth_mae"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert figures["mask_iou"] == pytest.approx(both / either, abs=1e-3)


def test_pictures_reach_the_network_as_the_loader_brings_them(
    zipped: Path, shards: Path, trained: Path, tmp_path: Path
) -> None:
    from shardify.loader.loader import Loader

    unpacked = unpack(zipped, tmp_path)
    jobs = {job.fg_bg.stem: job for job in find_pairs(unpacked / "bg", unpacked / "fg_bg")}
    predictor = Predictor(load_trained(trained), device=CPU)
    with Loader(shards, split="val", res=32, batch_size=4, augment=False, threads=1) as loader:
        batch = next(iter(loader))
        keys = loader.keys(loader.samples_of(0, 0))
    assert len(keys) == 4
    for row, key in enumerate(keys):
        (job,) = (jobs[stem] for stem in jobs if key.endswith(stem))
        picture, background = read_image(job.fg_bg), read_image(job.bg)
        size = picture.shape[:2]
        for mine, theirs, role in (
            (predictor._input(picture, "fg_bg", size), batch.fg_bg, "fg_bg"),
            (predictor._input(background, "bg", size), batch.bg, "bg"),
        ):
            # Decoders and the antialiasing filters differ by a level or two of 255.
            levels = 255 * 0.22 * (mine[0] - theirs[row]).abs()
            assert float(levels.mean()) < 1.5, (key, role)


def test_a_run_on_the_real_loader_resumes_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def train(name: str, resume: bool = False, **values: object) -> None:
        base = {"shards": str(shards), "out": str(tmp_path / name), "res": (16, 32)}
        base |= {"epochs": (2, 1), "batch": 8, "device": "cpu", "threads": 1, "panel_rows": 0}
        base |= {"tensorboard": False, "report": False}
        config = resolve(Config(), {**base, "keep": 99, **values})
        launch(config, make_model=TinyNet, resume=resume)

    train("whole")
    steps = MetricsLog(tmp_path / "whole" / "metrics.jsonl").read()[0]["step"]
    assert steps >= 5
    train("parts", max_steps=2)
    for stop in (steps + 3, 2 * steps, 2 * steps + 2, 0):
        train("parts", resume=True, max_steps=stop)
    folders = [tmp_path / name for name in ("whole", "parts")]
    whole, parts = (Checkpoints(out / "checkpoints", keep=99).newest() for out in folders)
    assert whole is not None and parts is not None
    for one, other in zip(
        whole.state["optimizer"]["state"].values(),
        parts.state["optimizer"]["state"].values(),
        strict=True,
    ):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert whole.state["position"] == parts.state["position"]
    assert whole.state["lr"] == parts.state["lr"] and whole.state["loader"] == parts.state["loader"]
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    records = [MetricsLog(out / "metrics.jsonl").read() for out in folders]
    for mine, theirs in zip(*records, strict=True):
        assert all(mine[key] == theirs[key] for key in ("epoch", "step", "lr", "train", "val"))


@pytest.mark.parametrize("changed", [{"val": 0.4}, {"seed": 1}, {"group_by": "none"}])
def test_data_that_are_split_otherwise_are_refused_on_resume(
    zipped: Path, shards: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    other = tmp_path / "other"
    options = json.loads((shards / "manifest.json").read_text())["options"]
    same = {name: options[name] for name in ("val", "seed", "group_by")}
    build([zipped], other, BuildOptions(**{**same, "workers": 1, **changed}))
    base = {"out": str(tmp_path / "run"), "res": 16, "batch": 8, "device": "cpu", "threads": 1}
    base |= {"tensorboard": False, "report": False}
    config = resolve(Config(), {**base, "shards": str(shards), "max_steps": 2, "panel_rows": 0})
    launch(config, make_model=TinyNet)
    with pytest.raises(DataError, match="trained on other data"):
        launch(resolve(config, {"shards": str(other)}), make_model=TinyNet, resume=True)


@pytest.mark.parametrize("gone", [("fg_bg",), ("mask", "depth")])
def test_missing_roles_are_named_before_anything_is_written(
    shards: Path, tmp_path: Path, gone: tuple[str, ...]
) -> None:
    document = json.loads((shards / "manifest.json").read_text())
    for role in gone:
        del document["roles"][role]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    there = ", ".join(sorted(document["roles"]))
    with pytest.raises(DataError, match=f"has the roles {there}; training needs fg_bg, and mask"):
        ShardDataset(folder=tmp_path, world=World(), device=CPU, res=32)


def test_a_split_smaller_than_a_batch_is_refused(shards: Path, tmp_path: Path) -> None:
    base = {"shards": str(shards), "out": str(tmp_path / "run"), "res": 16, "batch": 5000}
    with pytest.raises(DataError) as caught:
        launch(resolve(Config(), {**base, "device": "cpu"}), make_model=TinyNet)
    assert "\n" not in str(caught.value) and "5000" in str(caught.value)


def test_criterion_of_the_settings_is_the_models_default() -> None:
    from model.losses import Criterion

    assert make_criterion(Config().loss) == Criterion()
