"""Copy many unmodified samples at once from zip to tar, with the compiled ``kernel``.

Most samples of most data sets are plain: deflated entries of one file, each with the local header
that the directory promises, each an image whose header was seen before. In a process that has
called ``load``, those are copied many at a time. Nothing is refused here: what is not plain in
every respect, and everything in other processes, takes the checked path of ``writer``, which gives
the same bytes (and refuses some crafted streams that libdeflate inflates to what the zip promises).

An encoder gives all images of one size and quality the same header and the same tables. So a
header is learned from each new kind of image that ``images`` has parsed, and of the images that
begin with it, only the payload is left to check.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardify.images.parser import ImageInfo
from shardify.images.pixels import STANDARD, is_standard, same_aspect
from shardify.sources.catalog import ENTRY_DTYPE
from shardify.storage.readers import ReadHandle
from shardify.writer.tar_writer import NAMELESS, TarWriter
from shardify.writer.tasks import ShardTask

if TYPE_CHECKING:  # Importing it imports numba, which takes a quarter of a second.
    from shardify.writer.fast_copy_kernel import Buffers, CopyPlan, KnownHeaders

__all__ = ["BY_NAME", "CopyResult", "FastCopier", "header_length", "load"]

BY_NAME = {b"jpg": "jpg", b"jpeg": "jpg", b"png": "png"}
"""Kinds by the extension of a name, where nothing is to be checked."""

_KINDS = ("jpg", "png")
_KIND_NUMBERS = {end: _KINDS.index(kind) for end, kind in BY_NAME.items()}
_MAX_EXTENSION = 1 + max(map(len, BY_NAME))

_LOCAL_HEADER = 30
_SLACK = 64
_BLOCK = 1 << 20
"""Small enough to stay in a processor's cache from inflating over hashing to writing. What is
larger takes the checked path. Bytes."""
_TEXT = 1 << 18
_IHDR = 33
"""Signature and header chunk of a PNG. Bytes."""
_MAX_HEADERS, _MAX_HEADER_SETS = 96, 96
_MAX_PAUSE = 63
"""Most samples that are not tried after some that could not be copied."""

_copy: Callable[..., tuple[int, int, int, bool]] | None = None


def load() -> None:
    """Load the compiled function, for this process and those that it forks.

    It is compiled, in some ten seconds, where numba's cache does not have it.

    Raises:
        ImportError: numba or libdeflate is missing.
        RuntimeError: No folder can be written that would keep what is compiled.
    """
    global _copy
    from shardify.writer import fast_copy_kernel

    task = ShardTask(
        out="", name="", sources=[], roles=("",), keys=[], names=b"", name_ends=np.zeros(1, int),
        rows=np.empty((0, 1), ENTRY_DTYPE), background=[], measured=[], verify="", meaning=STANDARD,
        variants=(),
    )  # fmt: skip
    # The first call with arrays of these types loads or compiles.
    fast_copy_kernel.copy(
        _make_plan(task, [], ()), _make_known({}, [], 1), _make_buffers(0, 1), 0, 0
    )
    fast_copy_kernel.is_whole(_bytes(b""), 0, 0, 0)
    # Arrays of other types are a TypeError from now on, not seconds in the compiler.
    fast_copy_kernel.copy.disable_compile()
    _copy = fast_copy_kernel.copy


def header_length(data: bytes, picture: ImageInfo) -> int:
    """Return how many bytes precede the payload of an image, for a process that called ``load``.

    Args:
        data: A whole image.
        picture: The result of ``images.parse``.

    Returns:
        0 where there is more than one header, payload and end marker, such as another scan, a
        palette, or bytes behind the end: then the header does not tell that others are whole.
    """
    from shardify.writer.fast_copy_kernel import is_whole

    if picture.kind not in _KINDS:
        return 0
    length = _scan_offset(data) if picture.kind == "jpg" else _IHDR
    return length if is_whole(_bytes(data), length, len(data), _KINDS.index(picture.kind)) else 0


class CopyResult(NamedTuple):
    """Samples that were appended to a tar."""

    stop: int
    """The sample stopped before."""
    text: bytes
    """Their lines in the index."""
    counts: Counter[tuple[ImageInfo, ...]]
    """Images of a sample, one a role -> samples."""


class FastCopier:
    """Copies the plain samples of one task.

    Args:
        task: The task.
        handles: Its sources, open.
    """

    def __init__(self, task: ShardTask, handles: Sequence[ReadHandle]) -> None:
        self._task = task
        self._handles = handles
        self.able = (
            _copy is not None
            and all(isinstance(each, int) for each in handles)
            and len(task.variants) == 1
            and task.variants[0].unchanged
            and task.verify != "decode"
            and task.meaning.mask == "threshold"
        )
        """Whether plain samples will be copied: they are stored as they lie in local files."""
        self._excluded: set[int] = set()
        self._headers: dict[tuple[int, int, bytes], int] = {}
        """(role, kind, bytes) -> number."""
        self._header_sets: dict[tuple[int, ...], tuple[ImageInfo, ...]] = {}
        self._known: KnownHeaders | None = None
        self._plan: CopyPlan | None = None
        self._buffers: Buffers | None = None
        self._wait = self._pause = 0

    def exclude(self, numbers: Iterable[int]) -> None:
        """Leave samples of the task to the checked path. Call it before ``copy``."""
        self._excluded.update(numbers)

    def learn_header(self, found: Sequence[tuple[str, bytes, ImageInfo]]) -> None:
        """Learn the image headers of a sample that passed all checks.

        Args:
            found: Role, payload and parsed header of each member as it lies in the zip.
        """
        if not self.able or len(self._header_sets) >= _MAX_HEADER_SETS:
            return
        numbers = []
        pictures = tuple([picture for _, _, picture in found])
        for place, (role, data, picture) in enumerate(found):
            length = header_length(data, picture) if picture.width else 0
            if not (
                length
                and is_standard(picture, role, self._task.meaning)
                and same_aspect(picture, pictures[0])
            ):
                return
            key = (place, _KINDS.index(picture.kind), data[:length])
            if key not in self._headers and len(self._headers) >= _MAX_HEADERS:
                return
            numbers.append(self._headers.setdefault(key, len(self._headers)))
        if tuple(numbers) not in self._header_sets:
            self._header_sets[tuple(numbers)] = pictures
            self._known = None
            self._pause = 0

    def copy(self, first: int, tar: TarWriter) -> CopyResult | None:
        """Append plain samples, from the ``first`` of the task on; None if that is not plain.

        Raises:
            OSError: OUT cannot be written.
        """
        if _copy is None or not self.able or self._pause:
            self._pause = max(0, self._pause - 1)
            return None
        samples, roles = self._task.rows.shape
        if self._plan is None or self._buffers is None:
            self._plan = _make_plan(self._task, self._handles, self._excluded)
            self._buffers = _make_buffers(samples, roles)
        if self._known is None:
            self._known = _make_known(self._headers, self._header_sets, roles)
        buffers, number, full, text = self._buffers, first, True, b""
        while full:
            number, filled, written, full = _copy(
                self._plan, self._known, buffers, number, tar.offset
            )
            tar.append(buffers.block[:filled].data)
            text += buffers.text[:written].tobytes()
        if number == first:
            # Where nothing is recognised, it is tried less and less often.
            self._pause = self._wait = min(2 * self._wait + 1, _MAX_PAUSE)
            return None
        self._wait = 0
        return CopyResult(number, text, self._count(buffers.matches[first:number]))

    def _count(self, matches: NDArray[np.int64]) -> Counter[tuple[ImageInfo, ...]]:
        counts: Counter[tuple[ImageInfo, ...]] = Counter()
        known = list(self._header_sets.values())
        for match, count in zip(*np.unique(matches, return_counts=True), strict=True):
            bits = -1 - int(match)
            by_name = [
                ImageInfo(_KINDS[bits >> role & 1], 0, 0, 0, 0)
                for role in range(len(self._task.roles))
            ]
            counts[tuple(by_name) if match < 0 else known[match]] += int(count)
        return counts


def _scan_offset(data: bytes) -> int:
    """Find the first scan's data in a JPEG that was parsed."""
    at = 2
    while True:
        if data[at + 1] == 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:
            return at


