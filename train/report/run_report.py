"""A run as one HTML page that stands alone: curves, panels, the worst samples, small and large.

Reads what a run left and judges its network once more, sample by sample; it trains nothing. All
pictures lie inside the page, so it can be sent by mail.
"""

import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model.registry import MakeModel, create
from shardify import html
from shardify.storage.atomic_write import write_text
from train.checkpoint.trained_model import load_trained
from train.data import Dataset, ShardDataset
from train.distributed import World
from train.errors import RunError
from train.evaluation.evaluate import common_targets
from train.evaluation.metrics import FIGURES
from train.evaluation.per_sample import SampleMetrics, SizeGroup, evaluate_samples, group_by_size
from train.optim.compute import pick_device
from train.report.charts import chart
from train.tracking.image_panels import draw
from train.tracking.metrics_log import MetricsLog

__all__ = ["report_of", "write_report"]

WORST = 8
WORST_BY = {"mask": "IoU of the mask, lowest", "depth": "RMSE of the depth, highest"}
PANELS = 8
"""Panels shown at most, evenly spread over the epochs."""

CHARTS = {
    "Total loss": "loss",
    "Mask: IoU": "mask_iou",
    "Mask: Dice": "mask_dice",
    "Depth: RMSE": "depth_rmse",
    "Depth: δ<1.25": "depth_delta1",
}
SPEEDS = {"Learning rate": "lr", "Samples/s": "samples_per_s", "Data-wait, share": "data_wait"}

STYLE = """
td, th + th { text-align: right } th { font-weight: normal }
tr:first-child th { font-weight: 600; border-bottom: 1px solid #999 }
img { max-width: 100%; display: block; margin: .3em 0 1.2em }
svg { margin: 0 12px 12px 0 } svg text { font: 12px system-ui, sans-serif; fill: #444 }
svg .title { font-weight: 600 } svg .end { text-anchor: end } svg line { stroke: #e2e2e2 }
svg line.mark { stroke: #999; stroke-dasharray: 3 3 }
svg polyline { fill: none; stroke-width: 1.8 } pre { background: #f5f5f5; padding: 1em }
"""


def report_of(
    run: Path, *, shards: str | None = None, out: Path | None = None, device: str = "auto"
) -> Path:
    """Write the report of a run, from its folder alone.

    Args:
        run: The run's folder.
        shards: Where the data set lies now; where the run read it by default.
        out: The page; ``run/report.html`` by default.
        device: Where to judge the network.

    Raises:
        TrainError: There is no run, no network, or no data set.
    """
    trained = load_trained(run)
    where = pick_device(device, World())
    source = ShardDataset(
        shards or trained.config.data.shards, world=World(), device=where, res=trained.res
    )
    return write_report(run, source, out=out, device=where)


def write_report(
    run: Path,
    source: Dataset,
    *,
    out: Path | None = None,
    device: torch.device,
    make_model: MakeModel = create,
) -> Path:
    """Write the report of a run on a data set that is open.

    Args:
        run: The run's folder: records, panels and weights.
        source: The data set, as one rank sees it alone.
        out: The page; ``run/report.html`` by default.
        device: Where to judge the network.
        make_model: Makes the network that the weights name.

    Raises:
        RunError: There are no records, or the page cannot be written.
        CheckpointError: There are no weights.
    """
    records = MetricsLog(run / "metrics.jsonl").figures()
    if not records:
        raise RunError(f"{run}: no metrics.jsonl, or an empty one; train first")
    trained = load_trained(run, make_model=make_model)
    targets = common_targets(trained, source)
    split = "val" if source.samples("val") else "train"
    batch = min(16, source.samples(split))  # A full one, also of a small training split.
    loader = source.open(split, res=trained.res, batch=batch, augment=False, seed=0)
    try:
        fares, rows, worst = evaluate_samples(
            trained, loader, device=device, precision="auto", worst=WORST, roles=source.roles
        )
    finally:
        loader.close()
    picture = ""
    if rows is not None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "worst.png"
                draw(path, rows, mean=trained.mean, std=trained.std)
                picture = _image(path)
        except OSError as error:
            raise RunError(
                f"{run}: no room to draw its worst samples ({error}); let TMPDIR name a folder "
                "with some"
            ) from error
    path = out or run / "report.html"
    body = [
        _summary(records, trained.path.name, trained.step),
        "<h2>Curves</h2>",
        _curves(records),
        "<h2>Panels</h2><p>The same samples after each epoch shown.</p>",
        *_panels(run / "panels"),
        f"<h2>Worst samples ({split})</h2><p>By {WORST_BY[targets[0]]} first.</p>",
        _worst(worst, targets),
        picture,
        _sizes(group_by_size(fares), targets) if "mask" in targets else "",
        f"<h2>Settings</h2><pre>{escape(_text(run / 'config.toml'))}</pre>",
    ]
    try:
        write_text(path, html.page(run.resolve().name, body, style=STYLE))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error})") from error
    return path


