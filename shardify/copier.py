"""Samples whose pictures are stored as they are, read and checked by the shortest way.

Most samples of most data sets are plain: three deflated entries of one file, each with the local
header that the directory promises, each a picture whose beginning was seen before. Those are found
here, with every check that ``extract`` and ``images`` make. Nothing is refused here: what is not
plain in every respect is left to them, and they say what is wrong with it.
"""

import os
import struct
from collections.abc import Sequence

from shardify.errors import EntryError
from shardify.images import Picture, parse, recognise
from shardify.inflate import ERRORS, crc32, decompressobj
from shardify.pixels import is_plain, same_aspect
from shardify.ranges import Handle
from shardify.tasks import ShardTask

__all__ = ["BY_NAME", "Copier"]

BY_NAME = {b"jpg": "jpg", b"jpeg": "jpg", b"png": "png"}
"""Kinds that a name's extension tells, where nothing is to be checked."""

_HEAD = 30
_SLACK = 64
_local = struct.Struct("<4x2x2H8x2L2H").unpack_from


class Copier:
    """Reads the plain samples of one task.

    Args:
        task: Whose samples.
        handles: Its sources, open.
    """

    def __init__(self, task: ShardTask, handles: Sequence[Handle]) -> None:
        self._files = [each for each in handles if isinstance(each, int)]
        self._able = (
            len(self._files) == len(handles)
            and len(task.variants) == 1
            and task.variants[0].unchanged
            and task.verify != "decode"
            and task.meaning.mask == "threshold"
        )
        self._trusted = task.verify == "none"
        self._roles = task.roles
        self._meaning = task.meaning
        self._last: dict[str, tuple[Picture, Picture]] = {}
        self._trust = {end: Picture(kind, 0, 0, 0, 0) for end, kind in BY_NAME.items()}

    def copy(
        self, names: Sequence[bytes], rows: Sequence[tuple[int, ...]]
    ) -> list[tuple[str, bytes, Picture]] | None:
        """One sample's roles, payloads and what they are; None where it is not plain.

        Args:
            names: Of its entries, one a role.
            rows: Likewise, of ``tasks.ROW``.

        Raises:
            OSError: The disk cannot be read.
        """
        if not self._able:
            return None
        found: list[tuple[str, bytes, Picture]] = []
        files, last = self._files, self._last
        for role, name, row in zip(self._roles, names, rows, strict=True):
            data = _payload(files, name, row)
            if data is None:
                return None
            if self._trusted:
                trusted = self._trust.get(name[name.rfind(b".") + 1 :].lower())
                if trusted is None:
                    return None
                picture = trusted
            else:
                known = recognise(data)
                if known is None:
                    try:
                        known = parse(data)
                    except EntryError:
                        return None
                picture = known
                # Nearly always those of the sample before, which were found good.
                pair = picture, found[0][2] if found else picture
                if last.get(role) != pair:
                    if not is_plain(picture, role, self._meaning) or not same_aspect(*pair):
                        return None
                    last[role] = pair
            found.append((role, data, picture))
        return found


def _payload(files: Sequence[int], name: bytes, row: tuple[int, ...]) -> bytes | None:
    """As ``extract.payload``, where all is as it should be; else None."""
    source, offset, limit, packed, size, crc, method = row
    length = len(name)
    block = os.pread(files[source], min(limit - offset, _HEAD + _SLACK + length + packed), offset)
    if len(block) < _HEAD:
        return None
    flags, stated_method, stated_packed, stated_size, names, extra = _local(block)
    start = _HEAD + length + extra
    stop = start + packed
    if (
        stated_size != size
        or stated_packed != packed
        or stated_method != method
        or flags & 1
        or names != length
        or stop > len(block)
        or not block.startswith(b"PK\x03\x04")
        or not block.startswith(name, _HEAD)
    ):
        return None
    data = block[start:stop]
    if method:
        inflater = decompressobj(-15)
        try:
            data = inflater.decompress(data, size + 1)
        except ERRORS:
            return None
        if not inflater.eof or inflater.unused_data:
            return None
    if len(data) != size or crc32(data) != crc:
        return None
    return data
