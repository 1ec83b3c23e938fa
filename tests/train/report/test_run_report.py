import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from shardline_browser import screenshot
from shardline_tiny_run import TinyNet, TinySource, make_source
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - imported once, not in a test.

from shardify.errors import DataError
from train.checkpoint.checkpoint_file import load, save
from train.checkpoint.trained_model import load_trained
from train.cli import main
from train.config import Config
from train.errors import CheckpointError, RunError
from train.evaluation.evaluate import evaluate_split
from train.evaluation.metrics import FIGURES
from train.evaluation.per_sample import SampleMetrics, evaluate_samples, group_by_size
from train.report.charts import COLOURS, chart
from train.report.compare import compare
from train.report.run_report import write_report
from train.settings import resolve
from train.tracking.metrics_log import MetricsLog
from train.trainer.launch import launch
from train.trainer.trainer import Trainer

CPU = torch.device("cpu")


def train(out: Path, **values: object) -> Path:
    torch.set_num_threads(1)
    base = {"out": str(out), "res": (16, 32), "epochs": (6, 2), "batch": 8, "lr": 0.1}
    out.mkdir(exist_ok=True)
    config = resolve(Config(), {**base, "device": "cpu", "panel_rows": 2, **values})
    from train.tracking.run_folder_setup import prepare

    prepare(out, config, 0)
    Trainer(config, TinySource(64, 21), make_model=TinyNet).run()
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "first")


def test_samples_together_make_the_figures_of_the_split(run: Path) -> None:
    trained = load_trained(run, make_model=TinyNet)
    loader = TinySource(64, 21).open("val", res=32, batch=8, augment=False, seed=0)
    fares, rows, worst = evaluate_samples(trained, loader, device=CPU, worst=4)
    figures = evaluate_split(trained, TinySource(64, 21), split="val", res=32, batch=8, device=CPU)
    assert [one.key for one in fares] == [f"tiny{100_000 + i:06d}" for i in range(21)]
    hit, false, missed = (sum(getattr(f, n) for f in fares) for n in ("hit", "false", "missed"))
    assert hit / (hit + false + missed) == pytest.approx(figures["mask_iou"], rel=1e-6)
    squares = sum(one.rmse**2 for one in fares) / len(fares)
    assert squares**0.5 == pytest.approx(figures["depth_rmse"], rel=1e-6)
    assert worst == sorted(fares, key=lambda one: (one.iou, -one.rmse))[:4]
    assert rows is not None and rows.mask.shape == (4, 1, 32, 32)
    for row, one in enumerate(worst):  # The picture is that of the figures beside it.
        assert float(rows.batch.mask[row].mean()) == pytest.approx(one.area, rel=1e-6)


def test_bands_are_of_equal_number_from_small_to_large() -> None:
    fares = [
        SampleMetrics(key=str(i), area=i / 100, hit=3.0 * i, false=1.0, missed=float(i), rmse=0.1)
        for i in range(9)
    ]
    found = group_by_size(fares)
    assert [band.samples for band in found] == [2, 2, 2, 2]  # One has no object.
    assert (found[0].low, found[-1].high) == (0.01, 0.08)
    assert found[0].recall == pytest.approx(0.75) and found[0].precision == pytest.approx(9 / 11)
    assert [band.precision for band in found] == sorted(band.precision for band in found)
    assert group_by_size([]) == []


def test_a_chart_shows_every_point_and_leaves_gaps() -> None:
    text = chart("Loss <x>", {"train": [(0, 1.0), (1, 0.5)], "val": [(0, None), (1, float("nan"))]})
    assert text.count("<circle") == 2 and "Loss &lt;x&gt;" in text
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', text)]
    assert heights[0] < heights[1]  # A larger value stands higher.
    assert "no data" in chart("empty", {"a": []})
    assert chart("one", {"a": [(3, 2.0)]}).count("<circle") == 1


def test_a_charts_lines_are_told_apart_by_colour_and_changes_are_marked() -> None:
    text = chart("IoU", {"train": [(0, 1), (9, 2)], "val": [(0, 2), (9, 1)]}, marks={4.5: "<64"})
    for name in ("train", "val"):
        (colour,) = re.findall(rf'style="fill: (#\w+)">{name}</text>', text)
        assert f'stroke="{colour}"' in text
    marked = r'x1="([\d.]+)" x2="\1" y1="\d+" y2="\d+" class="mark"'
    (at,) = map(float, re.findall(marked, text))
    ends = [float(x) for x in re.findall(r'cx="([\d.]+)"', text)]
    assert at == pytest.approx((min(ends) + max(ends)) / 2, abs=0.1) and "&lt;64</text>" in text


def test_a_report_stands_alone_and_shows_everything(run: Path, tmp_path: Path) -> None:
    path = write_report(
        run, TinySource(64, 21), out=tmp_path / "r.html", device=CPU, make_model=TinyNet
    )
    page = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/jpeg;base64,") == 8 + 1  # The panels, and the worst.
    assert page.count("<svg") == 8
    last = MetricsLog(run / "metrics.jsonl").read()[-1]
    for name, what in FIGURES.items():
        assert what.replace("&", "&amp;").replace("<", "&lt;").replace("|", "|") in page
        assert f"{last['val'][name]:.4f}" in page
    assert len(re.findall(r"<th>tiny1000\d\d</th>", page)) == 8
    assert "[data]" in page and "res = [16, 32]" in page
    assert page.count(">32 px</text>") == 8  # Every chart tells where the resolution changes.


def test_a_browser_shows_the_report(run: Path, tmp_path: Path) -> None:
    page = write_report(
        run, TinySource(64, 21), out=tmp_path / "r.html", device=CPU, make_model=TinyNet
    )
    shown = screenshot(page, tmp_path, height=1500)
    for colour in COLOURS[:2]:  # The curves of both splits.
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (shown == wanted).all(axis=2).sum() > 200, colour


