"""Write a self-contained HTML report about a finished data set.

It shows samples with mask outlines, background use, distributions of mask area and depth, image
sizes, and rejected samples with reasons. No scripts, no links, no other files.
"""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardify import html
from shardify.dataset.manifest import REJECTED, Manifest
from shardify.dataset.stats import BINS, DataSet, Sample, SampleStats, measure_samples
from shardify.errors import OutputError
from shardify.images.parser import MASK_THRESHOLD
from shardify.storage.atomic_write import write_atomic
from shardify.storage.paths import PathOrUrl

_MAX_SAMPLES = 24
_HOLE = (255, 0, 255)
"""Colour of pixels without a depth. RGB."""
_TILE_PIXELS = 160
_MAX_REJECTED_LINES = 50
_COLOURS = {"train": "#4477aa", "val": "#cc6677"}

_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px }
figcaption { font-size: 11px; overflow-wrap: anywhere }
img { width: 32%; vertical-align: top; background: #eee }
svg { width: 100%; height: 120px; border-bottom: 1px solid #888 }
"""


def write_report(out: PathOrUrl, path: Path, *, most: int = 200) -> None:
    """Write the report of data set ``out`` to ``path``, atomically.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        VerifyError: A shard is missing or damaged.
        OutputError: ``path`` is a folder, or cannot be written.
    """
    text = page(out, most=most)
    if path.is_dir():
        raise OutputError(f"{path}: a folder; expected a file to write; pass -o FILE.html")
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; choose another place") from error


def page(out: PathOrUrl, *, most: int = 200) -> str:
    """Return the report as HTML. Arguments and errors as for ``write_report``."""
    data = DataSet(out)
    manifest = data.manifest
    sample_stats = measure_samples(data, most=most)
    background_uses = data.background_uses()
    invalid = manifest.roles["depth"].invalid if "depth" in manifest.roles else None
    samples = list(data.samples(_MAX_SAMPLES))
    indexes = sorted({sample.background for sample in samples} - {-1})
    backgrounds = dict(zip(indexes, data.backgrounds(indexes), strict=True)) if indexes else {}
    title = f"{', '.join(source.name for source in manifest.source)}: {len(data):,} samples"
    parts = [
        _overview(data),
        "<h2>Samples</h2>",
        "<p><small>Background, composite with the mask outline, depth"
        f"{'' if invalid is None else ' (magenta: no depth)'}.</small></p>",
        '<div class="sheet">',
        *(_figure(sample, backgrounds.get(sample.background), invalid) for sample in samples),
        "</div>",
        "<h2>Backgrounds</h2>",
        _backgrounds(data, background_uses),
        "<h2>Masks and depths</h2>",
        _distributions(sample_stats),
        "<h2>Roles</h2>",
        _roles(manifest),
        "<h2>Rejected</h2>",
        _rejected(manifest, data.folder / REJECTED),
    ]
    return html.page(title, parts, style=_STYLE)


def outlined(picture: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw the border of a mask into an image.

    Args:
        picture: (H, W, 3) uint8.
        mask: (H, W) uint8 of the same size; it is thresholded here.

    Returns:
        (H, W, 3) uint8; object pixels at the border of the object or of the image are magenta.
    """
    inside = np.pad(mask >= MASK_THRESHOLD, 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    drawn = picture.copy()
    drawn[inside[1:-1, 1:-1] & ~core] = (255, 0, 255)
    return drawn


def _overview(data: DataSet) -> str:
    manifest = data.manifest
    rows = [
        (
            name,
            f"{split.samples:,} samples in {len(split.shards)} "
            f"shard{'s' * (len(split.shards) != 1)}",
        )
        for name, split in manifest.splits.items()
    ]
    rows += [
        ("source", f"{source.name}, {source.entries:,} entries, {source.bytes / 1e6:,.1f} MB")
        for source in manifest.source
    ]
    options = {
        name: " ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in manifest.options.items()
    }
    shown = (f"{name} {value}" for name, value in options.items() if value not in (None, ""))
    rows.append(("options", ", ".join(shown)))
    if data.top.resolutions:
        sizes = ", ".join(str(resolution.res) for resolution in data.top.resolutions)
        rows.append(("resolutions", sizes))
    rows += [("warning", str(warning)) for warning in manifest.layout.get("warnings", ())]
    for role, cost in manifest.costs.items():
        rows.append((f"cost, {role}", ", ".join(f"{k} {v:g}" for k, v in cost.items())))
    return html.table(rows)


def _figure(sample: Sample, background: NDArray[Any] | None, invalid: int | None) -> str:
    planes = sample.planes
    composite = planes["fg_bg"]
    height, width = composite.shape[:2]
    scale = _TILE_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = []
    if background is not None:
        pictures.append(_resize(background, size))
    small = _resize(composite, size)
    if "mask" in planes:
        small = outlined(small, _resize(planes["mask"], size))
    pictures.append(small)
    if "depth" in planes:
        depth = planes["depth"].astype(np.float32)
        known = np.ones(depth.shape, np.bool_) if invalid is None else depth != invalid
        low = float(depth.min(where=known, initial=65535))
        high = float(depth.max(where=known, initial=0))
        stretched = ((depth - low) * (255 / (high - low) if high > low else 0)).clip(0)
        gray = stretched.astype(np.uint8)
        if not known.all():
            gray = np.where(known[..., None], gray[..., None], np.array(_HOLE, np.uint8))
        pictures.append(_resize(gray, size))
    images = "".join(html.picture(Image.fromarray(picture)) for picture in pictures)
    name = f"{sample.key} ({sample.split})"
    return f"<figure>{images}<figcaption>{escape(name)}</figcaption></figure>"


def _backgrounds(data: DataSet, background_uses: dict[str, Counter[int]]) -> str:
    manifest = data.manifest
    if not manifest.backgrounds:
        return "<p>The data set has no backgrounds.</p>"
    rule = manifest.layout.get("background", {})
    rows: list[tuple[str, str]] = []
    if isinstance(rule, dict):
        rows = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in rule.items()]
    uses = list(background_uses.values())
    both = set(uses[0]).intersection(*uses[1:]) if len(uses) > 1 else set()
    rows.append(("in both splits", str(len(both)) if both else "none"))
    stored = [data.stored(index) for index in range(len(manifest.backgrounds))]
    once = sum(stored) / 1e6
    copies = once / len(stored) * sum(count.total() for count in uses)
    rows.append(("stored once each", f"{once:,.1f} MB instead of {copies:,.1f} MB of copies"))
    bars = [
        (background.id, {split: counts[index] for split, counts in background_uses.items()})
        for index, background in enumerate(manifest.backgrounds)
    ]
    legend = ", ".join(
        f'<span style="color:{colour}">{name}</span>' for name, colour in _COLOURS.items()
    )
    return (
        html.table(rows)
        + f"<p><small>Samples on each background ({legend}).</small></p>"
        + _bars(bars)
    )


def _distributions(sample_stats: SampleStats) -> str:
    charts = []
    for name, counts in (("Fraction of object pixels in an image", sample_stats.mask_area),
                         ("Depth, of its full range", sample_stats.depth)):  # fmt: skip
        if any(counts):
            bars = [
                (f"{step / BINS:.2f} to {(step + 1) / BINS:.2f}", {"train": count})
                for step, count in enumerate(counts)
            ]
            charts.append(f"<p><small>{name}, 0 to 1; {sample_stats.samples} samples</small></p>")
            charts.append(_bars(bars))
    return "".join(charts)


def _roles(manifest: Manifest) -> str:
    rows = []
    for name, role in manifest.roles.items():
        stats = manifest.stats.get(name)
        files = f"{', '.join(role.extensions)}, {role.bits} bit"
        sizes = ", ".join(f"{w}x{h} ({count:,})" for w, h, count in role.sizes[:4])
        more = " ..." if len(role.sizes) > 4 else ""
        mean = ", ".join(f"{value:.4f}" for value in stats.mean) if stats else ""
        std = ", ".join(f"{value:.4f}" for value in stats.std) if stats else ""
        rows.append((name, files, sizes + more, mean, std))
    converted = manifest.layout.get("converted") or {}
    items = "".join(f"<li>{escape(k)}: {v:,}" for k, v in converted.items())
    return html.table(rows, ("role", "files", "sizes", "mean", "deviation")) + (
        f"<p>Converted:</p><ul>{items}</ul>" if items else ""
    )


def _rejected(manifest: Manifest, path: PathOrUrl) -> str:
    if not manifest.rejected.count:
        return "<p>Nothing: every sample is in the shards.</p>"
    reasons = html.table((f"{count:,}", why) for why, count in manifest.rejected.by_reason.items())
    lines = []
    try:
        with path.open("rb") as file:
            for line in map(json.loads, islice(file, _MAX_REJECTED_LINES)):
                lines.append((line["key"] or line["member"], f"{line['role']} {line['reason']}"))
    except (OSError, ValueError, KeyError):
        return reasons + f"<p>{REJECTED} cannot be read.</p>"
    return reasons + f"<h3>The first {len(lines)}</h3>" + html.table(lines)


def _bars(columns: Sequence[tuple[str, dict[str, int]]]) -> str:
    """Draw a stacked bar chart as SVG: one bar per name (its tooltip), one part per split."""
    top = max((sum(counts.values()) for _, counts in columns), default=0) or 1
    shapes = []
    for x, (name, counts) in enumerate(columns):
        y = top
        for split, count in counts.items():
            y -= count
            colour = _COLOURS.get(split, "#888")
            shapes.append(
                f'<rect x="{x}" y="{y}" width=".9" height="{count}" fill="{colour}">'
                f"<title>{escape(name)}: {count:,}</title></rect>"
            )
    return (
        f'<svg viewBox="0 0 {len(columns)} {top}" preserveAspectRatio="none" role="img">'
        f"{''.join(shapes)}</svg>"
    )


def _resize(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    return np.asarray(Image.fromarray(plane).resize(size))
