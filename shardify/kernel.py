"""Plain samples from zip to tar, compiled: read, unpacked, checked and laid out in one pass.

It takes the samples of a task one after another, each through every check that ``extract`` and
``images`` make, into one block of a tar with its headers, and writes the index's lines beside it.
It stops before the first sample that is not plain in every respect, and refuses nothing: that
sample is left to the careful way, which says what is wrong with it, if anything is.

Raw deflate and CRC-32 are libdeflate's, found in the compiled part of the ``deflate`` package by
the names of its C interface; files are read by the C library's ``pread``. The first use compiles
(some seconds), later ones load what Numba keeps beside this file.

What is compiled trusts the shapes of its arguments, and nothing that was read: every length is
compared with the room that there is before it is used.

Importing raises ImportError where libdeflate is not to be found.

Sources: libdeflate.h; APPNOTE.TXT 4.3.7 (local headers); POSIX.1-1988 (USTAR).
"""

import ctypes
import importlib.util
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from numba import njit, types
from numba.core.types import ExternalFunction

__all__ = ["CHECKED", "LEFT", "TRUSTED", "Known", "Plan", "Room", "copy", "decompressor"]

TRUSTED, CHECKED, LEFT = 0, 1, 2
"""What to make of a sample's pictures: go by their names, look into them, leave all to others."""

_INFLATE, _CRC32 = "libdeflate_deflate_decompress_ex", "libdeflate_crc32"


def _library() -> ctypes.PyDLL:
    """libdeflate, its functions made known to the compiler."""
    try:
        found = importlib.util.find_spec("deflate._deflate")
        library = ctypes.PyDLL(found.origin if found else None)
        for name in (_INFLATE, _CRC32):
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            llvmlite.binding.add_symbol(name, address)
        library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
    except (ModuleNotFoundError, OSError, AttributeError) as error:
        raise ImportError(
            f"libdeflate is not to be found in the deflate package: {error}"
        ) from None
    return library


_deflate = _library()


def decompressor() -> int:
    """The address of a new decompressor, which lives as long as the process."""
    made = _deflate.libdeflate_alloc_decompressor()
    if not made:
        raise MemoryError
    return int(made)


class Plan(NamedTuple):
    """What a task says of its N samples in R roles. Bytes are uint8; all else is int64."""

    files: Any
    """Descriptors of the sources."""
    rows: Any
    """(N, R, 7): source, offset, bytes to read, packed size, size, CRC-32, method."""
    names: Any
    """The entries' names, end to end."""
    name_ends: Any
    """(N * R + 1,): where each ends, after a 0."""
    keys: Any
    """The samples' keys, end to end."""
    key_ends: Any
    """(N + 1,)"""
    extensions: Any
    """``.fg_bg.jpg``, ``.fg_bg.png`` and so on, two a role, and ``.bg.cls``, end to end."""
    extension_ends: Any
    """(2 * R + 2,)"""
    kinds: Any
    """(N, R): 0 JPEG, 1 PNG, by the entry's name; -1 another."""
    background: Any
    """(N,): its number, or -1."""
    handling: Any
    """(N,): TRUSTED, CHECKED or LEFT."""
    empty: Any
    """(512,) bytes: a tar header without name, size and sum, its sum's place all but blank."""


class Known(NamedTuple):
    """How pictures begin that were found whole and plain."""

    heads: Any
    """Their beginnings, end to end. Bytes."""
    places: Any
    """(K, 4) int64: role, kind, first byte in ``heads`` and end."""
    sorts: Any
    """(C, R) int64: which of them may stand together in a sample, one a role."""


class Room(NamedTuple):
    """Where it works."""

    scratch: Any
    """Bytes for one entry as it is read."""
    block: Any
    """Bytes for a piece of the tar."""
    text: Any
    """Bytes for the lines of that piece in the index."""
    sorts: Any
    """(N,) int64, written: which of ``Known.sorts`` a sample is; if it was trusted, -1 less the
    sum of kind << role."""
    found: Any
    """(R,) int64, for itself."""
    told: Any
    """(2,) int64, for itself."""
    machine: int
    """What ``decompressor`` gave."""


_word = types.intp
_inflate: Any = ExternalFunction(_INFLATE, types.int32(*[_word] * 7))
_crc32: Any = ExternalFunction(_CRC32, types.uint32(types.uint32, _word, _word))
_pread: Any = ExternalFunction("pread", _word(types.int32, _word, _word, types.int64))
_memcpy: Any = ExternalFunction("memcpy", _word(_word, _word, _word))
_memcmp: Any = ExternalFunction("memcmp", types.int32(_word, _word, _word))
_memchr: Any = ExternalFunction("memchr", _word(_word, types.int32, _word))

_jit = njit(cache=True, error_model="numpy")
# Any: what Numba makes of it is not what NumPy's stubs say.
_int: Any = np.int64

