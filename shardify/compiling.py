"""``kernel`` as machine code: the way in from addresses, and its making.

Imported to compile; what it makes is kept and called by ``machine``.
"""

from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from shardify.bytework import jit
from shardify.handover import WORDS, Known, Plan, Room
from shardify.kernel import copy

__all__ = ["compiled"]

_ARRAYS = len(Plan._fields) + len(Known._fields) + len(Room._fields)


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


@jit
def _bytes(words: Any, number: int) -> Any:
    word = words[WORDS * number :]
    return carray(_bytes_at(word[0]), (word[1],))


@jit
def _ints(words: Any, number: int) -> Any:
    word = words[WORDS * number :]
    return carray(_ints_at(word[0]), (word[1],))


@jit
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
    copy(plan, known, room)
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
