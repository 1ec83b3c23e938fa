"""Compiled code that reads and writes memory at addresses: raw samples, headers, single words.

The functions below trust their arguments: addresses must be those of live memory that is long
enough. Nothing here holds the GIL.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = [
    "first_lie",
    "jit",
    "load8",
    "load16",
    "load32",
    "load64",
    "numbers",
    "stream16",
    "unpack",
]


def _load(bits: int, kind: Any) -> Any:
    """An intrinsic that reads ``bits`` bits at any address, aligned or not."""

    @intrinsic
    def load(_context: Any, _address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = builder.load(builder.inttoptr(args[0], ir.IntType(bits).as_pointer()))
            value.align = 1
            return value

        return kind(types.int64), generate

    return load


def _stream() -> Any:
    """An intrinsic that copies 16 floats to a multiple of 64 bytes, past the caches."""

    @intrinsic
    def stream(_context: Any, _target: Any, _source: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), 16).as_pointer()
            value = builder.load(builder.inttoptr(args[1], vector))
            value.align = 4
            store = builder.store(value, builder.inttoptr(args[0], vector))
            store.align = 64
            mark = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            store.set_metadata("nontemporal", mark)
            return ir.Constant(ir.IntType(32), 0)

        return types.int32(types.int64, types.int64), generate

    return stream


stream16 = _stream()
load8 = _load(8, types.uint8)
load16 = _load(16, types.uint16)
load32 = _load(32, types.uint32)
load64 = _load(64, types.uint64)


def jit(function: Any) -> Any:
    """Compiled at its first call; kept on disk where numba finds a place for that."""
    options: Any = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        # An installation and a home that cannot be written: compiled anew in every process.
        return njit(**options)(function)


@jit
def unpack(packed: Any, rgb: Any, mask: Any, begin: int, end: int) -> None:
    """Raw samples ``begin`` to ``end`` as decoded images.

    Args:
        packed: (B, 2) int64, addresses of fg_bg's planes (3, H, W) and of the mask's bits; the
            latter is not read where the masks have no pixels.
        rgb: (B, H, W, 3) uint8; written.
        mask: (B, h, w) uint8; written, 0 and 255.
        begin: First sample.
        end: One past the last.
    """
    area = rgb.shape[1] * rgb.shape[2]
    bits = mask.shape[1] * mask.shape[2]
    for n in range(begin, end):
        red = packed[n, 0]
        pixels, seen = rgb[n].reshape(3 * area), mask[n].reshape(bits)
        for k in range(area):
            pixels[3 * k] = load8(red + k)
            pixels[3 * k + 1] = load8(red + area + k)
            pixels[3 * k + 2] = load8(red + 2 * area + k)
        for k in range(bits):
            byte = np.int32(load8(packed[n, 1] + (k >> 3)))
            seen[k] = np.uint8(-((byte >> (7 - (k & 7))) & 1))


@jit
def first_lie(base: Any, offsets: Any, sizes: Any) -> int:
    """The first sample whose members are not where the index has them.

    Args:
        base: (n,) int64, address of each sample's shard.
        offsets: (n, k) int64, first payload byte of each member, at least 512.
        sizes: (n, k) int64.

    Returns:
        A number below n, or -1 where every member has a USTAR header with its size before it.
    """
    for n in range(offsets.shape[0]):
        for k in range(offsets.shape[1]):
            header = base[n] + offsets[n, k] - 512
            if load32(header + 257) != 0x61747375 or load8(header + 261) != 0x72:  # "usta", "r"
                return n
            size = 0
            for digit in range(11):
                size = size * 8 + (load8(header + 124 + digit) - 48)
            if size != sizes[n, k]:
                return n
    return -1


@jit
def numbers(addresses: Any, sizes: Any, found: Any) -> None:
    """Read whole numbers written in ASCII digits.

    Args:
        addresses: (n,) int64, of the first digits.
        sizes: (n,) int64, of the texts. Bytes.
        found: (n,) int64; written: the numbers, -1 for what is none of 1 to 18 digits.
    """
    for n in range(len(addresses)):
        value: Any = 0 if 0 < sizes[n] <= 18 else -1
        for k in range(sizes[n] if value == 0 else 0):
            digit = np.int64(load8(addresses[n] + k)) - 48
            if digit < 0 or digit > 9:
                value = -1
                break
            value = 10 * value + digit
        found[n] = value