# Arrays for the compiled function: always new, so that they are of the types it was compiled for.


def _make_plan(
    task: ShardTask, handles: Sequence[ReadHandle], excluded: Iterable[int]
) -> "CopyPlan":
    from shardify.writer.fast_copy_kernel import CHECKED, EXCLUDED, TRUSTED, CopyPlan

    columns = ENTRY_DTYPE.names or ()
    rows = np.empty((*task.rows.shape, len(columns)), np.int64)
    for number, name in enumerate(columns):
        rows[..., number] = task.rows[name]
    # The limit, behind which another entry begins, becomes the number of bytes to read.
    offset, limit, packed = (
        rows[..., columns.index(each)] for each in ("offset", "limit", "packed")
    )
    lengths = np.diff(task.name_ends).reshape(task.rows.shape)
    np.minimum(_LOCAL_HEADER + lengths + packed + _SLACK, limit - offset, out=limit)
    usual = TRUSTED if task.verify == "none" else CHECKED
    handling = np.where(task.measured, CHECKED, usual).astype(np.int64)
    handling[np.array(sorted(excluded), np.int64)] = EXCLUDED
    extensions = [f".{role}.{kind}".encode() for role in task.roles for kind in _KINDS]
    return CopyPlan(
        np.array(handles, np.int64),
        rows,
        _bytes(task.names),
        np.array(task.name_ends, np.int64),
        *_concatenate([key.encode() for key in task.keys]),
        *_concatenate([*extensions, b".bg.cls"]),
        _kinds_of(task.names, task.name_ends).reshape(task.rows.shape),
        np.array(task.background, np.int64),
        handling,
        _bytes(NAMELESS),
    )


