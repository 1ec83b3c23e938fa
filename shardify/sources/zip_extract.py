"""One entry's payload out of a zip: bounded, checked against its size and its CRC.

Reads ranges of an open file; writes nothing, and trusts neither the directory's sizes nor the
local header's. Memory is bounded by the size that the directory states (checked by ``archive``).
"""

import struct

from shardify.errors import EntryError
from shardify.storage.readers import FolderReader, PrefixReader, ReadHandle, pread
from shardify.zlib_backend import ERRORS, crc32, decompressobj

__all__ = ["payload"]

_LOCAL = struct.Struct("<4s5H3L2H")
_unpack = _LOCAL.unpack_from
_HEAD = _LOCAL.size
_SLACK = 64


def payload(
    handle: ReadHandle,
    name: bytes,
    offset: int,
    limit: int,
    packed: int,
    size: int,
    crc: int,
    method: int,
) -> bytes:
    """Read and unpack one entry.

    Args:
        handle: The open zip.
        name: The name's bytes in the central directory; the local header must agree.
        offset: First byte of the local header; of a folder's file, when it was last changed.
        limit: First byte that belongs to something else.
        packed: Bytes of the packed payload.
        size: Bytes of the payload, unpacked.
        crc: CRC-32 of the payload.
        method: 0 stored, 8 deflated.

    Raises:
        SourceError: A file of a folder was changed since it was listed.
        EntryError: The local header disagrees, the data are cut or damaged, or the CRC is wrong.
            The message is the reason alone.
        OSError: The disk cannot be read.
    """
    if isinstance(handle, (FolderReader, PrefixReader)):
        return handle.payload(name, offset, size)
    block = pread(handle, min(limit - offset, _HEAD + len(name) + packed + _SLACK), offset)
    if len(block) < _HEAD:
        raise EntryError("cut: the zip ends inside its local header")
    signature, _, flags, local_method, _, _, _, local_packed, local_size, names, extra = _unpack(
        block
    )
    start = _HEAD + names + extra
    if signature != b"PK\x03\x04" or block[_HEAD : _HEAD + names] != name:
        raise EntryError("its local header is not the one that the directory promises")
    if (
        local_method != method
        or flags & 1
        or (
            (local_packed != packed or local_size != size)
            and not _agrees(flags, local_packed, packed, local_size, size)
        )
    ):
        raise EntryError("its local header contradicts the directory")
    if start + packed > limit - offset:
        raise EntryError("its data run into the next entry")
    if start + packed > len(block):
        block = pread(handle, packed, offset + start)
        start = 0
        if len(block) < packed:
            raise EntryError("cut: the zip ends inside its data")
    data = block[start : start + packed]
    if method:
        data = _inflate(data, size)
    if crc32(data) != crc:
        raise EntryError("bad CRC")
    return data


def _agrees(flags: int, local_packed: int, packed: int, local_size: int, size: int) -> bool:
    """Whether the local sizes fit: with flag bit 3 they may be 0, and zip64 may hide them."""
    late = 0 if flags & 8 else packed
    late_size = 0 if flags & 8 else size
    return local_packed in (packed, late, 0xFFFFFFFF) and local_size in (
        size,
        late_size,
        0xFFFFFFFF,
    )


def _inflate(data: bytes, size: int) -> bytes:
    inflater = decompressobj(-15)
    try:
        # One byte more than promised, so that a longer payload shows without being unpacked.
        result = inflater.decompress(data, size + 1)
    except ERRORS:
        raise EntryError("bad deflate data") from None
    if len(result) != size or not inflater.eof or inflater.unused_data:
        raise EntryError("its data unpack to another size than stated")
    return result
