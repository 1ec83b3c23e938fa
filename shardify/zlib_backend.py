"""Raw deflate and CRC-32, by ISA-L if installed, else by Python's zlib.

Both give the same bytes at different speeds, and refuse the same damaged data, except for some
crafted deflate codes that only one of them accepts.
"""

import zlib
from collections.abc import Callable
from typing import Any

_fast: Any
try:
    from isal import isal_zlib as _fast
except ImportError:
    _fast = None

_library: Any = zlib if _fast is None else _fast

FAST: bool = _fast is not None
"""Whether ISA-L is used."""

ERRORS: tuple[type[Exception], ...] = (zlib.error,) if _fast is None else (_fast.error, zlib.error)
"""Exceptions that damaged data raise."""

crc32: Callable[[bytes], int] = _library.crc32
"""As ``zlib.crc32``."""

decompressobj: Callable[[int], "zlib._Decompress"] = _library.decompressobj
"""As ``zlib.decompressobj``; -15 for deflate without a header."""
