"""Measure the variants of the default recipe: train them, store the results, fill the page.

    python docs/make_training.py --run RUNS --data photos=PHOTOS --data synth=SYNTH
    python docs/make_training.py

The first command trains the runs that RUNS lacks (one at a time, one thread), adds the results to
``docs/training.json`` and draws the images in ``docs/training/``. The second fills the tables of
``docs/training.md`` from that JSON; ``tests/test_docs.py`` fails if the page is not up to date. All
values are from the last epoch, on the validation split.

Runs use the default augmentation; their names contain its angle. Only the tables with today's angle
are trained, see ``ANGLES``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from shardify import Augmentation
from train.report.charts import chart

HERE = Path(__file__).parent
PAGE = HERE / "training.md"
FIGURES = HERE / "training.json"
PICTURES = HERE / "training"

ALWAYS = "--threads 1 --torch-threads 1 --no-tensorboard"
SHORT, LONG = "--ema 0 --res 64 --epochs 1", "--ema 0 --res 32,64 --epochs 4,1"
"""Budgets. Variants are compared without averaging, which would smooth out what sets them apart."""

AUTHORS = "--loss dice --activation none --schedule constant --clip 0.1 --clip-by value"
SEEDS = (0, 1)


class Row(NamedTuple):
    """One line of a table."""

    label: str
    flags: str = ""
    """What is added to ``train run --shards DATA`` and the budget."""
    seeds: tuple[int, ...] = (0,)


TABLES: dict[str, list[Row]] = {
    "rate": [
        Row("0.02", "--lr 0.02"),
        Row("0.05", "--lr 0.05", SEEDS),
        Row("**0.1**", seeds=SEEDS),
        Row("0.2", "--lr 0.2"),
    ],
    "loss": [
        Row("**Dice + L1**", seeds=SEEDS),
        Row("Dice", "--loss dice"),
        Row("L1", "--loss l1"),
        Row("BCE", "--loss bce"),
        Row("SSIM", "--loss ssim"),
    ],
    "outputs": [
        Row("**sigmoid**", seeds=SEEDS),
        Row("none", "--activation none"),
    ],
    "weights": [
        Row("Dice 1, L1 0.25", "--l1-weight 0.25", SEEDS),
        Row("**Dice 1, L1 1**", seeds=SEEDS),
        Row("Dice 1, L1 4", "--l1-weight 4"),
    ],
    "schedule": [
        Row("SGD, plateau", seeds=SEEDS),
        Row("SGD, cosine", "--schedule cosine"),
        Row("SGD, OneCycle", "--schedule onecycle"),
        Row("**SGD, plateau, EMA 0.98**", "--ema 0.98", SEEDS),
        Row("SGD, plateau, deep supervision 0.5", "--deep-supervision 0.5"),
    ],
    "authors": [
        Row("**the default recipe**", "--ema 0.98"),
        Row("the authors', lr 0.01", f"{AUTHORS} --lr 0.01"),
        Row("the authors', lr 0.05", f"{AUTHORS} --lr 0.05"),
    ],
}
LONG_TABLES: dict[str, list[Row]] = {
    "long": [
        Row("**the default recipe**", "--ema 0.98"),
        Row("the authors', lr 0.01", f"{AUTHORS} --lr 0.01"),
        Row("the default without averaging"),
    ],
    "averaging": [
        Row("**the default recipe**", "--ema 0.98", SEEDS),
        Row("the default recipe without EMA", "", SEEDS),
    ],
}
ANGLES = dict.fromkeys(["rate", "loss", "outputs", "weights", "schedule", "averaging"], 20.0)
ANGLES |= {"authors": 10.0, "long": 10.0}
"""The rotation, in degrees either way, of the runs that a table shows."""

PANEL = [(row.label.strip("*"), row.flags) for row in TABLES["loss"]]


def run_name(budget: str, flags: str, seed: int, angle: float) -> str:
    """A folder's name for a run: ``e1_loss-bce_s0_a20``."""
    text = re.sub(r"\s*--", "_", " " + flags).strip()
    return f"e{budget.split()[-1]}{text.replace(' ', '-')}_s{seed}_a{angle:g}"


def wanted() -> dict[str, tuple[str, str, int]]:
    """Every run at today's angle by its name, as (budget, flags, seed)."""
    angle = Augmentation().angle
    return {
        run_name(budget, row.flags, seed, angle): (budget, row.flags, seed)
        for tables, budget in ((TABLES, SHORT), (LONG_TABLES, LONG))
        for table, rows in tables.items()
        if ANGLES[table] == angle
        for row in rows
        for seed in row.seeds
    }


