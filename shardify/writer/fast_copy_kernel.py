"""Copy unmodified samples from zip to tar, compiled by numba: the inner loop of ``fast_copy``.

One pass reads, inflates, checks (local header, sizes, CRC-32, image structure), and writes tar
headers and index lines. ``copy`` stops before the first sample that it cannot copy and reports no
error: that sample takes the checked path, which reports it.

Raw deflate and CRC-32 come from libdeflate; files are read by ``pread`` of the C library.
(libdeflate accepts some crafted streams that zlib refuses, such as oversubscribed codes. Size and
checksum of their payload still agree with the zip.) Numba checks types and shapes of the arrays.
Data that was read is not trusted: every length is compared with the buffer before it is used.

Numba caches the machine code beside this file's bytecode, or in the user's cache folder, and
considers it current while size and time of this file are unchanged. So all compiled functions and
their records are in this file, and it imports nothing from this package.

Raises ImportError without libdeflate, RuntimeError where numba finds no folder for its cache.

Sources: libdeflate.h; APPNOTE.TXT 4.3.7 (local headers); POSIX.1-1988 (USTAR).
"""

import ctypes
import importlib.util
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types
from numba.core.types import ExternalFunction
from numpy.typing import NDArray

TRUSTED, CHECKED, EXCLUDED = 0, 1, 2
"""Handling of a sample: kinds taken from names; images checked; not copied here."""

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


class CopyPlan(NamedTuple):
    """The N samples of a task in R roles."""

    files: Ints
    """Descriptors of the sources."""
    rows: Ints
    """(N, R, 7): source, offset, bytes to read, packed size, size, CRC-32, method."""
    names: Bytes
    """Names of the entries, concatenated."""
    name_ends: Ints
    """(N * R + 1,): the end of each, after a 0."""
    keys: Bytes
    """Keys of the samples, concatenated."""
    key_ends: Ints
    """(N + 1,)"""
    extensions: Bytes
    """``.fg_bg.jpg``, ``.fg_bg.png`` and so on, two a role, and ``.bg.cls``, concatenated."""
    extension_ends: Ints
    """(2 * R + 2,)"""
    kinds: Ints
    """(N, R): 0 JPEG, 1 PNG, by the entry's name; -1 another."""
    background: Ints
    """(N,): its number, or -1."""
    handling: Ints
    """(N,): TRUSTED, CHECKED or EXCLUDED."""
    tar_header: Bytes
    """(512,): ``tar_writer.HEADER_TEMPLATE``, a header without name, size and checksum."""


class KnownHeaders(NamedTuple):
    """Headers of complete images that need no conversion."""

    data: Bytes
    """The headers, concatenated."""
    spans: Ints
    """(K, 4): role, kind, first byte in ``data``, end."""
    header_sets: Ints
    """(C, R): headers that may stand together in a sample, one a role."""


class Buffers(NamedTuple):
    """Scratch and output arrays."""

    scratch: Bytes
    """One entry as it is read."""
    block: Bytes
    """Output: a piece of the tar."""
    text: Bytes
    """Output: the lines of that piece in the index."""
    matches: Ints
    """(N,), output: each sample's row of ``header_sets``; of a TRUSTED one, -1 less the sum of
    kind << role."""
    headers: Ints
    """(R,), scratch: the header of each image of a sample."""
    sizes: Ints
    """(2,), scratch: bytes that libdeflate consumed and produced."""
    decompressor: int
    """``DECOMPRESSOR``"""


def _load_libdeflate() -> int:
    """Register libdeflate's functions with LLVM by name. Returns the address of a decompressor.

    They are exported by the compiled module of the ``deflate`` package.
    """
    try:
        spec = importlib.util.find_spec("deflate._deflate")
        library = ctypes.PyDLL(spec.origin if spec else None)
        for name in (_INFLATE, _CRC32):
            llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        allocate = library.libdeflate_alloc_decompressor
    except (ModuleNotFoundError, OSError, AttributeError) as error:
        raise ImportError(f"no libdeflate in the deflate package: {error}") from None
    allocate.restype = ctypes.c_void_p
    decompressor: int | None = allocate()
    if decompressor is None:
        raise MemoryError
    return decompressor