def _make_known(
    headers: Iterable[tuple[int, int, bytes]], header_sets: Iterable[tuple[int, ...]], roles: int
) -> "KnownHeaders":
    from shardify.writer.fast_copy_kernel import KnownHeaders

    keys = list(headers)
    data, ends = _concatenate([header for _, _, header in keys])
    spans = np.empty((len(keys), 4), np.int64)
    spans[:, :2] = np.array([key[:2] for key in keys], np.int64).reshape(-1, 2)
    spans[:, 2], spans[:, 3] = ends[:-1], ends[1:]
    return KnownHeaders(data, spans, np.array(list(header_sets), np.int64).reshape(-1, roles))


def _make_buffers(samples: int, roles: int) -> "Buffers":
    from shardify.writer.fast_copy_kernel import DECOMPRESSOR, Buffers

    per_task = np.empty(samples, np.int64), np.empty(roles, np.int64), np.empty(2, np.int64)
    return Buffers(*_scratch(), *per_task, DECOMPRESSOR)


@functools.cache
def _scratch() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Allocate scratch, block and text, once for all tasks of a process."""
    return np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8), np.empty(_TEXT, np.uint8)


def _concatenate(pieces: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join bytes in one array; return it, and where each ends, after a 0."""
    ends = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=ends[1:])
    return _bytes(b"".join(pieces)), ends


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _kinds_of(names: bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each name's kind by its extension: an index into ``_KINDS``, or -1."""
    # What stands before the first name is none of an extension.
    text = np.frombuffer(bytes(_MAX_EXTENSION) + names, np.uint8)
    last = text[ends[1:, None] + np.arange(_MAX_EXTENSION)]
    small = last + 32 * ((last >= ord("A")) & (last <= ord("Z")))
    kinds = np.full(len(small), -1)
    for end, number in _KIND_NUMBERS.items():
        wanted = np.frombuffer(b"." + end, np.uint8)
        kinds[(small[:, -len(wanted) :] == wanted).all(axis=1)] = number
    # A name of fewer bytes would borrow from the one before.
    kinds[np.diff(ends) < _MAX_EXTENSION] = -1
    return kinds