def _summary(records: Sequence[Mapping[str, Any]], weights: str, step: int) -> str:
    """The last epoch's figures, and how fast it was."""
    last = records[-1]
    rows = [
        (
            _named(name, what),
            *(_number((last[split] or {}).get(name)) for split in ("train", "val")),
        )
        for name, what in FIGURES.items()
        if name in last["train"]
    ]
    epochs = f"{len(records)} epoch{'s' * (len(records) > 1)}"
    return (
        f"<p>{epochs}, {last['step']} steps, last at {last['res']} px; "
        f"{last['samples_per_s']:.1f} samples/s, data-wait {100 * last['data_wait']:.1f} % of the "
        f"step time, {last['peak_memory_mb']:.0f} MB at the peak. Samples below are judged by "
        f"{escape(weights)} (step {step}).</p>" + html.table(rows, ("last epoch", "train", "val"))
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    # Between two epochs: figures at two resolutions do not compare.
    changes = {
        after["epoch"] - 0.5: f"{after['res']} px"
        for before, after in pairwise(records)
        if before["res"] != after["res"]
    }
    for title, name in CHARTS.items():
        if name not in records[-1]["train"]:
            continue
        lines = {
            split: [(r["epoch"], r[split].get(name)) for r in records if r[split]]
            for split in ("train", "val")
        }
        charts.append(chart(title, lines, marks=changes))
    for title, name in SPEEDS.items():
        points = [(r["epoch"], r[name]) for r in records]
        charts.append(chart(title, {title: points}, marks=changes))
    return "".join(charts)


def _panels(folder: Path) -> list[str]:
    files = sorted(folder.glob("epoch-*.png"))
    if len(files) > PANELS:
        files = [files[i * (len(files) - 1) // (PANELS - 1)] for i in range(PANELS)]
    return [_image(path) for path in files] or ["<p>None were drawn.</p>"]


def _worst(worst: Sequence[SampleMetrics], targets: tuple[str, ...]) -> str:
    heads, rows = ["sample"], [[one.key] for one in worst]
    if "mask" in targets:
        heads += ["IoU", "object"]
        for row, one in zip(rows, worst, strict=True):
            row += [f"{one.iou:.3f}", f"{100 * one.area:.1f} %"]
    if "depth" in targets:
        heads.append("depth RMSE")
        for row, one in zip(rows, worst, strict=True):
            row.append(f"{one.rmse:.4f}")
    return html.table(rows, heads)


def _sizes(groups: Sequence[SizeGroup], targets: tuple[str, ...]) -> str:
    """Small objects against large ones."""
    deep = "depth" in targets
    rows = [
        (
            f"{100 * band.low:.1f} to {100 * band.high:.1f} %",
            str(band.samples),
            *(f"{value:.3f}" for value in (band.iou, band.precision, band.recall)),
            f"{100 * (1 - band.recall):.1f} %",
            f"{100 * (1 - band.precision):.1f} %",
            *([f"{band.rmse:.4f}"] if deep else []),
        )
        for band in groups
    ]
    heads = ("object, share of the picture", "samples", "IoU", "precision", "recall")
    more = ("object taken for ground", "ground in what was taken for object")
    last = ["depth RMSE"] if deep else []
    return "<h2>Small and large objects</h2>" + html.table(rows, (*heads, *more, *last))


def _image(path: Path) -> str:
    """A picture inside the page; JPEG, since panels are mostly photographs."""
    try:
        with Image.open(path) as image:
            return f"<figure>{html.picture(image.convert('RGB'), path.stem)}</figure>"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's, all four.
        return f"<p>{escape(path.stem)} cannot be read: it is damaged, or no picture.</p>"


def _named(name: str, what: str) -> str:
    """What a figure is, and of which target."""
    target = name.partition("_")[0]
    return f"{target}: {what}" if target in WORST_BY else what


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text(path: Path) -> str:
    """What can be read of a text: it is shown, not used."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"{path.name}: {error.strerror}"