_INFLATE, _CRC32 = "libdeflate_deflate_decompress_ex", "libdeflate_crc32"
DECOMPRESSOR = _load_libdeflate()
"""Address of libdeflate's state in this process; passed as an argument, because the cached machine
code outlives it."""

_word = types.intp
_inflate: Any = ExternalFunction(_INFLATE, types.int32(*[_word] * 7))
_crc32: Any = ExternalFunction(_CRC32, types.uint32(types.uint32, _word, _word))
_pread: Any = ExternalFunction("pread", _word(types.int32, _word, _word, types.int64))
_memcpy: Any = ExternalFunction("memcpy", _word(_word, _word, _word))
_memcmp: Any = ExternalFunction("memcmp", types.int32(_word, _word, _word))
_memchr: Any = ExternalFunction("memchr", _word(_word, types.int32, _word))

_jit = njit(error_model="numpy")
_cached_jit = njit(error_model="numpy", cache=True)
# Any: what numba makes of it is not what NumPy's stubs say.
_int64: Any = np.int64

_LOCAL_HEADER = 30
_TAR = 512
_MAX_NAME = 100
_MAX_LINE = 300
"""Upper bound for a member's part of an index line: extension and name, each under 100 bytes, and
two numbers."""
_MAX_BACKGROUNDS = 100_000
"""The number has five digits."""
_SPACE, _NEWLINE, _ZERO = 32, 10, 48


@_jit
def _address(data: Any, offset: int) -> Any:
    return _int64(data.ctypes.data) + offset


@_jit
def _little_endian(data: Any, offset: int, width: int) -> Any:
    value = 0
    for byte in range(width):
        value |= _int64(data[offset + byte]) << (8 * byte)
    return value


@_jit
def _big_endian(data: Any, offset: int) -> Any:
    """Read four bytes."""
    value = 0
    for byte in range(4):
        value = value << 8 | _int64(data[offset + byte])
    return value


@_jit
def _append(target: Any, offset: int, source: Any, begin: int, end: int) -> Any:
    """Copy bytes. Returns their end in the target."""
    _memcpy(_address(target, offset), _address(source, begin), end - begin)
    return offset + end - begin


@_jit
def _append_decimal(target: Any, offset: int, value: int) -> Any:
    """Write a number in decimal digits. Returns its end."""
    digits = 1
    rest = value // 10
    while rest:
        digits += 1
        rest //= 10
    for digit in range(digits):
        target[offset + digits - 1 - digit] = _ZERO + value % 10
        value //= 10
    return offset + digits


@_jit
def _write_octal(target: Any, offset: int, value: int, width: int) -> None:
    for digit in range(width):
        target[offset + digit] = _ZERO + (value >> 3 * (width - 1 - digit) & 7)


@_jit
def _is_whole_jpeg(data: Any, scan: int, end: int) -> Any:
    """Check for one scan, in which 0xFF stands before 0 only, and the end marker."""
    if end - 2 <= scan or data[end - 2] != 0xFF or data[end - 1] != 0xD9:
        return False
    offset = scan
    while True:
        # The 0xFF of the end marker is always found.
        start = _address(data, offset)
        offset += _memchr(start, 0xFF, end - 1 - offset) - start
        if data[offset + 1] != 0:
            return offset == end - 2
        offset += 1


@_jit
def _is_whole_png(data: Any, chunk: int, end: int) -> Any:
    """Check for one chunk of pixels, with its checksum, and the end chunk."""
    size = end - chunk - 24
    return (
        size > 0
        and _big_endian(data, chunk) == size
        and _big_endian(data, chunk + 4) == 0x49444154  # IDAT
        and _big_endian(data, end - 12) == 0
        and _big_endian(data, end - 8) == 0x49454E44  # IEND
        and _big_endian(data, end - 4) == 0xAE426082
        and _crc32(0, _address(data, chunk + 4), size + 4) == _big_endian(data, end - 16)
    )


