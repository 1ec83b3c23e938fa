"""Compiled CPU kernels: render images, unpack raw samples, check tar headers, parse numbers.

``render`` warps, colours and normalises decoded images, given by address, to float32 planes.
No kernel holds the GIL, so several threads can share a batch.

Design of ``render``: resize and rotation are one matrix, so each source pixel is fetched once. A
row is processed in separate loops (coordinates, fetch, blend, colour), because the compiler
vectorises each loop alone but not all of them together. One unaligned 64-bit load reads both
horizontal neighbours of an RGB pixel. Outside the source, the nearest edge pixel is used. All
arithmetic on pixels is float32.

The kernels do not check their arguments. Addresses must point to live memory that is long enough;
images must be contiguous and at least 2 x 2 pixels. ``batch_producer`` checks that first.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from shardify.loader.augmentation import NOISE_UNIT


def _load_intrinsic(bits: int, kind: Any) -> Any:
    """Return an intrinsic that reads ``bits`` bits at any address, aligned or not."""

    @intrinsic
    def load(_context: Any, _address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = builder.load(builder.inttoptr(args[0], ir.IntType(bits).as_pointer()))
            value.align = 1
            return value

        return kind(types.int64), generate

    return load


def _stream_intrinsic() -> Any:
    """Return an intrinsic that copies 16 floats to a multiple of 64 bytes, bypassing the caches."""

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


stream16 = _stream_intrinsic()
load8 = _load_intrinsic(8, types.uint8)
load16 = _load_intrinsic(16, types.uint16)
load32 = _load_intrinsic(32, types.uint32)
load64 = _load_intrinsic(64, types.uint64)


def jit(function: Any) -> Any:
    """Compile a function at its first call; cache it on disk if numba finds a writable folder."""
    options: Any = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither installation nor home is writable: compile again in every process.
        return njit(**options)(function)


@jit
def unpack(packed: Any, rgb: Any, mask: Any, begin: int, end: int) -> None:
    """Unpack raw samples ``begin`` to ``end`` into decoded images; layout: ``raw_pixels``.

    Args:
        packed: (B, 2) int64, addresses of fg_bg's planes (3, H, W) and of the mask's bits;
            the latter is not read if the masks have no pixels.
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
def find_header_mismatch(base: Any, offsets: Any, sizes: Any) -> int:
    """Return the first sample whose members are not where the index says.

    Args:
        base: (n,) int64, address of each sample's shard.
        offsets: (n, k) int64, first payload byte of each member, at least 512.
        sizes: (n, k) int64.

    Returns:
        A number below n; -1 if every member is preceded by a USTAR header with its size.
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
def parse_numbers(addresses: Any, sizes: Any, found: Any) -> None:
    """Parse whole numbers written in ASCII digits.

    Args:
        addresses: (n,) int64, of the first digits.
        sizes: (n,) int64, of the texts. Bytes.
        found: (n,) int64; written: the numbers; -1 if a text is not 1 to 18 digits.
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


# Any: numba gives these calls other types than NumPy's stubs.
_f: Any = np.float32
_min: Any = min
_max: Any = max
_i: Any = np.int32
_u: Any = np.uint32
_BYTE = np.uint32(255)
_WORD = np.uint32(65535)
_8, _16, _24 = np.uint32(8), np.uint32(16), np.uint64(24)
_UNIT = np.float32(1 / NOISE_UNIT)