_HEAD = 30
_TAR = 512
_NAME = 100
_LINE = 300
"""More than a member takes in the index: its extension and its name, each under 100 bytes, and two
numbers."""
_BACKGROUNDS = 100_000
"""So many can be told by five digits."""
_SPACE, _NEWLINE, _ZERO, _FIVE = 32, 10, 48, 53


@_jit
def _at(data: Any, place: int) -> Any:
    """An address."""
    return _int(data.ctypes.data) + place


@_jit
def _little(data: Any, place: int, width: int) -> Any:
    value = 0
    for each in range(width):
        value |= _int(data[place + each]) << (8 * each)
    return value


@_jit
def _big(data: Any, place: int) -> Any:
    value = 0
    for each in range(4):
        value = value << 8 | _int(data[place + each])
    return value


@_jit
def _join(target: Any, place: int, source: Any, begin: int, end: int) -> Any:
    """Copy bytes. Returns where they end."""
    _memcpy(_at(target, place), _at(source, begin), end - begin)
    return place + end - begin


@_jit
def _decimal(target: Any, place: int, value: int) -> Any:
    """Write a number. Returns where it ends."""
    digits = 1
    rest = value // 10
    while rest:
        digits += 1
        rest //= 10
    for each in range(digits):
        target[place + digits - 1 - each] = _ZERO + value % 10
        value //= 10
    return place + digits


@_jit
def _octal(target: Any, place: int, value: int, width: int) -> None:
    for each in range(width):
        target[place + each] = _ZERO + (value >> 3 * (width - 1 - each) & 7)


@_jit
def _is_whole_jpeg(data: Any, scan: int, end: int) -> Any:
    """As in ``beginnings``: one scan, in which 0xFF stands before 0 only, and the end marker."""
    if end - 2 <= scan or data[end - 2] != 0xFF or data[end - 1] != 0xD9:
        return False
    place = scan
    while True:
        # The last but one is found, if no other is.
        place += _memchr(_at(data, place), 0xFF, end - 1 - place) - _at(data, place)
        if data[place + 1] != 0:
            return place == end - 2
        place += 1


@_jit
def _is_whole_png(data: Any, chunk: int, end: int) -> Any:
    """As in ``beginnings``: one chunk of pixels, with its checksum, and the end chunk."""
    size = end - chunk - 24
    return (
        size > 0
        and _big(data, chunk) == size
        and _big(data, chunk + 4) == 0x49444154  # IDAT
        and _big(data, end - 12) == 0
        and _big(data, end - 8) == 0x49454E44  # IEND
        and _big(data, end - 4) == 0xAE426082
        and _crc32(0, _at(data, chunk + 4), size + 4) == _big(data, end - 16)
    )


@_jit
def _recognised(known: Any, data: Any, begin: int, end: int, role: int, kind: int) -> Any:
    """Which known beginning a whole picture has; -1 if none, or if it is not whole."""
    for number in range(known.places.shape[0]):
        if known.places[number, 0] != role or known.places[number, 1] != kind:
            continue
        head = known.places[number, 2]
        length = known.places[number, 3] - head
        if length <= end - begin and not _memcmp(_at(data, begin), _at(known.heads, head), length):
            if kind == 0:
                whole = _is_whole_jpeg(data, begin + length, end)
            else:
                whole = _is_whole_png(data, begin + length, end)
            return number if whole else -1
    return -1


@_jit
def _unpacked(plan: Any, room: Any, number: int, role: int, place: int) -> Any:
    """Read an entry and unpack it to its place in the block, if all is as the directory says."""
    row = plan.rows[number, role]
    read, packed, size, method = row[2], row[3], row[4], row[6]
    entry = number * plan.rows.shape[1] + role
    name = plan.name_ends[entry]
    length = plan.name_ends[entry + 1] - name
    scratch = room.scratch
    if not _HEAD + length <= read <= scratch.size or not 0 <= packed <= read:
        return False
    got = _pread(plan.files[row[0]], _at(scratch, 0), read, row[1])
    if got < _HEAD + length:
        return False
    start = _HEAD + length + _little(scratch, 28, 2)
    if (
        start + packed > got
        or _big(scratch, 0) != 0x504B0304
        or scratch[6] & 1  # Encrypted.
        or _little(scratch, 8, 2) != method
        or _little(scratch, 18, 4) != packed
        or _little(scratch, 22, 4) != size
        or _little(scratch, 26, 2) != length
        or _memcmp(_at(scratch, _HEAD), _at(plan.names, name), length)
    ):
        return False
    source, target, told = _at(scratch, start), _at(room.block, place), room.told
    if method == 8:
        # There is room for what was stated alone, and both ends must be where they were stated.
        if (
            _inflate(room.machine, source, packed, target, size, _at(told, 0), _at(told, 0) + 8)
            or told[0] != packed
            or told[1] != size
        ):
            return False
    elif method == 0 and packed == size:
        _memcpy(target, source, size)
    else:
        return False
    return _crc32(0, target, size) == row[5]