def test_without_a_run_or_weights_there_is_no_report(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl is missing or empty"):
        write_report(tmp_path, TinySource(), device=CPU, make_model=TinyNet)
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    with pytest.raises(CheckpointError, match=r"no best\.safetensors"):
        write_report(tmp_path, TinySource(), device=CPU, make_model=TinyNet)


def test_what_is_damaged_in_a_run_costs_its_report_no_more_than_that(
    run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "panels" / "epoch-000.png").write_bytes(b"no picture")
    cut = (copy / "panels" / "epoch-001.png").read_bytes()
    (copy / "panels" / "epoch-001.png").write_bytes(cut[: len(cut) // 2])
    (copy / "config.toml").write_bytes(b"[data]\nshards = '\xff'\n")
    path = write_report(copy, TinySource(64, 21), device=CPU, make_model=TinyNet)
    page = path.read_text()
    assert page.count("cannot be read: it is damaged, or not an image") == 2
    assert page.count("data:image/jpeg;base64,") == 6 + 1
    assert "shards = &#x27;\ufffd&#x27;" in page


def test_without_room_for_a_picture_the_report_is_one_line_and_the_run_ends_well(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.report.run_report.tempfile.TemporaryDirectory", full)
    with pytest.raises(
        RunError, match=r"the image of the worst samples cannot be written .*TMPDIR"
    ):
        write_report(run, TinySource(64, 21), device=CPU, make_model=TinyNet)
    flags = {"out": str(tmp_path / "run"), "res": 16, "epochs": 1, "batch": 8, "device": "cpu"}
    for raised in (full, _undecodable):
        monkeypatch.setattr("train.report.run_report.tempfile.TemporaryDirectory", raised)
        config = resolve(Config(), {**flags, "out": str(tmp_path / raised.__name__)})
        launch(config, make_source=make_source, make_model=TinyNet)
        assert "retry with `train report" in capsys.readouterr().out


def _undecodable(*_: object, **__: object) -> None:
    raise DataError("a sample cannot be decoded")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("{}", "no valid config"),
        ("no JSON", "no valid JSON object"),
        ("[1]", "no valid JSON object"),
        ("[" * 100_000, "no valid JSON object"),
        ({"mean": None}, "no valid mean"),
        ({"mean": {"bg": [0, 0, 0]}}, "no valid mean"),
        ({"std": {"bg": [0, 0, 0], "fg_bg": "abc"}}, "no valid std"),
        ({"res": "64"}, "no valid res"),
        ({"config": 3}, "no valid config"),
        ({"roles": []}, "no valid roles"),
    ],
)
def test_metadata_that_a_run_did_not_write_is_one_line(
    run: Path, tmp_path: Path, change: str | dict[str, object], says: str
) -> None:
    tensors, metadata = load(run / "best.safetensors")
    text = metadata["shardline"]
    text = change if isinstance(change, str) else json.dumps(json.loads(text) | change)
    path = tmp_path / "theirs.safetensors"
    save(path, tensors, {"shardline": text})
    with pytest.raises(CheckpointError, match=f"theirs.safetensors: the metadata has {says}; "):
        load_trained(path, make_model=TinyNet)


def test_tensorboard_gets_figures_panels_and_settings(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    records = MetricsLog(run / "metrics.jsonl").read()
    tags = events.Tags()
    assert {"run/lr", "run/samples_per_s", "run/data_wait"} <= set(tags["scalars"])
    # TensorBoard draws a name in one chart, with a line for each folder.
    for split in ("train", "val"):
        figures = EventAccumulator(str(run / "tensorboard" / split))
        figures.Reload()
        assert [(event.step, event.value) for event in figures.Scalars("mask/iou")] == [
            (r["step"], pytest.approx(r[split]["mask_iou"], rel=1e-6)) for r in records
        ]
        assert "loss/total" in figures.Tags()["scalars"]
    assert len(events.Images("panel")) == len(records)
    assert any("settings" in tag for tag in tags["tensors"])


def test_runs_are_compared_by_what_differs_and_by_their_best_epoch(
    run: Path, tmp_path: Path
) -> None:
    other = train(tmp_path / "other", lr=0.01, seed=5, tensorboard=False)
    result = CliRunner().invoke(main, ["compare", str(run), str(other), "--json"])
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["runs"]
    assert first["settings"] == {"optim.lr": 0.1, "run.seed": 0, "run.tensorboard": True}
    assert second["settings"] == {"optim.lr": 0.01, "run.seed": 5, "run.tensorboard": False}
    records = MetricsLog(run / "metrics.jsonl").read()[6:]
    best = min(records, key=lambda record: record["val"]["loss"])
    assert first["mask_iou"] == best["val"]["mask_iou"] and first["res"] == 32
    table = str(compare([run, train(tmp_path / "small", res=(32,), epochs=(1,))]))
    assert re.search(r"^data\.res +16,32 +32$", table, re.M)
    told = json.loads(compare([run, tmp_path / "small"]).to_json())
    assert [each["settings"]["data.res"] for each in told["runs"]] == [[16, 32], [32]]
    table = str(compare([run, other]))
    assert "optim.lr" in table and "mask_iou" in table and len(set(map(len, table.split()))) > 1


def test_a_record_without_its_figures_is_named_by_its_line(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 8}\n')
    for command in (["compare", str(run), str(copy)], ["report", str(copy)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
        if command[0] == "compare":  # The report's networks are those that the program knows.
            assert "metrics.jsonl: line 9: step is missing or not a number" in result.stderr
    with pytest.raises(RunError, match="line 9: step is missing or not a number"):
        write_report(copy, TinySource(64, 21), device=CPU, make_model=TinyNet)


def test_what_is_no_run_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["compare", str(run), str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}: not a run with a finished epoch")
