"""A payload comes out whole and checked, or the reason why not."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from shardify.errors import EntryError
from shardify.sources.zip_extract import read_payload

DATA = b"some bytes that deflate can pack, pack, pack, pack, pack " * 20


def packed(method: int, *, extra: bytes = b"", stream: bool = False) -> tuple[bytearray, int]:
    """A zip with one entry, and where its data begin."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("a/name.jpg")
        info.compress_type = method
        info.extra = extra
        if stream:
            buffer.seekable = lambda: False  # type: ignore[method-assign]
        file.writestr(info, DATA)
    raw = bytearray(buffer.getvalue())
    names, extras = struct.unpack_from("<2H", raw, 26)
    return raw, 30 + names + extras


def read(tmp_path: Path, raw: bytes, **other: int) -> bytes:
    path = tmp_path / "x.zip"
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[0]
    limit = bytes(raw).rfind(b"PK\x01\x02")
    values = {
        "offset": 0, "limit": limit, "packed": info.compress_size, "size": info.file_size,
        "crc": info.CRC, "method": info.compress_type,
    } | other  # fmt: skip
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_payload(descriptor, b"a/name.jpg", **values)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize("stream", [False, True], ids=["sized", "streamed"])
@pytest.mark.parametrize("extra", [b"", struct.pack("<2H", 0x7777, 3000) + bytes(3000)])
def test_a_sound_entry_comes_out_as_it_went_in(
    tmp_path: Path, method: int, stream: bool, extra: bytes
) -> None:
    raw, _ = packed(method, extra=extra, stream=stream)
    assert read(tmp_path, raw) == DATA


def poke(place: Callable[[int], int], value: int) -> Callable[[bytearray, int], None]:
    def change(raw: bytearray, start: int) -> None:
        raw[place(start)] ^= value

    return change


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        (0, poke(lambda start: start + 5, 1), "bad CRC"),
        (8, poke(lambda start: start, 6), "bad deflate|another size|bad CRC"),
        (8, poke(lambda _: 0, 1), "local header"),
        (8, poke(lambda _: 30, 1), "local header"),
        (8, poke(lambda _: 8, 8), "contradicts"),
        (8, poke(lambda _: 6, 1), "contradicts"),
        (8, poke(lambda _: 18, 1), "contradicts"),
        (8, poke(lambda _: 22, 1), "contradicts"),
        (8, poke(lambda _: 29, 0x40), "next entry"),
    ],
    ids=["crc", "deflate", "signature", "name", "method", "encrypted", "packed", "size", "extra"],
)
def test_damage_is_named(
    tmp_path: Path, method: int, change: Callable[[bytearray, int], None], says: str
) -> None:
    raw, start = packed(method)
    change(raw, start)
    with pytest.raises(EntryError, match=says):
        read(tmp_path, raw)


def test_a_payload_longer_than_stated_is_not_unpacked(tmp_path: Path) -> None:
    raw, _ = packed(8)
    struct.pack_into("<L", raw, 22, 10)
    with pytest.raises(EntryError, match="another size"):
        read(tmp_path, raw, size=10, crc=zlib.crc32(DATA[:10]))


def test_a_payload_shorter_than_stated_is_refused(tmp_path: Path) -> None:
    raw, _ = packed(8)
    struct.pack_into("<L", raw, 22, 99_999)
    with pytest.raises(EntryError, match="another size"):
        read(tmp_path, raw, size=99_999)


def test_a_zip_that_was_cut_since_is_refused(tmp_path: Path) -> None:
    raw, start = packed(0)
    with pytest.raises(EntryError, match=r"contradicts|cut"):
        read(tmp_path, raw, packed=5000, size=5000, limit=1 << 20)
    struct.pack_into("<2L", raw, 18, 500_000, 500_000)
    with pytest.raises(EntryError, match="cut"):
        read(tmp_path, raw, packed=500_000, size=500_000, limit=1 << 20)
    with pytest.raises(EntryError, match="cut"):
        read(tmp_path, raw, offset=len(raw) - 5, limit=len(raw))
    assert start > 30


def test_bytes_behind_the_deflate_stream_are_refused(tmp_path: Path) -> None:
    raw, start = packed(8)
    size = struct.unpack_from("<L", raw, 18)[0]
    raw[start + size : start + size] = b"tail"
    struct.pack_into("<L", raw, 18, size + 4)
    path = tmp_path / "y"
    path.write_bytes(raw)
    with path.open("rb") as file, pytest.raises(EntryError, match="another size"):
        read_payload(
            file.fileno(), b"a/name.jpg", 0, len(raw), size + 4, len(DATA), zlib.crc32(DATA), 8
        )