def run_all(runs: Path, data: dict[str, Path]) -> None:
    """Train what ``runs`` lacks; a run that failed leaves its log beside its folder."""
    for name, (budget, flags, seed) in wanted().items():
        for data_set, shards in data.items():
            out = runs / data_set / name
            if (out / "report.html").is_file():
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "train", "run", "--shards", str(shards)]
            command += [*f"{ALWAYS} {budget} {flags} --seed {seed}".split(), "--out", str(out)]
            with Path(f"{out}.log").open("w") as log:
                done = subprocess.run(
                    command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
            print(f"{out}: exit {done.returncode}", flush=True)


def collect(runs: Path, found: dict[str, Any]) -> None:
    """Add to ``{data set: {run: {flags, seed, angle, epochs: [figures]}}}`` what is there."""
    for place in sorted(p for p in runs.iterdir() if p.is_dir()):
        for name, (budget, flags, seed) in wanted().items():
            log = place / name / "metrics.jsonl"
            if not log.is_file():
                continue
            records = [json.loads(line) for line in log.read_text().splitlines()]
            if len(records) != sum(map(int, budget.split()[-1].split(","))):
                continue
            found.setdefault(place.name, {})[name] = {
                "flags": flags,
                "seed": seed,
                "angle": Augmentation().angle,
                "epochs": [
                    {
                        "step": record["step"],
                        "lr": record["lr"],
                        "mask_iou": record["val"]["mask_iou"],
                        "depth_rmse": record["val"]["depth_rmse"],
                    }
                    for record in records
                ],
            }


def table(figures: dict[str, Any], rows: list[Row], budget: str, angle: float) -> str:
    """A Markdown table: mask IoU and depth RMSE of each row on each data set that has a run.

    Only runs that rotated within ``angle`` are shown; the first cell says so.
    """
    sets = [
        name
        for name, runs in figures.items()
        if any(
            run_name(budget, row.flags, seed, angle) in runs for row in rows for seed in row.seeds
        )
    ]
    lines = [
        f"| rotation ±{angle:g}° | "
        + " | ".join(f"{s}: mask IoU | depth RMSE" for s in sets)
        + " |",
        "|---" * (1 + 2 * len(sets)) + "|",
    ]
    for row in rows:
        cells = [row.label]
        for name in sets:
            ends = [
                figures[name][key]["epochs"][-1]
                for key in (run_name(budget, row.flags, seed, angle) for seed in row.seeds)
                if key in figures[name]
            ]
            for figure, digits in (("mask_iou", 3), ("depth_rmse", 4)):
                cells.append(_cell([end[figure] for end in ends], digits))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "not run"
    middle = f"{median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def render(page: str, figures: dict[str, Any]) -> str:
    """The page with every table between its marks made anew."""
    for tables, budget in ((TABLES, SHORT), (LONG_TABLES, LONG)):
        for name, rows in tables.items():
            begin, end = f"<!-- table {name} -->", "<!-- end -->"
            assert begin in page, f"{PAGE.name} has no {begin}"
            before, rest = page.split(begin, 1)
            text = table(figures, rows, budget, ANGLES[name])
            page = f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"
    return page


def draw_panel(runs: Path, data: str, path: Path, *, rows: int = 3) -> None:
    """Two samples as every loss leaves them: mask, then depth, cut from the runs' own panels.

    Args:
        runs: The folder of runs.
        data: Which data set.
        path: The PNG to write.
        rows: How many samples to show.
    """
    gap, head, cell = 4, 36, 128
    panels = [
        (label, runs / data / run_name(SHORT, flags, 0, ANGLES["loss"]) / "panels/epoch-000.png")
        for label, flags in PANEL
    ]
    columns: list[tuple[str, Path, int]] = [("fg_bg", panels[0][1], 1), ("mask", panels[0][1], 2)]
    columns += [(label, file, 3) for label, file in panels]
    columns += [("depth", panels[0][1], 4)]
    columns += [(label, file, 5) for label, file in panels]
    size = 96
    canvas = Image.new(
        "RGB", (gap + len(columns) * (size + gap), 20 + rows * (size + gap)), "white"
    )
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for place, (title, file, column) in enumerate(columns):
        left = gap + place * (size + gap)
        pen.text((left, 3), title, fill="black", font=font)
        with Image.open(file) as panel:
            for row in range(rows):
                # Every second row: neighbours share their background.
                x, y = gap + column * (cell + gap), head + gap + 2 * row * (cell + gap)
                part = panel.crop((x, y, x + cell, y + cell)).resize((size, size))
                canvas.paste(part, (left, 20 + row * (size + gap)))
    path.parent.mkdir(exist_ok=True)
    canvas.save(path, optimize=True)


def draw_curves(figures: dict[str, Any]) -> None:
    """Mask IoU and depth RMSE over the epochs of the long runs, an SVG for each data set."""
    style = (
        "text{font:12px sans-serif}.title{font-weight:bold}.end{text-anchor:end}"
        "line{stroke:#ddd}polyline{fill:none;stroke-width:2}svg{background:white}"
    )
    names = {row.label: run_name(LONG, row.flags, 0, ANGLES["long"]) for row in LONG_TABLES["long"]}
    for data, runs in figures.items():
        if not any(name in runs for name in names.values()):
            continue
        parts = []
        for figure, title in (("mask_iou", "mask IoU"), ("depth_rmse", "depth RMSE")):
            lines = {
                _short(label): [
                    (step + 1, float(epoch[figure]))
                    for step, epoch in enumerate(runs.get(name, {"epochs": []})["epochs"])
                ]
                for label, name in names.items()
            }
            parts.append(chart(f"{data}: {title}", lines))
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"curves_{data}.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="850" height="240">'
            f'<style>{style}</style><rect width="850" height="240" fill="white"/>{parts[0]}'
            + parts[1].replace("<svg ", '<svg x="425" ', 1)
            + "</svg>\n"
        )


def _short(label: str) -> str:
    """A label that fits into a chart's head."""
    for word in ("*", "the ", " recipe", ", lr 0.01"):
        label = label.replace(word, "")
    return label


def main() -> None:
    """Parse, do, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, metavar="RUNS", help="train into this folder first")
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="read this folder's runs")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=SHARDS")
    options = parser.parse_args()
    runs = options.run or options.collect
    if options.run:
        run_all(runs, {k: Path(v) for k, v in (pair.split("=", 1) for pair in options.data)})
    if runs:
        figures = json.loads(FIGURES.read_text())
        collect(runs, figures)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        if ANGLES["loss"] == Augmentation().angle:
            for place in filter(Path.is_dir, runs.iterdir()):
                draw_panel(runs, place.name, PICTURES / f"losses_{place.name}.png")
        draw_curves(figures)
    PAGE.write_text(render(PAGE.read_text(), json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    main()
