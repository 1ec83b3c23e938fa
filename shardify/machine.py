"""The compiled part of a build, kept as machine code: loaded and called without its compiler.

``kernel`` is its source and says what it does; compiling takes some seconds, importing the
compiler a third of one, loading what it made a few hundredths. What was compiled lies beside this
file's own bytecode, under a name that tells for which processor, which compiler and which source.
"""

import ctypes
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from shardify.files import TEMPORARY
from shardify.handover import Known, Plan, Room, words_of

__all__ = ["CRC32", "INFLATE", "Machine", "keep", "kept_at", "load", "open_library"]

INFLATE, CRC32 = "libdeflate_deflate_decompress_ex", "libdeflate_crc32"


class Machine:
    """The compiled part, in this process.

    Args:
        code: What ``compiling`` made.

    Raises:
        ImportError: libdeflate is not to be found.
        ValueError: It is no such code.
    """

    def __init__(self, code: bytes) -> None:
        head, _, binary = code.partition(b"\n")
        symbol, *needed = head.decode().split()
        self._library = open_library()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        abort = _address(ctypes.CDLL(None).abort)
        for name in needed:
            # The compiler's own functions, for errors that this code does not raise.
            if llvm.address_of_symbol(name) is None:
                llvm.add_symbol(name, abort)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(binary))
        self._engine.finalize_object()
        found = self._engine.get_function_address(symbol)
        if not found:
            raise ValueError(f"no {symbol} in it")
        self._copy = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(found)
        self._decompressor = self._library.libdeflate_alloc_decompressor()
        if not self._decompressor:
            raise MemoryError

    def copy(
        self, plan: Plan, known: Known, room: Room, first: int, offset: int
    ) -> tuple[int, int, int, bool]:
        """Lay plain samples out, from the ``first`` on.

        Args:
            plan: Of the task.
            known: What pictures are told by.
            room: Where they go.
            first: The sample to begin with.
            offset: Of the block in its tar. Bytes.

        Returns:
            The sample stopped before; bytes written to the block and to the text; whether it only
            stopped because they are full.

        Raises:
            ValueError: An array is of another type or shape than it says above.
        """
        room.told[:3] = first, offset, self._decompressor
        words = words_of(plan, known, room)
        self._copy(words.ctypes.data)
        number, filled, written, full = room.told.tolist()
        return number, filled, written, bool(full)


def load() -> Machine | None:
    """What was kept, if it is there and whole.

    Raises:
        ImportError: libdeflate is not to be found.
    """
    try:
        digest, _, code = kept_at().read_bytes().partition(b"\n")
    except OSError:
        return None
    return Machine(code) if digest == hashlib.sha256(code).hexdigest().encode() else None


def keep(code: bytes) -> None:
    """Keep what ``compiling`` made. Raises OSError."""
    place = kept_at()
    place.parent.mkdir(exist_ok=True)
    # A name of its own: others may be compiling as well.
    temporary = place.with_name(f"{place.name}.{os.getpid()}{TEMPORARY}")
    try:
        temporary.write_bytes(f"{hashlib.sha256(code).hexdigest()}\n".encode() + code)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def kept_at() -> Path:
    """Where what is compiled of this source, for this processor, by this compiler is kept."""
    here = Path(__file__).parent
    told = hashlib.sha256()
    for name in ("kernel.py", "bytework.py", "compiling.py", "handover.py"):
        told.update((here / name).read_bytes())
    told.update(f"{llvmlite.__version__} {llvm.get_host_cpu_name()} ".encode())
    told.update(llvm.get_host_cpu_features().flatten().encode())
    name = f"kernel.{sys.implementation.cache_tag}-{told.hexdigest()[:16]}.code"
    return here / "__pycache__" / name


def open_library() -> ctypes.PyDLL:
    """libdeflate, in the compiled part of the ``deflate`` package, made known to LLVM.

    Raises:
        ImportError: It is not to be found, or hides its functions.
    """
    try:
        found = importlib.util.find_spec("deflate._deflate")
        library = ctypes.PyDLL(found.origin if found else None)
        for name in (INFLATE, CRC32):
            llvm.add_symbol(name, _address(getattr(library, name)))
        library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
    except (ModuleNotFoundError, OSError, AttributeError) as error:
        raise ImportError(f"no libdeflate in the deflate package: {error}") from None
    return library


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
