"""Draw an image panel as a PNG: one sample per row; inputs, targets and predictions as columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shardify.loader.batch import Batch
from shardify.storage.atomic_write import atomic_path

COLUMNS = ("bg", "fg_bg", "mask", "predicted mask", "depth", "predicted depth")
"""Columns for a data set that has every role."""

ROLES = frozenset(Batch._fields)
"""All roles that a data set may have."""

GAP = 4
"""Space between cells. Pixels."""

TITLE = 18
"""Height of a line of text. Pixels."""

HOLE = (255, 0, 160)
"""Colour of pixels without a depth: no gray. RGB."""

SMALLEST = 96
"""Minimum width of a cell, so that its title fits. Pixels."""


class Rows(NamedTuple):
    """Samples of a panel, on the CPU, float32."""

    batch: Batch
    """Inputs (normalised) and targets."""

    mask: Tensor
    """(B, 1, H, W) predicted probability, in [0, 1]."""

    depth: Tensor
    """(B, 1, H, W) predicted, in [0, 1]."""

    roles: frozenset[str] = ROLES


def first_rows(batch: Batch, mask: Tensor, depth: Tensor, count: int, *, first: int = 0) -> Rows:
    """Copy ``count`` samples from ``first`` on, and their predictions, to the CPU."""
    chosen = slice(first, first + count)
    inputs = batch.map(lambda part: part[chosen].cpu())
    inputs = Batch(*(part.float() for part in inputs), valid=inputs.valid)
    return Rows(inputs, mask[chosen].cpu(), depth[chosen].cpu())


def join_rows(parts: Sequence[Rows], roles: frozenset[str]) -> Rows | None:
    """Put the samples of several into one, to show ``roles``; None if there are none."""
    if not parts:
        return None
    valid = {
        role: torch.cat([rows.batch.valid[role] for rows in parts]) for role in parts[0].batch.valid
    }
    images = map(torch.cat, zip(*(rows.batch for rows in parts), strict=True))
    return Rows(
        Batch(*images, valid=valid),
        torch.cat([rows.mask for rows in parts]),
        torch.cat([rows.depth for rows in parts]),
        roles,
    )


def draw(
    path: Path,
    rows: Rows,
    *,
    mean: dict[str, list[float]],
    std: dict[str, list[float]],
    title: str = "",
) -> None:
    """Write a panel.

    In each row, true and predicted depth are scaled by the range of the true depth, so that they
    can be compared and dark scenes are visible. Masks are not scaled. Pixels without a true depth
    have the colour ``HOLE``, as the column's title says.

    ``mean`` and ``std`` per channel of ``bg`` and ``fg_bg``, in [0, 1], undo the normalisation.
    ``title`` is a line of text above the column titles.

    Raises:
        OSError: The file cannot be written.
    """
    count, _, height, width = rows.batch.fg_bg.shape
    scale = max(1, -(-SMALLEST // width))
    cell_w, cell_h = width * scale, height * scale
    top = TITLE * (2 if title else 1)
    columns = [name for name in COLUMNS if name.removeprefix("predicted ") in rows.roles]
    canvas = Image.new(
        "RGB",
        (len(columns) * (cell_w + GAP) + GAP, top + count * (cell_h + GAP) + GAP),
        "white",
    )
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    pen.text((GAP, 2), title, fill="black", font=font)
    for column, name in enumerate(columns):
        left = GAP + column * (cell_w + GAP)
        pen.text((left, top - TITLE + 2), name, fill="black", font=font)
        if name in rows.batch.valid:
            left += round(pen.textlength(f"{name}  ", font=font))
            pen.text((left, top - TITLE + 2), "none", fill=HOLE, font=font)
    for row in range(count):
        depth = rows.batch.depth[row]
        valid = {role: known[row] for role, known in rows.batch.valid.items()}
        known = depth[valid["depth"]] if "depth" in valid else depth
        low, high = (float(known.min()), float(known.max())) if known.numel() else (0.0, 1.0)
        scale_depth = 1 / (high - low) if high > low else 1.0
        cells = {
            "bg": _photo(rows.batch.bg[row], mean["bg"], std["bg"]),
            "fg_bg": _photo(rows.batch.fg_bg[row], mean["fg_bg"], std["fg_bg"]),
            "mask": rows.batch.mask[row],
            "predicted mask": rows.mask[row],
            "depth": (depth - low) * scale_depth,
            "predicted depth": (rows.depth[row] - low) * scale_depth,
        }
        for column, name in enumerate(columns):
            pixels = _bytes(cells[name])
            if name in valid:
                gray = pixels[..., None]
                pixels = np.where(
                    valid[name].permute(1, 2, 0).numpy(), gray, np.array(HOLE, np.uint8)
                )
            image = Image.fromarray(pixels)
            image = image.resize((cell_w, cell_h), Image.Resampling.NEAREST)
            left = GAP + column * (cell_w + GAP)
            canvas.paste(image, (left, top + GAP + row * (cell_h + GAP)))
    with atomic_path(path) as temporary:
        canvas.save(temporary, "PNG")


def _photo(image: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Undo the normalisation of an image: (3, H, W) in [0, 1]."""
    return image * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)


def _bytes(cell: Tensor) -> NDArray[np.uint8]:
    """Convert (1 or 3, H, W) in [0, 1] to (H, W) or (H, W, 3) uint8."""
    pixels = (cell.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels
