"""Write the HTML report of a run: curves, panels, worst samples, metrics by object size.

The network is evaluated again on every sample. All images are embedded, so the report is one file.
"""

import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model.registry import MakeModel, create
from shardify import html
from shardify.storage.atomic_write import write_text
from train.checkpoint.trained_model import load_trained
from train.data import Dataset, ShardDataset, find_shards
from train.distributed import World
from train.errors import RunError
from train.evaluation.evaluate import common_targets
from train.evaluation.metrics import FIGURES
from train.evaluation.per_sample import SampleMetrics, SizeGroup, evaluate_samples, group_by_size
from train.optim.compute import pick_device
from train.report.charts import chart
from train.tracking.image_panels import draw
from train.tracking.metrics_log import MetricsLog

WORST_COUNT = 8
WORST_BY = {"mask": "IoU of the mask", "depth": "RMSE of the depth"}
MAX_PANELS = 8
"""Maximum number of panels, evenly spread over the epochs."""

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


def report_run(
    run: Path, *, shards: str | None = None, out: Path | None = None, device: str = "auto"
) -> Path:
    """Write the report of a run.

    By default the data set is that of the run, and the page ``run/report.html``.

    Raises:
        TrainError: There is no run or no network.
        ShardifyError: The data set cannot be read.
    """
    chosen = pick_device(device, World())
    trained = load_trained(run)
    source = ShardDataset(
        folder=Path(shards) if shards else find_shards(trained.config.data.shards, run),
        world=World(),
        device=chosen,
        res=trained.res,
        trained=trained.stats,
    )
    return write_report(run, source, out=out, device=chosen)


def write_report(
    run: Path,
    source: Dataset,
    *,
    out: Path | None = None,
    device: torch.device,
    make_model: MakeModel = create,
) -> Path:
    """Write the report of a run on an open data set.

    Raises:
        RunError: There are no metrics, or the page cannot be written.
        CheckpointError: There are no weights.
    """
    records = MetricsLog(run / "metrics.jsonl").read_checked()
    if not records:
        raise RunError(f"{run}: metrics.jsonl is missing or empty; train first")
    trained = load_trained(run, make_model=make_model)
    targets = common_targets(trained, source)
    split = "val" if source.samples("val") else "train"
    batch = min(16, source.samples(split))  # The training loader drops an incomplete batch.
    loader = source.open(split, res=trained.res, batch=batch, augment=False, seed=0)
    try:
        samples, rows, worst = evaluate_samples(
            trained, loader, device=device, worst=WORST_COUNT, roles=source.roles
        )
    finally:
        loader.close()
    worst_image = ""
    if rows is not None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "worst.png"
                draw(path, rows, mean=trained.mean, std=trained.std)
                worst_image = _image(path)
        except OSError as error:
            raise RunError(
                f"{run}: the image of the worst samples cannot be written ({error}); set TMPDIR to "
                "a folder with free space"
            ) from error
    path = out or run / "report.html"
    body = [
        _summary(records, trained.path.name, trained.step),
        "<h2>Curves</h2>",
        _curves(records),
        "<h2>Panels</h2><p>The same samples at several epochs.</p>",
        *_panels(run / "panels"),
        f"<h2>Worst samples ({split})</h2><p>Sorted by {WORST_BY[targets[0]]}, worst first.</p>",
        _worst(worst, targets),
        worst_image,
        _sizes(group_by_size(samples), targets) if "mask" in targets else "",
        f"<h2>Settings</h2><pre>{escape(_text(run / 'config.toml'))}</pre>",
    ]
    try:
        write_text(path, html.page(run.resolve().name, body, style=STYLE))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error})") from error
    return path