@_cached_jit
def is_whole(data: Any, offset: int, end: int, kind: int) -> Any:
    """Check that only the payload lies between an image's header and its end marker.

    Args:
        data: uint8, with the image in it.
        offset: End of its header.
        end: End of the image.
        kind: 0 JPEG, 1 PNG.
    """
    if kind == 0:
        return _is_whole_jpeg(data, offset, end)
    return _is_whole_png(data, offset, end)


@_jit
def match_header(known: Any, data: Any, begin: int, end: int, role: int, kind: int) -> Any:
    """Return the number of the known header of a complete image; -1 if unknown or incomplete."""
    for number in range(known.spans.shape[0]):
        if known.spans[number, 0] != role or known.spans[number, 1] != kind:
            continue
        first = known.spans[number, 2]
        length = known.spans[number, 3] - first
        if length <= end - begin and not _memcmp(
            _address(data, begin), _address(known.data, first), length
        ):
            return number if is_whole(data, begin + length, end, kind) else -1
    return -1


@_jit
def _extract(plan: Any, buffers: Any, number: int, role: int, offset: int) -> Any:
    """Read an entry and inflate it into the block. Returns whether it agrees with the directory."""
    row = plan.rows[number, role]
    read, packed, size, method = row[2], row[3], row[4], row[6]
    entry = number * plan.rows.shape[1] + role
    name = plan.name_ends[entry]
    length = plan.name_ends[entry + 1] - name
    scratch = buffers.scratch
    if not _LOCAL_HEADER + length <= read <= scratch.size or not 0 <= packed <= read:
        return False
    length_read = _pread(plan.files[row[0]], _address(scratch, 0), read, row[1])
    if length_read < _LOCAL_HEADER + length:
        return False
    start = _LOCAL_HEADER + length + _little_endian(scratch, 28, 2)
    if (
        start + packed > length_read
        or _big_endian(scratch, 0) != 0x504B0304
        or scratch[6] & 1  # Encrypted.
        or _little_endian(scratch, 8, 2) != method
        or _little_endian(scratch, 18, 4) != packed
        or _little_endian(scratch, 22, 4) != size
        or _little_endian(scratch, 26, 2) != length
        or _memcmp(_address(scratch, _LOCAL_HEADER), _address(plan.names, name), length)
    ):
        return False
    source, target = _address(scratch, start), _address(buffers.block, offset)
    if method == 8:
        # The output is limited to the stated size, and both sizes must be as stated.
        consumed = _address(buffers.sizes, 0)
        if (
            _inflate(buffers.decompressor, source, packed, target, size, consumed, consumed + 8)
            or buffers.sizes[0] != packed
            or buffers.sizes[1] != size
        ):
            return False
    elif method == 0 and packed == size:
        _memcpy(target, source, size)
    else:
        return False
    return _crc32(0, target, size) == row[5]


@_jit
def _write_header(
    plan: Any, block: Any, number: int, extension: int, offset: int, size: int
) -> None:
    """Write a member's tar header, as ``TarWriter.add`` does."""
    begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
    _append(block, offset, plan.tar_header, 0, _TAR)
    stop = _append(block, offset, plan.keys, plan.key_ends[number], plan.key_ends[number + 1])
    _append(block, stop, plan.extensions, begin, end)
    _write_octal(block, offset + 124, size, 11)
    # The checksum counts its own field as eight spaces; the template holds seven of them.
    total = _SPACE
    for byte in range(_TAR):
        total += _int64(block[offset + byte])
    _write_octal(block, offset + 148, total, 6)


@_jit
def _write_index(
    plan: Any, text: Any, number: int, extension: int, written: int, offset: int, size: int
) -> Any:
    """Write a member's part of an index line. Returns its end."""
    begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
    written = _append(text, written, plan.extensions, begin + 1, end)
    text[written] = _SPACE
    written = _append_decimal(text, written + 1, offset)
    text[written] = _SPACE
    written = _append_decimal(text, written + 1, size)
    text[written] = _SPACE
    first, last = plan.key_ends[number], plan.key_ends[number + 1]
    written = _append(text, written + 1, plan.keys, first, last)
    return _append(text, written, plan.extensions, begin, end)


