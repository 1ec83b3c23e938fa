"""Bytes in arrays and at addresses, for compiled code: numbers, copies, and what C libraries offer.

Nothing here looks where it reads or writes; that is for ``kernel``, which calls it.

Raises ImportError where libdeflate is not to be found.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.core.types import ExternalFunction

from shardify.machine import CRC32, INFLATE, open_library

__all__ = [
    "at",
    "big",
    "crc32",
    "decimal",
    "inflate",
    "int64",
    "jit",
    "join",
    "little",
    "memchr",
    "memcmp",
    "memcpy",
    "octal",
    "pread",
]

open_library()

_word = types.intp
inflate: Any = ExternalFunction(INFLATE, types.int32(*[_word] * 7))
crc32: Any = ExternalFunction(CRC32, types.uint32(types.uint32, _word, _word))
pread: Any = ExternalFunction("pread", _word(types.int32, _word, _word, types.int64))
memcpy: Any = ExternalFunction("memcpy", _word(_word, _word, _word))
memcmp: Any = ExternalFunction("memcmp", types.int32(_word, _word, _word))
memchr: Any = ExternalFunction("memchr", _word(_word, types.int32, _word))

jit = njit(error_model="numpy")
# Any: what Numba makes of it is not what NumPy's stubs say.
int64: Any = np.int64

_ZERO = 48


@jit
def at(data: Any, place: int) -> Any:
    """An address."""
    return int64(data.ctypes.data) + place


@jit
def little(data: Any, place: int, width: int) -> Any:
    """A little-endian number of so many bytes."""
    value = 0
    for each in range(width):
        value |= int64(data[place + each]) << (8 * each)
    return value


@jit
def big(data: Any, place: int) -> Any:
    """A big-endian number of four bytes."""
    value = 0
    for each in range(4):
        value = value << 8 | int64(data[place + each])
    return value


@jit
def join(target: Any, place: int, source: Any, begin: int, end: int) -> Any:
    """Copy bytes. Returns where they end."""
    memcpy(at(target, place), at(source, begin), end - begin)
    return place + end - begin


@jit
def decimal(target: Any, place: int, value: int) -> Any:
    """Write a number in decimal digits. Returns where it ends."""
    digits = 1
    rest = value // 10
    while rest:
        digits += 1
        rest //= 10
    for each in range(digits):
        target[place + digits - 1 - each] = _ZERO + value % 10
        value //= 10
    return place + digits


@jit
def octal(target: Any, place: int, value: int, width: int) -> None:
    """Write a number in so many octal digits."""
    for each in range(width):
        target[place + each] = _ZERO + (value >> 3 * (width - 1 - each) & 7)
