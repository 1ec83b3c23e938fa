"""Read one entry of a zip: inflate it and check its size and CRC.

The sizes in the directory and in the local header are not trusted. Memory is bounded by the size
that the directory states, at most ``MAX_ENTRY``.
"""

import struct

from shardify.errors import EntryError
from shardify.sources.zip_end_record import ALL_ONES
from shardify.storage.readers import FolderReader, PrefixReader, ReadHandle, pread
from shardify.zlib_backend import ERRORS, crc32, decompressobj

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""A local file header without its name and extra field (APPNOTE 4.3.7)."""
_unpack = LOCAL_HEADER.unpack_from
_HEADER_SIZE = LOCAL_HEADER.size
_EXTRA_FIELD_SIZE = 64
"""Allowance for the extra field, so that one read is enough. Bytes."""


def read_payload(
    handle: ReadHandle,
    name: bytes,
    offset: int,
    limit: int,
    packed: int,
    size: int,
    crc: int,
    method: int,
) -> bytes:
    """Read, unpack and check one entry.

    Args:
        handle: The open zip, or the folder.
        name: The name's bytes in the central directory; the local header must have the same.
        offset: First byte of the local header; for a folder's file, its modification time.
        limit: First byte after the entry.
        packed: Size of the packed payload. Bytes.
        size: Size of the unpacked payload. Bytes.
        crc: CRC-32 of the payload.
        method: 0 stored, 8 deflated.

    Raises:
        SourceError: A folder's file changed after it was listed.
        EntryError: The local header disagrees, the data are truncated or damaged, or the CRC is
            wrong. The message is only the reason.
        OSError: The disk cannot be read.
    """
    if isinstance(handle, (FolderReader, PrefixReader)):
        return handle.payload(name, offset, size)
    block = pread(
        handle, min(limit - offset, _HEADER_SIZE + len(name) + packed + _EXTRA_FIELD_SIZE), offset
    )
    if len(block) < _HEADER_SIZE:
        raise EntryError("cut: the zip ends inside its local header")
    signature, _, flags, local_method, _, _, _, local_packed, local_size, names, extra = _unpack(
        block
    )
    start = _HEADER_SIZE + names + extra
    if signature != b"PK\x03\x04" or block[_HEADER_SIZE : _HEADER_SIZE + names] != name:
        raise EntryError("its local header is not the one that the directory promises")
    if (
        local_method != method
        or flags & 1
        or (
            (local_packed != packed or local_size != size)
            and not _sizes_agree(flags, local_packed, packed, local_size, size)
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


def _sizes_agree(flags: int, local_packed: int, packed: int, local_size: int, size: int) -> bool:
    """Whether the local sizes agree: they may be 0 with flag bit 3, and all ones with zip64."""
    allowed = (0, ALL_ONES) if flags & 8 else (ALL_ONES,)
    return local_packed in (packed, *allowed) and local_size in (size, *allowed)


def _inflate(data: bytes, size: int) -> bytes:
    inflater = decompressobj(-15)
    try:
        # Ask for one byte more than stated, to detect a longer payload without unpacking it.
        result = inflater.decompress(data, size + 1)
    except ERRORS:
        raise EntryError("bad deflate data") from None
    if len(result) != size or not inflater.eof or inflater.unused_data:
        raise EntryError("its data unpack to another size than stated")
    return result