@_jit
def _header(plan: Any, room: Any, number: int, extension: int, place: int, size: int) -> None:
    """Write a member's header, as ``TarWriter.add`` does."""
    block = room.block
    begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
    _join(block, place, plan.empty, 0, _TAR)
    stop = _join(block, place, plan.keys, plan.key_ends[number], plan.key_ends[number + 1])
    _join(block, stop, plan.extensions, begin, end)
    _octal(block, place + 124, size, 11)
    # The sum counts its own place as eight blanks; all but one of them stand there already.
    total = _SPACE
    for each in range(_TAR):
        total += _int(block[place + each])
    _octal(block, place + 148, total, 6)


@_jit
def _line(
    plan: Any, room: Any, number: int, extension: int, place: int, offset: int, size: int
) -> Any:
    """Write what the index tells of a member. Returns where that ends."""
    text = room.text
    begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
    place = _join(text, place, plan.extensions, begin + 1, end)
    text[place] = _SPACE
    place = _decimal(text, place + 1, offset)
    text[place] = _SPACE
    place = _decimal(text, place + 1, size)
    text[place] = _SPACE
    first, last = plan.key_ends[number], plan.key_ends[number + 1]
    place = _join(text, place + 1, plan.keys, first, last)
    return _join(text, place, plan.extensions, begin, end)


@_jit
def _need(plan: Any, number: int) -> Any:
    """Bytes that a sample may take in the block; -1 if it is not plain."""
    roles = plan.rows.shape[1]
    key = plan.key_ends[number + 1] - plan.key_ends[number]
    if plan.handling[number] == 2 or plan.background[number] >= _BACKGROUNDS:
        return -1
    need = 2 * _TAR
    for role in range(roles):
        kind, size = plan.kinds[number, role], plan.rows[number, role, 4]
        if kind < 0 or size < 0:
            return -1
        need += 2 * _TAR + size
    for each in range(2 * roles + 1):
        if key + plan.extension_ends[each + 1] - plan.extension_ends[each] > _NAME:
            return -1
    return need


@_jit
def _sample(
    plan: Any, known: Any, room: Any, number: int, filled: int, written: int, offset: int
) -> Any:
    """Lay one sample out. Returns where block and text end; (-1, -1) if it is not plain."""
    block, text, roles = room.block, room.text, plan.rows.shape[1]
    trusted = plan.handling[number] == 0
    sort = -1
    for role in range(roles):
        begin = filled + _TAR
        if not _unpacked(plan, room, number, role, begin):
            return -1, -1
        size, kind = plan.rows[number, role, 4], plan.kinds[number, role]
        end = begin + size
        if trusted:
            sort -= kind << role
        else:
            room.found[role] = _recognised(known, block, begin, end, role, kind)
        extension = 2 * role + kind
        _header(plan, room, number, extension, filled, size)
        if role:
            text[written] = _SPACE
            written += 1
        written = _line(plan, room, number, extension, written, offset + begin, size)
        filled = end + -end % _TAR
        block[end:filled] = 0
    if not trusted:
        for each in range(known.sorts.shape[0]):
            alike = True
            for role in range(roles):
                alike = alike and known.sorts[each, role] == room.found[role]
            if alike:
                sort = each
                break
        if sort < 0:
            return -1, -1
    room.sorts[number] = sort
    background = plan.background[number]
    if background >= 0:
        _header(plan, room, number, 2 * roles, filled, 5)
        begin = filled + _TAR
        filled = begin + _TAR
        block[begin:filled] = 0
        for each in range(5):
            block[begin + 4 - each] = _ZERO + background % 10
            background //= 10
        text[written] = _SPACE
        written = _line(plan, room, number, 2 * roles, written + 1, offset + begin, 5)
    text[written] = _NEWLINE
    return filled, written + 1


@_jit
def copy(plan: Any, known: Any, room: Any, first: int, offset: int) -> Any:
    """Lay plain samples out, from the ``first`` on.

    Args:
        plan: Of the task.
        known: What pictures are told by.
        room: Where they go.
        first: The sample to begin with.
        offset: Of the block in its tar; a multiple of 512. Bytes.

    Returns:
        The sample stopped before; bytes written to the block and to the text; whether it only
        stopped because they are full.
    """
    lines = _LINE * (plan.rows.shape[1] + 1)
    filled, written = 0, 0
    for number in range(first, plan.rows.shape[0]):
        need = _need(plan, number)
        if need < 0 or need > room.block.size or lines > room.text.size:
            return number, filled, written, False
        if filled + need > room.block.size or written + lines > room.text.size:
            return number, filled, written, True
        end, stop = _sample(plan, known, room, number, filled, written, offset)
        if end < 0:
            return number, filled, written, False
        filled, written = end, stop
    return plan.rows.shape[0], filled, written, False
