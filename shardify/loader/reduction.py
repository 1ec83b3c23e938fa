"""Reduce images that are much larger than the batch, with antialiasing, before they are warped.

A warp reads four source pixels for each of its own, however large the source is: the rest of the
picture would be lost, and what is left would be noise. So a side longer than ``LIMIT`` times the
batch's is first reduced to it by a triangle filter that covers every source pixel, as Pillow's
``BILINEAR`` resize does. A mask's pixels are 0 or 255 before they are averaged; the average is
cut at half. Pixels without a value have no weight.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from shardify.loader.cpu_kernels import jit
from shardify.resolution import ResolutionLike, resolution

LIMIT = 1.5
"""Sides up to this many times the batch's are left to the warp."""
_ROWS = 16
"""Rows that are averaged at once: floats in a vector register."""
HALF = 127.5
"""An averaged mask is object from this value on."""


def reduced_sizes(sizes: npt.ArrayLike, res: ResolutionLike) -> npt.NDArray[np.int64]:
    """Return images' widths and heights after the reduction, in pixels: (..., 2), as ``sizes``."""
    sides = np.asarray(sizes, np.int64)
    target = np.array(resolution(res)[::-1])
    return np.where(sides > LIMIT * target, target, sides)


def reduce_table(table: npt.NDArray[np.uint8], res: ResolutionLike) -> npt.NDArray[np.uint8]:
    """Return (N, H, W, 3) images reduced for batches of ``res`` pixels; unchanged if small."""
    count, height, width, _ = table.shape
    wide, high = reduced_sizes((width, height), res).tolist()
    if (wide, high) == (width, height) or not count:
        return table
    smaller = np.empty((count, high, wide, 3), np.uint8)
    for image, target in zip(table, smaller, strict=True):
        _reduce(image.reshape(height, -1), target.reshape(high, -1), 3, 0.0)
    return smaller