def _summary(records: Sequence[Mapping[str, Any]], weights: str, step: int) -> str:
    """Format metrics and speed of the last epoch."""
    last = records[-1]
    rows = [
        (
            _label(name, description),
            *(_number((last[split] or {}).get(name)) for split in ("train", "val")),
        )
        for name, description in FIGURES.items()
        if name in last["train"]
    ]
    epochs = f"{len(records)} epoch{'s' * (len(records) > 1)}"
    return (
        f"<p>{epochs}, {last['step']} steps, last at {last['res']} px; "
        f"{last['samples_per_s']:.1f} samples/s, data-wait {100 * last['data_wait']:.1f} % of the "
        f"step time, peak memory {last['peak_memory_mb']:.0f} MB. The samples below were evaluated "
        f"with {escape(weights)} (step {step}).</p>"
        + html.table(rows, ("last epoch", "train", "val"))
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    # Charts count epochs from 1, records from 0.
    # Mark changes of the resolution: metrics before and after cannot be compared.
    changes = {
        after["epoch"] + 0.5: f"{after['res']} px"
        for before, after in pairwise(records)
        if before["res"] != after["res"]
    }
    for title, name in CHARTS.items():
        if name not in records[-1]["train"]:
            continue
        lines = {
            split: [(r["epoch"] + 1, r[split].get(name)) for r in records if r[split]]
            for split in ("train", "val")
        }
        charts.append(chart(title, lines, marks=changes))
    for title, name in SPEEDS.items():
        points = [(r["epoch"] + 1, r[name]) for r in records]
        charts.append(chart(title, {title: points}, marks=changes))
    return "".join(charts)


def _panels(folder: Path) -> list[str]:
    files = sorted(folder.glob("epoch-*.png"))
    if len(files) > MAX_PANELS:
        last = len(files) - 1
        files = [files[i * last // (MAX_PANELS - 1)] for i in range(MAX_PANELS)]
    return [_image(path) for path in files] or ["<p>There are no panels.</p>"]


def _worst(worst: Sequence[SampleMetrics], targets: tuple[str, ...]) -> str:
    heads, rows = ["sample"], [[sample.key] for sample in worst]
    if "mask" in targets:
        heads += ["IoU", "object"]
        for row, sample in zip(rows, worst, strict=True):
            row += [f"{sample.iou:.3f}", f"{100 * sample.area:.1f} %"]
    if "depth" in targets:
        heads.append("depth RMSE")
        for row, sample in zip(rows, worst, strict=True):
            row.append(_depth_error(sample.rmse))
    return html.table(rows, heads)


def _sizes(groups: Sequence[SizeGroup], targets: tuple[str, ...]) -> str:
    """Format the metrics by object size."""
    with_depth = "depth" in targets
    rows = [
        (
            f"{100 * group.low:.1f} to {100 * group.high:.1f} %",
            str(group.samples),
            *(f"{value:.3f}" for value in (group.iou, group.precision, group.recall)),
            f"{100 * (1 - group.recall):.1f} %",
            f"{100 * (1 - group.precision):.1f} %",
            *([_depth_error(group.rmse)] if with_depth else []),
        )
        for group in groups
    ]
    heads = [
        *("object, share of the image", "samples", "IoU", "precision", "recall"),
        *("object pixels missed", "predicted pixels that are background"),
        *(["depth RMSE"] if with_depth else []),
    ]
    return "<h2>Small and large objects</h2>" + html.table(rows, heads)


def _image(path: Path) -> str:
    """Embed an image as JPEG, because panels are mostly photographs."""
    try:
        with Image.open(path) as image:
            return f"<figure>{html.picture(image.convert('RGB'), path.stem)}</figure>"
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # All four are raised by Pillow.
        return f"<p>{escape(path.stem)} cannot be read: it is damaged, or not an image.</p>"


def _label(name: str, description: str) -> str:
    """Return the description of a metric with its target."""
    target = name.partition("_")[0]
    return f"{target}: {description}" if target in WORST_BY else description


def _depth_error(rmse: float) -> str:
    return "no valid depth" if isnan(rmse) else f"{rmse:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text(path: Path) -> str:
    """Read a text for display; bytes that are not UTF-8 are replaced."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"{path.name}: {error.strerror}"
