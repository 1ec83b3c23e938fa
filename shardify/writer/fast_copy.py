"""Copy many unmodified samples at once from zip to tar, with the compiled copy function.

Most samples need no conversion: their entries are deflated or stored in a local file, the local
header agrees with the directory, and the image starts with a known header. A process that has
called ``load`` copies many of them at once. All other samples take the checked path of
``shard_writer``, which gives the same bytes and reports errors. (It also refuses some crafted
deflate streams that libdeflate inflates to the size and checksum stated in the zip.)

An encoder gives all images of one size and quality the same header and tables. So the header of
each new kind of image is learned once it was parsed; of later images with the same header, only the
payload is checked.
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
from shardify.sources.entry_names import join_names
from shardify.storage.readers import ReadHandle
from shardify.writer.tar_writer import HEADER_TEMPLATE, TarWriter
from shardify.writer.tasks import ShardTask

if TYPE_CHECKING:  # Importing it imports numba, which takes a quarter of a second.
    from shardify.writer.fast_copy_kernel import Buffers, CopyPlan, KnownHeaders

KIND_BY_EXTENSION = {b"jpg": "jpg", b"jpeg": "jpg", b"png": "png"}
"""File extension -> image kind, used where images are not checked."""

_KINDS = ("jpg", "png")
_MAX_EXTENSION = 1 + max(map(len, KIND_BY_EXTENSION))

_LOCAL_HEADER = 30
_EXTRA_READ = 64
_BLOCK_BYTES = 1 << 20
"""Small enough to stay in the CPU cache while it is inflated, hashed and written. Larger samples
take the checked path. Bytes."""
_INDEX_BYTES = 1 << 18
_PNG_HEADER = 33
"""Signature and header chunk of a PNG. Bytes."""
_MAX_HEADERS, _MAX_HEADER_SETS = 96, 96
_MAX_SKIPPED_SAMPLES = 63
"""Maximum samples that skip the fast copy after samples that it could not copy."""

_copy: Callable[..., tuple[int, int, int, bool]] | None = None


def load() -> None:
    """Load the compiled copy function, for this process and the processes that it forks.

    If numba's cache does not hold it, compiling takes about ten seconds.

    Raises:
        ImportError: numba or libdeflate is missing.
        RuntimeError: No folder for the compiled code is writable.
    """
    global _copy
    from shardify.writer import fast_copy_kernel

    task = ShardTask(
        out="", name="", sources=[], roles=("",), keys=[], names=b"", name_ends=np.zeros(1, int),
        rows=np.empty((0, 1), ENTRY_DTYPE), background=[], measured=[], verify="",
        label_encoding=STANDARD, variants=(),
    )  # fmt: skip
    # The first call with arrays of these types loads or compiles.
    fast_copy_kernel.copy(
        _make_plan(task, [], ()), _make_known({}, [], 1), _make_buffers(0, 1), 0, 0
    )
    fast_copy_kernel.is_whole(_bytes(b""), 0, 0, 0)
    # Arrays of other types are a TypeError from now on, not seconds in the compiler.
    fast_copy_kernel.copy.disable_compile()
    _copy = fast_copy_kernel.copy


def header_length(data: bytes, info: ImageInfo) -> int:
    """Return the length of an image's header. The process must have called ``load``.

    Args:
        data: A whole image.
        info: The result of ``images.parse``.

    Returns:
        Bytes before the payload. 0 if the image is more than one header, one payload and an end
        marker (another scan, a palette, trailing bytes): then the header alone does not show that
        an image with the same header is complete.
    """
    from shardify.writer.fast_copy_kernel import is_whole

    if info.kind not in _KINDS:
        return 0
    length = _scan_offset(data) if info.kind == "jpg" else _PNG_HEADER
    return length if is_whole(_bytes(data), length, len(data), _KINDS.index(info.kind)) else 0


class CopyResult(NamedTuple):
    """Samples that were appended to a tar."""

    stop: int
    """Number of the first sample that was not copied."""
    text: bytes
    """Their lines in the index."""
    counts: Counter[tuple[ImageInfo, ...]]
    """Images of a sample, one per role -> number of samples."""


class FastCopier:
    """Copies the samples of one task that need no conversion.

    Args:
        task: The task.
        handles: Open handles of its sources.
    """

    def __init__(self, task: ShardTask, handles: Sequence[ReadHandle]) -> None:
        self._task = task
        self._handles = handles
        self.enabled = (
            _copy is not None
            and all(isinstance(handle, int) for handle in handles)
            and len(task.variants) == 1
            and task.variants[0].unchanged
            and task.verify != "decode"
            and task.label_encoding.mask == "threshold"
            and (task.verify != "none" or not task.label_encoding.needs_values)
            and not task.label_encoding.check_masks
        )
        """Whether the fast copy applies: local sources, stored unchanged, not decoded."""
        self._excluded: set[int] = set()
        self._headers: dict[tuple[int, int, bytes], int] = {}
        """(role, kind, bytes) -> number."""
        self._header_sets: dict[tuple[int, ...], tuple[ImageInfo, ...]] = {}
        self._known: KnownHeaders | None = None
        self._plan: CopyPlan | None = None
        self._buffers: Buffers | None = None
        self._last_skip = self._samples_to_skip = 0

    def exclude(self, numbers: Iterable[int]) -> None:
        """Exclude samples from the fast copy. Call it before ``copy``."""
        self._excluded.update(numbers)

    def learn_header(self, members: Sequence[tuple[str, bytes, ImageInfo]]) -> None:
        """Learn the image headers of a sample that passed all checks.

        Args:
            members: Role, payload and parsed header of each member, as stored in the zip.
        """
        if not self.enabled or len(self._header_sets) >= _MAX_HEADER_SETS:
            return
        numbers = []
        infos = tuple([info for _, _, info in members])
        for column, (role, data, info) in enumerate(members):
            length = header_length(data, info) if info.width else 0
            if not (
                length
                and is_standard(info, role, self._task.label_encoding)
                and same_aspect(info, infos[0])
            ):
                return
            key = (column, _KINDS.index(info.kind), data[:length])
            if key not in self._headers and len(self._headers) >= _MAX_HEADERS:
                return
            numbers.append(self._headers.setdefault(key, len(self._headers)))
        if tuple(numbers) not in self._header_sets:
            self._header_sets[tuple(numbers)] = infos
            self._known = None
            self._samples_to_skip = 0

    def copy(self, first: int, tar: TarWriter) -> CopyResult | None:
        """Append samples from number ``first`` on; None if that sample needs the checked path.

        Raises:
            OSError: OUT cannot be written.
        """
        if _copy is None or not self.enabled or self._samples_to_skip:
            self._samples_to_skip = max(0, self._samples_to_skip - 1)
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
            # If nothing is recognised, try less and less often.
            self._samples_to_skip = self._last_skip = min(
                2 * self._last_skip + 1, _MAX_SKIPPED_SAMPLES
            )
            return None
        self._last_skip = 0
        return CopyResult(number, text, self._count(buffers.matches[first:number]))

    def _count(self, matches: NDArray[np.int64]) -> Counter[tuple[ImageInfo, ...]]:
        counts: Counter[tuple[ImageInfo, ...]] = Counter()
        known = list(self._header_sets.values())
        for match, count in zip(*np.unique(matches, return_counts=True), strict=True):
            bits = -1 - int(match)
            by_name = tuple(
                ImageInfo(_KINDS[bits >> role & 1], 0, 0, 0, 0)
                for role in range(len(self._task.roles))
            )
            counts[by_name if match < 0 else known[match]] += int(count)
        return counts


def _scan_offset(data: bytes) -> int:
    """Return the offset of the data of the first scan in a parsed JPEG."""
    at = 2
    while True:
        if data[at + 1] == 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:
            return at


# Arrays for the compiled function: always new, so that they have the types it was compiled for.


def _make_plan(
    task: ShardTask, handles: Sequence[ReadHandle], excluded: Iterable[int]
) -> "CopyPlan":
    from shardify.writer.fast_copy_kernel import CHECKED, EXCLUDED, TRUSTED, CopyPlan

    columns = ENTRY_DTYPE.names or ()
    rows = np.stack([task.rows[name].astype(np.int64) for name in columns], axis=-1)
    # The limit (start of the next entry) becomes the number of bytes to read.
    offset, limit, packed = (
        rows[..., columns.index(name)] for name in ("offset", "limit", "packed")
    )
    lengths = np.diff(task.name_ends).reshape(task.rows.shape)
    np.minimum(_LOCAL_HEADER + lengths + packed + _EXTRA_READ, limit - offset, out=limit)
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
        _name_kinds(task.names, task.name_ends).reshape(task.rows.shape),
        np.array(task.background, np.int64),
        handling,
        _bytes(HEADER_TEMPLATE),
    )


def _make_known(
    headers: Iterable[tuple[int, int, bytes]], header_sets: Iterable[tuple[int, ...]], roles: int
) -> "KnownHeaders":
    from shardify.writer.fast_copy_kernel import KnownHeaders

    keys = list(headers)
    data, ends = _concatenate([header for _, _, header in keys])
    spans = np.empty((len(keys), 4), np.int64)
    spans[:, 0], spans[:, 1] = [role for role, _, _ in keys], [kind for _, kind, _ in keys]
    spans[:, 2], spans[:, 3] = ends[:-1], ends[1:]
    return KnownHeaders(data, spans, np.array(list(header_sets), np.int64).reshape(-1, roles))


def _make_buffers(samples: int, roles: int) -> "Buffers":
    from shardify.writer.fast_copy_kernel import DECOMPRESSOR, Buffers

    per_task = np.empty(samples, np.int64), np.empty(roles, np.int64), np.empty(2, np.int64)
    return Buffers(*_scratch(), *per_task, DECOMPRESSOR)


@functools.cache
def _scratch() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Allocate scratch, block and text once per process."""
    return (
        np.empty(_BLOCK_BYTES, np.uint8),
        np.empty(_BLOCK_BYTES, np.uint8),
        np.empty(_INDEX_BYTES, np.uint8),
    )


def _concatenate(pieces: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join bytes into one array. Returns it and the end of each, after a 0."""
    data, ends = join_names(pieces)
    return _bytes(data), ends


def _bytes(data: bytes | bytearray) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _name_kinds(names: bytes, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the kind of each name by its extension: an index into ``_KINDS``, or -1."""
    # Zeros before the first name, so that a short name has no foreign extension.
    text = np.frombuffer(bytes(_MAX_EXTENSION) + names, np.uint8)
    last = text[ends[1:, None] + np.arange(_MAX_EXTENSION)]
    lower = last + 32 * ((last >= ord("A")) & (last <= ord("Z")))
    kinds = np.full(len(lower), -1)
    for extension, kind in KIND_BY_EXTENSION.items():
        suffix = np.frombuffer(b"." + extension, np.uint8)
        kinds[(lower[:, -len(suffix) :] == suffix).all(axis=1)] = _KINDS.index(kind)
    # The window of a shorter name would reach into the name before it.
    kinds[np.diff(ends) < _MAX_EXTENSION] = -1
    return kinds