def _pointer_intrinsic() -> Any:
    """Return an intrinsic that makes a pointer of an address."""

    @intrinsic
    def pointer(_context: Any, _address: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

        return types.voidptr(types.int64), generate

    return pointer


_pointer = _pointer_intrinsic()


@jit
def reduce_images(
    images: Any,
    sizes: Any,
    targets: Any,
    threshold: float,
    wide_depth: bool,
    invalid: int,
    begin: int,
    end: int,
) -> None:
    """Reduce images ``begin`` to ``end`` of a batch of B samples to other memory.

    Args:
        images: (B, 4, 3) int64, as ``cpu_kernels.render`` takes it.
        sizes: (B, 4, 2) int64, from ``reduced_sizes``.
        targets: (B, 4) int64: address of the reduced image; 0 for an image to leave as it is. It
            has the pixels of the source: uint8, or uint16 for depth if ``wide_depth``.
        threshold: Mask pixels are object from this level of 255 on.
        wide_depth: Whether depth is uint16.
        invalid: Value of depth that means "no depth"; -1: there is none.
        begin: First sample.
        end: One past the last.
    """
    for n in range(begin, end):
        for column in range(4):
            if targets[n, column]:
                channels = 3 if column < 2 else 1
                width, height = images[n, column, 1], images[n, column, 2]
                wide, high = sizes[n, column, 0], sizes[n, column, 1]
                source, target = _pointer(images[n, column, 0]), _pointer(targets[n, column])
                if column == 3 and invalid >= 0:
                    if wide_depth:
                        _reduce_valid(
                            carray(source, (height, width), np.uint16),
                            carray(target, (high, wide), np.uint16), invalid,
                        )  # fmt: skip
                    else:
                        _reduce_valid(
                            carray(source, (height, width), np.uint8),
                            carray(target, (high, wide), np.uint8), invalid,
                        )  # fmt: skip
                elif column == 3 and wide_depth:
                    _reduce(
                        carray(source, (height, width), np.uint16),
                        carray(target, (high, wide), np.uint16), 1, 0.0,
                    )  # fmt: skip
                else:
                    _reduce(
                        carray(source, (height, width * channels), np.uint8),
                        carray(target, (high, wide * channels), np.uint8),
                        channels, threshold if column == 2 else 0.0,
                    )  # fmt: skip


@jit
def _reduce(source: Any, target: Any, channels: int, threshold: float) -> None:
    """Reduce one image; with ``threshold`` above 0, of its pixels cut to 0 and 255.

    Rows are averaged first, column by column of the source, then ``_ROWS`` of them at once along
    the row: the compiler vectorises loops over many rows, not over the few pixels that one pixel
    is averaged from.
    """
    high = target.shape[0]
    first_row, row_weights = _weights(source.shape[0], high)
    first_column, column_weights = _weights(
        source.shape[1] // channels, target.shape[1] // channels
    )
    line = np.empty(source.shape[1], np.float32)
    block = np.empty((source.shape[1], _ROWS), np.float32)
    level = np.float32(threshold)
    for begin in range(0, high, _ROWS):
        rows = min(_ROWS, high - begin)
        for place in range(rows):
            y = begin + place
            line[:] = np.float32(0)
            for k in range(row_weights.shape[1]):
                weight = row_weights[y, k]
                if weight > 0:
                    if level > 0:
                        _add_cut(source[first_row[y] + k], level, weight * np.float32(255), line)
                    else:
                        _add(source[first_row[y] + k], weight, line)
            for x in range(len(line)):
                block[x, place] = line[x]
        _average_columns(
            block, first_column, column_weights, channels, target[begin : begin + rows]
        )


@jit
def _add(row: Any, weight: Any, line: Any) -> None:
    for x in range(len(line)):
        line[x] += weight * np.float32(row[x])


@jit
def _add_cut(row: Any, level: Any, weight: Any, line: Any) -> None:
    for x in range(len(line)):
        line[x] += weight if np.float32(row[x]) >= level else np.float32(0)


@jit
def _average_columns(block: Any, first: Any, weights: Any, channels: int, target: Any) -> None:
    """Average ``block`` (source columns, ``_ROWS``) to the rows of ``target``, at most as many."""
    total = np.empty(_ROWS, np.float32)
    for x in range(weights.shape[0]):
        for channel in range(channels):
            at = first[x] * channels + channel
            total[:] = np.float32(0.5)
            for k in range(weights.shape[1]):
                weight = weights[x, k]
                column = block[at + k * channels]
                for place in range(_ROWS):
                    total[place] += weight * column[place]
            for place in range(target.shape[0]):
                target[place, x * channels + channel] = np.int32(total[place])


@jit
def _reduce_valid(source: Any, target: Any, invalid: int) -> None:
    """Reduce one gray image; pixels of the value ``invalid`` have no weight.

    A pixel is the average of the others, or ``invalid`` if these have at most half of the weight.
    The loops are those of ``_reduce``, over two planes: levels of valid pixels, and validity.
    """
    high, width = target.shape[0], source.shape[1]
    first_row, row_weights = _weights(source.shape[0], high)
    first_column, column_weights = _weights(width, target.shape[1])
    levels, shares = np.empty(width, np.float32), np.empty(width, np.float32)
    block = np.empty((width, _ROWS), np.float32)
    share_block = np.empty((width, _ROWS), np.float32)
    for begin in range(0, high, _ROWS):
        rows = min(_ROWS, high - begin)
        for place in range(rows):
            y = begin + place
            levels[:] = np.float32(0)
            shares[:] = np.float32(0)
            for k in range(row_weights.shape[1]):
                weight = row_weights[y, k]
                if weight > 0:
                    _add_valid(source[first_row[y] + k], invalid, weight, levels, shares)
            for x in range(width):
                block[x, place], share_block[x, place] = levels[x], shares[x]
        _average_valid(
            block, share_block, first_column, column_weights, invalid, target[begin : begin + rows]
        )


@jit
def _add_valid(row: Any, invalid: int, weight: Any, levels: Any, shares: Any) -> None:
    for x in range(len(levels)):
        share = weight if np.int32(row[x]) != np.int32(invalid) else np.float32(0)
        levels[x] += share * np.float32(row[x])
        shares[x] += share


@jit
def _average_valid(
    block: Any, share_block: Any, first: Any, weights: Any, invalid: int, target: Any
) -> None:
    """Average the columns of levels and of validity, and divide."""
    total, shares = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
    for x in range(weights.shape[0]):
        total[:] = np.float32(0)
        shares[:] = np.float32(0)
        for k in range(weights.shape[1]):
            weight = weights[x, k]
            column, share_column = block[first[x] + k], share_block[first[x] + k]
            for place in range(_ROWS):
                total[place] += weight * column[place]
                shares[place] += weight * share_column[place]
        for place in range(target.shape[0]):
            level: Any = invalid
            if shares[place] > np.float32(0.5):
                level = np.int32(total[place] / shares[place] + np.float32(0.5))
                if level == invalid:  # An average of other values may be this one.
                    level += 1 if invalid == 0 else -1
            target[place, x] = level


@jit
def _weights(length: int, shorter: int) -> Any:
    """Return the first source pixel of each target pixel, and the weights from it on.

    If the sides are equal, each pixel is its own. A row of weights has the same number of entries
    for all target pixels, zeros at its end, and never reaches beyond the source.
    """
    scale = length / shorter
    support = scale if scale > 1 else 0.5
    taps = min(int(np.ceil(2 * support)) + 1, length)
    first = np.empty(shorter, np.int64)
    weights = np.zeros((shorter, taps), np.float32)
    for i in range(shorter):
        centre = (i + 0.5) * scale
        first[i] = min(max(int(centre - support + 0.5), 0), length - taps)
        total = 0.0
        for k in range(taps):
            weight = max(0.0, 1 - abs(first[i] + k + 0.5 - centre) / support)
            weights[i, k] = weight
            total += weight
        for k in range(taps):
            weights[i, k] /= np.float32(total)
    return first, weights