@jit
def render(
    images: Any,
    matrices: Any,
    colour: Any,
    noise: Any,
    place: Any,
    table: Any,
    normal: Any,
    thresholds: Any,
    depth_bits: int,
    invalid: int,
    augment: bool,
    interleave: bool,
    stream: bool,
    width: int,
    outputs: Any,
    begin: int,
    end: int,
) -> None:
    """Render samples ``begin`` to ``end`` of a batch of B.

    Args:
        images: (B, 4, 3) int64: address, width and height of bg, fg_bg (uint8, H x W x 3), mask
            (uint8, H x W) and depth (uint8 or uint16, H x W). A width of 0, for all samples:
            the image is missing, and its output is not written.
        matrices: (B, 4, 2, 3) float32, from ``augmentation.affine_matrices``.
        colour: (B, 3, 4) float32.
        noise: (B,) float32, standard deviation in levels of 255.
        place: (B, 2) int32, row and column where the noise crop begins.
        table: (3, S, T) int8, from ``augmentation.noise_table``.
        normal: (2, 2, 3) float32: scale and shift of bg's and fg_bg's channels; the output is
            levels of 255 times scale plus shift.
        thresholds: (B,) float32: a mask pixel is 1 if its value after the warp is at least this.
        depth_bits: 8 or 16.
        invalid: Value of depth that means "no depth"; -1: there is none.
        augment: Whether colour and noise are applied.
        interleave: Write bg and fg_bg as H x W x 3, else as 3 x H x W.
        stream: Bypass the caches when writing, for a batch larger than they are. Needs outputs
            that begin at multiples of 64 bytes, and W a multiple of 16.
        width: W of the outputs. Pixels.
        outputs: bg, fg_bg (B, 3 * H * W), mask, depth, valid (B, H * W) float32; written. For a
            missing image, any array of two dimensions; so for ``valid`` (1 where there is a depth,
            else 0) without ``invalid``.
        begin: First sample.
        end: One past the last.
    """
    bg, fg_bg, mask, depth, valid = outputs
    offset = np.empty(width, np.int32)
    u, v = np.empty(width, np.float32), np.empty(width, np.float32)
    top, low = np.empty(width, np.uint64), np.empty(width, np.uint64)
    top2, low2 = np.empty(width, np.uint32), np.empty(width, np.uint32)
    rgb, line = np.empty((3, width), np.float32), np.empty(3 * width, np.float32)
    gray_scale = _f(1 / 255) if depth_bits == 8 else _f(1 / 65535)
    for n in range(begin, end):
        for y in range(fg_bg.shape[1] // (3 * width)):
            wide, high = images[n, 1, 1], images[n, 1, 2]
            _source_offsets(matrices[n, 1], wide, high, y, offset, u, v)
            _fetch_rgb(images[n, 1, 0], wide, high, offset, top, low)
            _blend_rgb(top, low, u, v, rgb)
            _augment_row(rgb, colour[n], noise[n], place[n], table, normal[1], augment, y)
            _store_rgb_row(rgb, line, interleave, stream, y, fg_bg[n])
            # An image of the same size as the one before it uses the same source offsets.
            if images[n, 0, 1]:
                if images[n, 0, 1] != wide or images[n, 0, 2] != high:
                    wide, high = images[n, 0, 1], images[n, 0, 2]
                    _source_offsets(matrices[n, 0], wide, high, y, offset, u, v)
                _fetch_rgb(images[n, 0, 0], wide, high, offset, top, low)
                _blend_rgb(top, low, u, v, rgb)
                _augment_row(rgb, colour[n], noise[n], place[n], table, normal[0], augment, y)
                _store_rgb_row(rgb, line, interleave, stream, y, bg[n])
            # Targets get neither colour change nor noise.
            if images[n, 2, 1]:
                if images[n, 2, 1] != wide or images[n, 2, 2] != high:
                    wide, high = images[n, 2, 1], images[n, 2, 2]
                    _source_offsets(matrices[n, 2], wide, high, y, offset, u, v)
                _fetch_gray(images[n, 2, 0], wide, offset, top2, low2)
                _blend_gray(top2, low2, u, v, _8, _BYTE, rgb[0])
                _apply_threshold(rgb[0], thresholds[n])
                _store_row(rgb[0], mask[n], width * y, stream)
            if images[n, 3, 1]:
                if images[n, 3, 1] != wide or images[n, 3, 2] != high:
                    wide, high = images[n, 3, 1], images[n, 3, 2]
                    _source_offsets(matrices[n, 3], wide, high, y, offset, u, v)
                if depth_bits == 8:
                    _fetch_gray(images[n, 3, 0], wide, offset, top2, low2)
                    if invalid < 0:
                        _blend_gray(top2, low2, u, v, _8, _BYTE, rgb[0])
                    else:
                        _blend_valid(top2, low2, u, v, _8, _BYTE, invalid, rgb[0], rgb[1])
                else:
                    _fetch_gray16(images[n, 3, 0], wide, offset, top2, low2)
                    if invalid < 0:
                        _blend_gray(top2, low2, u, v, _16, _WORD, rgb[0])
                    else:
                        _blend_valid(top2, low2, u, v, _16, _WORD, invalid, rgb[0], rgb[1])
                if invalid >= 0:
                    _store_row(rgb[1], valid[n], width * y, stream)
                _scale(rgb[0], gray_scale)
                _store_row(rgb[0], depth[n], width * y, stream)


@jit
def _source_offsets(matrix: Any, wide: int, high: int, y: int, offset: Any, u: Any, v: Any) -> None:
    """Compute a row's source offsets (upper left of four pixels) and the fractions beyond them."""
    ax, ay = matrix[0, 0], matrix[1, 0]
    row, half = _f(_f(y) + _f(0.5)), _f(0.5)
    bx = _f(matrix[0, 1] * row + matrix[0, 2] + half * ax - half)
    by = _f(matrix[1, 1] * row + matrix[1, 2] + half * ay - half)
    right, bottom = _f(wide - 1), _f(high - 1)
    last_x, last_y, stride = _i(wide - 2), _i(high - 2), _i(wide)
    for x in range(len(offset)):
        column = _f(_i(x))
        sx = _min(_max(ax * column + bx, _f(0)), right)
        sy = _min(_max(ay * column + by, _f(0)), bottom)
        ix, iy = _min(_i(sx), last_x), _min(_i(sy), last_y)
        u[x], v[x] = sx - _f(ix), sy - _f(iy)
        offset[x] = iy * stride + ix


@jit
def _fetch_rgb(image: int, wide: int, high: int, offset: Any, top: Any, low: Any) -> None:
    """Load two horizontal neighbours, in the low 48 bits, from the upper and the lower row."""
    row, last = 3 * wide, 3 * wide * high - 8
    for x in range(len(offset)):
        first = np.int64(offset[x]) * 3
        second = first + row
        # Last pixels of the image: load from before them and shift, so as not to read past the end.
        a, b = _min(first, last), _min(second, last)
        top[x] = load64(image + a) >> np.uint64((first - a) * 8)
        low[x] = load64(image + b) >> np.uint64((second - b) * 8)


@jit
def _fetch_gray(image: int, wide: int, offset: Any, top: Any, low: Any) -> None:
    for x in range(len(offset)):
        at = image + np.int64(offset[x])
        top[x], low[x] = load16(at), load16(at + wide)


@jit
def _fetch_gray16(image: int, wide: int, offset: Any, top: Any, low: Any) -> None:
    for x in range(len(offset)):
        at = image + 2 * np.int64(offset[x])
        top[x], low[x] = load32(at), load32(at + 2 * wide)


@jit
def _blend_rgb(top: Any, low: Any, u: Any, v: Any, rgb: Any) -> None:
    red, green, blue = rgb[0], rgb[1], rgb[2]
    for x in range(len(u)):
        a, b = _u(top[x]), _u(top[x] >> _24)
        c, d = _u(low[x]), _u(low[x] >> _24)
        p, q = u[x], v[x]
        red[x] = _bilinear(a & _BYTE, b & _BYTE, c & _BYTE, d & _BYTE, p, q)
        green[x] = _bilinear(
            a >> _8 & _BYTE, b >> _8 & _BYTE, c >> _8 & _BYTE, d >> _8 & _BYTE, p, q
        )
        blue[x] = _bilinear(
            a >> _16 & _BYTE, b >> _16 & _BYTE, c >> _16 & _BYTE, d >> _16 & _BYTE, p, q
        )


@jit
def _blend_gray(top: Any, low: Any, u: Any, v: Any, bits: Any, full: Any, out: Any) -> None:
    for x in range(len(u)):
        a, c = top[x], low[x]
        out[x] = _bilinear(a & full, a >> bits, c & full, c >> bits, u[x], v[x])


@jit
def _blend_valid(
    top: Any, low: Any, u: Any, v: Any, bits: Any, full: Any, invalid: int, out: Any, valid: Any
) -> None:
    """Interpolate between pixels other than ``invalid``; 0 if they have at most half the weight."""
    none = _u(invalid)
    for x in range(len(u)):
        a, b = top[x] & full, top[x] >> bits
        c, d = low[x] & full, low[x] >> bits
        p, q = u[x], v[x]
        left, right = (_f(1) - p) * (_f(1) - q), p * (_f(1) - q)
        under_left, under_right = (_f(1) - p) * q, p * q
        left = left if a != none else _f(0)
        right = right if b != none else _f(0)
        under_left = under_left if c != none else _f(0)
        under_right = under_right if d != none else _f(0)
        upper = left * _f(_i(a)) + right * _f(_i(b))
        lower = under_left * _f(_i(c)) + under_right * _f(_i(d))
        weight = (left + right) + (under_left + under_right)
        # Rounding must not lead beyond the full range.
        level = _min((upper + lower) / weight, _f(_i(full)))
        out[x] = level if weight > _f(0.5) else _f(0)
        valid[x] = _f(1) if weight > _f(0.5) else _f(0)


@jit
def _bilinear(a: Any, b: Any, c: Any, d: Any, u: Any, v: Any) -> Any:
    """Interpolate between a and b, and c and d below them, by u; between the two rows by v."""
    left, right = _f(_i(a)), _f(_i(b))
    upper = left + u * (right - left)
    left, right = _f(_i(c)), _f(_i(d))
    lower = left + u * (right - left)
    return upper + v * (lower - upper)


@jit
def _augment_row(
    rgb: Any, colour: Any, noise: Any, place: Any, table: Any, normal: Any, augment: bool, y: int
) -> None:
    """Process one row in place: if ``augment``, colour, noise and clip; then normalise."""
    red, green, blue = rgb[0], rgb[1], rgb[2]
    width = len(red)
    s0, s1, s2 = normal[0, 0], normal[0, 1], normal[0, 2]
    t0, t1, t2 = normal[1, 0], normal[1, 1], normal[1, 2]
    if not augment:
        for x in range(width):
            red[x] = red[x] * s0 + t0
        for x in range(width):
            green[x] = green[x] * s1 + t1
        for x in range(width):
            blue[x] = blue[x] * s2 + t2
        return
    row, column, strength = place[0] + y, place[1], noise * _UNIT
    grain0 = table[0, row, column : column + width]
    grain1 = table[1, row, column : column + width]
    grain2 = table[2, row, column : column + width]
    m00, m01, m02, m03 = colour[0, 0], colour[0, 1], colour[0, 2], colour[0, 3]
    m10, m11, m12, m13 = colour[1, 0], colour[1, 1], colour[1, 2], colour[1, 3]
    m20, m21, m22, m23 = colour[2, 0], colour[2, 1], colour[2, 2], colour[2, 3]
    for x in range(width):
        r, g, b = red[x], green[x], blue[x]
        p = m00 * r + m01 * g + m02 * b + m03 + strength * _f(grain0[x])
        q = m10 * r + m11 * g + m12 * b + m13 + strength * _f(grain1[x])
        w = m20 * r + m21 * g + m22 * b + m23 + strength * _f(grain2[x])
        red[x] = _min(_max(p, _f(0)), _f(255)) * s0 + t0
        green[x] = _min(_max(q, _f(0)), _f(255)) * s1 + t1
        blue[x] = _min(_max(w, _f(0)), _f(255)) * s2 + t2


@jit
def _store_rgb_row(rgb: Any, line: Any, interleave: bool, stream: bool, y: int, out: Any) -> None:
    """Write one finished RGB row to the output."""
    red, green, blue = rgb[0], rgb[1], rgb[2]
    width, area = len(red), len(out) // 3
    if interleave:
        for x in range(width):
            line[3 * x], line[3 * x + 1], line[3 * x + 2] = red[x], green[x], blue[x]
        _store_row(line, out, 3 * width * y, stream)
        return
    _store_row(red, out, width * y, stream)
    _store_row(green, out, area + width * y, stream)
    _store_row(blue, out, 2 * area + width * y, stream)


@jit
def _store_row(row: Any, out: Any, at: int, stream: bool) -> None:
    if stream:
        target, source = out.ctypes.data + 4 * at, row.ctypes.data
        for x in range(0, 4 * len(row), 64):
            stream16(target + x, source + x)
    else:
        out[at : at + len(row)] = row


@jit
def _apply_threshold(values: Any, threshold: Any) -> None:
    for x in range(len(values)):
        values[x] = _f(1) if values[x] >= threshold else _f(0)


@jit
def _scale(values: Any, scale: Any) -> None:
    for x in range(len(values)):
        values[x] = values[x] * scale
