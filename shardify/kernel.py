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

from shardify.bytework import (
    at,
    big,
    crc32,
    decimal,
    inflate,
    int64,
    jit,
    join,
    little,
    memchr,
    memcmp,
    memcpy,
    octal,
    pread,
)

__all__ = ["copy", "recognised"]

_HEAD = 30
_TAR = 512
_NAME = 100
_LINE = 300
"""More than a member takes in the index: its extension and its name, each under 100 bytes, and two
numbers."""
_BACKGROUNDS = 100_000
"""So many can be told by five digits."""
_SPACE, _NEWLINE, _ZERO = 32, 10, 48


@jit
def _is_whole_jpeg(data: Any, scan: int, end: int) -> Any:
    """As in ``beginnings``: one scan, in which 0xFF stands before 0 only, and the end marker."""
    if end - 2 <= scan or data[end - 2] != 0xFF or data[end - 1] != 0xD9:
        return False
    place = scan
    while True:
        # The last but one is found, if no other is.
        place += memchr(at(data, place), 0xFF, end - 1 - place) - at(data, place)
        if data[place + 1] != 0:
            return place == end - 2
        place += 1


@jit
def _is_whole_png(data: Any, chunk: int, end: int) -> Any:
    """As in ``beginnings``: one chunk of pixels, with its checksum, and the end chunk."""
    size = end - chunk - 24
    return (
        size > 0
        and big(data, chunk) == size
        and big(data, chunk + 4) == 0x49444154  # IDAT
        and big(data, end - 12) == 0
        and big(data, end - 8) == 0x49454E44  # IEND
        and big(data, end - 4) == 0xAE426082
        and crc32(0, at(data, chunk + 4), size + 4) == big(data, end - 16)
    )


@jit
def recognised(known: Any, data: Any, begin: int, end: int, role: int, kind: int) -> Any:
    """Which known beginning a whole picture has; -1 if none, or if it is not whole."""
    for number in range(known.places.shape[0]):
        if known.places[number, 0] != role or known.places[number, 1] != kind:
            continue
        head = known.places[number, 2]
        length = known.places[number, 3] - head
        if length <= end - begin and not memcmp(at(data, begin), at(known.heads, head), length):
            if kind == 0:
                whole = _is_whole_jpeg(data, begin + length, end)
            else:
                whole = _is_whole_png(data, begin + length, end)
            return number if whole else -1
    return -1


@jit
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
    got = pread(plan.files[row[0]], at(scratch, 0), read, row[1])
    if got < _HEAD + length:
        return False
    start = _HEAD + length + little(scratch, 28, 2)
    if (
        start + packed > got
        or big(scratch, 0) != 0x504B0304
        or scratch[6] & 1  # Encrypted.
        or little(scratch, 8, 2) != method
        or little(scratch, 18, 4) != packed
        or little(scratch, 22, 4) != size
        or little(scratch, 26, 2) != length
        or memcmp(at(scratch, _HEAD), at(plan.names, name), length)
    ):
        return False
    source, target, told = at(scratch, start), at(room.block, place), room.told
    if method == 8:
        # There is room for what was stated alone, and both ends must be where they were stated.
        if (
            inflate(told[2], source, packed, target, size, at(told, 0), at(told, 0) + 8)
            or told[0] != packed
            or told[1] != size
        ):
            return False
    elif method == 0 and packed == size:
        memcpy(target, source, size)
    else:
        return False
    return crc32(0, target, size) == row[5]


@jit
def _header(plan: Any, room: Any, number: int, extension: int, place: int, size: int) -> None:
    """Write a member's header, as ``TarWriter.add`` does."""
    block = room.block
    begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
    join(block, place, plan.nameless, 0, _TAR)
    stop = join(block, place, plan.keys, plan.key_ends[number], plan.key_ends[number + 1])
    join(block, stop, plan.extensions, begin, end)
    octal(block, place + 124, size, 11)
    # The sum counts its own place as eight blanks; all but one of them stand there already.
    total = _SPACE
    for each in range(_TAR):
        total += int64(block[place + each])
    octal(block, place + 148, total, 6)


@jit
def _line(
    plan: Any, room: Any, number: int, extension: int, place: int, offset: int, size: int
) -> Any:
    """Write what the index tells of a member. Returns where that ends."""
    text = room.text
    begin, end = plan.extension_ends[extension], plan.extension_ends[extension + 1]
    place = join(text, place, plan.extensions, begin + 1, end)
    text[place] = _SPACE
    place = decimal(text, place + 1, offset)
    text[place] = _SPACE
    place = decimal(text, place + 1, size)
    text[place] = _SPACE
    first, last = plan.key_ends[number], plan.key_ends[number + 1]
    place = join(text, place + 1, plan.keys, first, last)
    return join(text, place, plan.extensions, begin, end)


@jit
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


@jit
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
            room.found[role] = recognised(known, block, begin, end, role, kind)
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


@jit
def copy(plan: Any, known: Any, room: Any) -> Any:
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