@_jit
def _max_bytes(plan: Any, number: int, max_bytes: int) -> Any:
    """Return the maximum bytes of a sample in the block; -1 if it cannot be copied."""
    roles = plan.rows.shape[1]
    key = plan.key_ends[number + 1] - plan.key_ends[number]
    if plan.handling[number] == EXCLUDED or plan.background[number] >= _MAX_BACKGROUNDS:
        return -1
    needed = 2 * _TAR
    for role in range(roles):
        kind, size = plan.kinds[number, role], plan.rows[number, role, 4]
        # A larger one does not fit, and a few of them could overflow to a small sum.
        if kind < 0 or not 0 <= size <= max_bytes:
            return -1
        needed += 2 * _TAR + size
    for extension in range(2 * roles + 1):
        begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
        if key + end - begin > _MAX_NAME:
            return -1
    return needed


@_jit
def _copy_sample(
    plan: Any, known: Any, buffers: Any, number: int, filled: int, written: int, offset: int
) -> Any:
    """Copy one sample. Returns the new ends of block and text; (-1, -1) if it cannot be copied."""
    block, text, roles = buffers.block, buffers.text, plan.rows.shape[1]
    trusted = plan.handling[number] == TRUSTED
    match = -1
    for role in range(roles):
        begin = filled + _TAR
        if not _extract(plan, buffers, number, role, begin):
            return -1, -1
        size, kind = plan.rows[number, role, 4], plan.kinds[number, role]
        end = begin + size
        if trusted:
            match -= kind << role
        else:
            buffers.headers[role] = match_header(known, block, begin, end, role, kind)
        extension = 2 * role + kind
        _write_header(plan, block, number, extension, filled, size)
        if role:
            text[written] = _SPACE
            written += 1
        written = _write_index(plan, text, number, extension, written, offset + begin, size)
        filled = end + -end % _TAR
        block[end:filled] = 0
    if not trusted:
        for row in range(known.header_sets.shape[0]):
            equal = True
            for role in range(roles):
                equal = equal and known.header_sets[row, role] == buffers.headers[role]
            if equal:
                match = row
                break
        if match < 0:
            return -1, -1
    buffers.matches[number] = match
    background = plan.background[number]
    if background >= 0:
        _write_header(plan, block, number, 2 * roles, filled, 5)
        begin = filled + _TAR
        filled = begin + _TAR
        block[begin:filled] = 0
        for digit in range(5):
            block[begin + 4 - digit] = _ZERO + background % 10
            background //= 10
        text[written] = _SPACE
        written = _write_index(plan, text, number, 2 * roles, written + 1, offset + begin, 5)
    text[written] = _NEWLINE
    return filled, written + 1


@_cached_jit
def copy(plan: Any, known: Any, buffers: Any, first: int, offset: int) -> Any:
    """Copy samples into the block and the text, until one cannot be copied or they are full.

    Args:
        plan: The task.
        known: Image headers to recognise.
        buffers: Scratch and output arrays.
        first: Number of the first sample.
        offset: Offset of the block in its tar, a multiple of 512. Bytes.

    Returns:
        Number of the first sample not copied; bytes written to the block and to the text; whether
        it stopped only because they are full.
    """
    number, filled, written = first, 0, 0
    line = _MAX_LINE * (plan.rows.shape[1] + 1)
    while number < plan.rows.shape[0]:
        needed = _max_bytes(plan, number, buffers.block.size)
        if needed < 0 or needed > buffers.block.size or line > buffers.text.size:
            break
        # Cannot happen with the first sample.
        if filled + needed > buffers.block.size or written + line > buffers.text.size:
            return number, filled, written, True
        end, stop = _copy_sample(plan, known, buffers, number, filled, written, offset)
        if end < 0:
            break
        filled, written = end, stop
        number += 1
    return number, filled, written, False
