"""Plain samples from zip to tar, compiled: read, unpacked, checked and laid out in one pass.

It takes the samples of a task one after another, each through every check that ``extract`` and
``images`` make, into one block of a tar with its headers, and writes the index's lines beside it.
It stops before the first sample that is not plain in every respect, and refuses nothing: that
sample is left to the careful way, which says what is wrong with it, if anything is.

Raw deflate and CRC-32 are libdeflate's; files are read by the C library's ``pread``. (libdeflate
takes some crafted streams that zlib refuses, such as those with codes that their tables have no
room for. By size and checksum their payload is what the zip promises.) ``handover`` says what the
arrays hold; their types and shapes are trusted here, and nothing that was read: every length is
compared with the room that there is before it is used.

This module is imported to compile, and by tests; a build loads what was compiled by ``machine``.

Sources: libdeflate.h; APPNOTE.TXT 4.3.7 (local headers); POSIX.1-1988 (USTAR).
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import cfunc, njit, types
from numba.core.types import ExternalFunction
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from shardify.handover import WORDS, Known, Plan, Room
from shardify.machine import CRC32, INFLATE, open_library

__all__ = ["compiled"]

open_library()

_word = types.intp
_inflate: Any = ExternalFunction(INFLATE, types.int32(*[_word] * 7))
_crc32: Any = ExternalFunction(CRC32, types.uint32(types.uint32, _word, _word))
_pread: Any = ExternalFunction("pread", _word(types.int32, _word, _word, types.int64))
_memcpy: Any = ExternalFunction("memcpy", _word(_word, _word, _word))
_memcmp: Any = ExternalFunction("memcmp", types.int32(_word, _word, _word))
_memchr: Any = ExternalFunction("memchr", _word(_word, types.int32, _word))

_jit = njit(error_model="numpy")
# Any: what Numba makes of it is not what NumPy's stubs say.
_int: Any = np.int64

_ARRAYS = len(Plan._fields) + len(Known._fields) + len(Room._fields)

_HEAD = 30
_TAR = 512
_NAME = 100
_LINE = 300
"""More than a member takes in the index: its extension and its name, each under 100 bytes, and two
numbers."""
_BACKGROUNDS = 100_000
"""So many can be told by five digits."""
_SPACE, _NEWLINE, _ZERO = 32, 10, 48


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
            _inflate(told[2], source, packed, target, size, _at(told, 0), _at(told, 0) + 8)
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
    _join(block, place, plan.nameless, 0, _TAR)
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
def _need(plan: Any, number: int, most: int) -> Any:
    """Bytes that a sample may take in the block; -1 if it is not plain."""
    roles = plan.rows.shape[1]
    key = plan.key_ends[number + 1] - plan.key_ends[number]
    if plan.handling[number] == 2 or plan.background[number] >= _BACKGROUNDS:
        return -1
    need = 2 * _TAR
    for role in range(roles):
        kind, size = plan.kinds[number, role], plan.rows[number, role, 4]
        # A larger one does not fit, and a few of them could make a sum that seems small.
        if kind < 0 or not 0 <= size <= most:
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
def _copy(plan: Any, known: Any, room: Any) -> Any:
    """Lay plain samples out, as ``Machine.copy`` says."""
    told = room.told
    lines = _LINE * (plan.rows.shape[1] + 1)
    number, offset, filled, written, full = told[0], told[1], 0, 0, False
    while number < plan.rows.shape[0]:
        need = _need(plan, number, room.block.size)
        if need < 0 or need > room.block.size or lines > room.text.size:
            break
        # Never so of the first.
        full = filled + need > room.block.size or written + lines > room.text.size
        if full:
            break
        end, stop = _sample(plan, known, room, number, filled, written, offset)
        if end < 0:
            break
        filled, written = end, stop
        number += 1
    told[0], told[1], told[2], told[3] = number, filled, written, full


def _address_of(kind: Any) -> Any:
    """An intrinsic that takes a number as the address of such items."""
    pointer = _pointer(kind)

    @intrinsic
    def address_of(_context: Any, _number: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(pointer))

        return pointer(types.int64), generate

    return address_of


_pointer: Any = types.CPointer
_bytes_at, _ints_at = _address_of(types.uint8), _address_of(types.int64)


@_jit
def _bytes(words: Any, number: int) -> Any:
    word = words[WORDS * number :]
    return carray(_bytes_at(word[0]), (word[1],))


@_jit
def _ints(words: Any, number: int) -> Any:
    word = words[WORDS * number :]
    return carray(_ints_at(word[0]), (word[1],))


@_jit
def _table(words: Any, number: int) -> Any:
    word = words[WORDS * number :]
    return carray(_ints_at(word[0]), (word[1], word[2]))


def _enter(address: Any) -> int:
    """The way in, from the words that ``handover`` makes of all arrays, in their order."""
    words = carray(address, (WORDS * _ARRAYS,))
    rows = words[WORDS:]
    plan = Plan(
        _ints(words, 0),
        carray(_ints_at(rows[0]), (rows[1], rows[2], rows[3])),
        _bytes(words, 2),
        _ints(words, 3),
        _bytes(words, 4),
        _ints(words, 5),
        _bytes(words, 6),
        _ints(words, 7),
        _table(words, 8),
        _ints(words, 9),
        _ints(words, 10),
        _bytes(words, 11),
    )
    known = Known(_bytes(words, 12), _table(words, 13), _table(words, 14))
    room = Room(
        _bytes(words, 15),
        _bytes(words, 16),
        _bytes(words, 17),
        _ints(words, 18),
        _ints(words, 19),
        _ints(words, 20),
    )
    _copy(plan, known, room)
    return 0


def compiled() -> bytes:
    """Machine code for this processor, after a line with its name and those that it calls."""
    entry: Any = cfunc(types.int64(_pointer(types.int64)), error_model="numpy")(_enter)
    module = llvm.parse_assembly(entry.inspect_llvm())
    called = [each.name for each in module.functions if each.is_declaration]
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )
    needed = [name for name in called if not name.startswith("llvm.")]
    names = " ".join([entry.native_name, *needed])
    code: bytes = machine.emit_object(module)
    return names.encode() + b"\n" + code
