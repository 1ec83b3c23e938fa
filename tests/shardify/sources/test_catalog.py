"""The directory as columns says what zipfile says, and hostile zips are refused from it alone."""

import io
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from shardline_sources import open_catalog

from shardify.errors import ArchiveError
from shardify.sources.catalog import FAULTS, Catalog, OpenSources, entry_reader

END = b"PK\x05\x06"


def pack(entries: list[tuple[Any, bytes]], *, method: int = 8, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of duplicate names, which some tests want.
        for name, data in entries:
            file.writestr(name, data)
        file.comment = comment
    return buffer.getvalue()


def ten(**more: Any) -> bytes:
    return pack([(f"a/{number}.txt", b"hello " * number) for number in range(1, 11)], **more)


def opened(tmp_path: Path, data: bytes, name: str = "x.zip") -> Catalog:
    path = tmp_path / name
    path.write_bytes(data)
    return open_catalog([path])


def assert_same_as_zipfile(catalog: Catalog, data: bytes) -> None:
    entries = catalog.entries
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos = [info for info in file.infolist() if not info.is_dir()]
    assert list(catalog.names) == [info.filename for info in infos]
    assert [catalog.names[row] for row in range(len(infos))] == [info.filename for info in infos]
    assert entries.offset.tolist() == [info.header_offset for info in infos]
    assert entries.size.tolist() == [info.file_size for info in infos]
    assert entries.packed.tolist() == [info.compress_size for info in infos]
    assert entries.crc.tolist() == [info.CRC for info in infos]
    assert entries.method.tolist() == [info.compress_type for info in infos]
    assert len(entries) == len(catalog.names) == len(infos)


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"\xff" * 65535])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n" * 99])
def test_columns_are_what_zipfile_reads(
    tmp_path: Path, method: int, comment: bytes, before: bytes
) -> None:
    data = before + ten(method=method, comment=comment)
    catalog = opened(tmp_path, data)
    assert_same_as_zipfile(catalog, data)
    assert not catalog.entries.fault.any()
    assert catalog.sources[0].entries == 10
    assert catalog.sources[0].bytes == len(data)


def test_zip64_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 200)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    data = pack([(f"{number}", bytes(number * 40)) for number in range(1, 12)], method=0)
    assert b"PK\x06\x06" in data
    assert b"\xff\xff\xff\xff" in data
    assert_same_as_zipfile(opened(tmp_path, data), data)
    assert_same_as_zipfile(opened(tmp_path, b"before" + data), b"before" + data)


def test_a_signature_inside_a_name_or_comment_is_not_an_entry(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("plain")
    info.comment = b"PK\x01\x02" + bytes(60)
    data = pack([("first", b"1"), (info, b"2"), ("last", b"3")])
    assert_same_as_zipfile(opened(tmp_path, data), data)


def test_folders_are_passed_over_and_names_decoded(tmp_path: Path) -> None:
    data = pack([("folder/", b""), ("folder/é.jpg", b"1"), ("b\\c.jpg", b"2")])
    data = data.replace("é".encode(), b"\x82\xff")  # As code page 437 has it, if anything.
    catalog = opened(tmp_path, data)
    assert catalog.names[0].startswith("folder/é")
    assert catalog.names[1] == "b/c.jpg"
    assert catalog.names[-1] == "b/c.jpg"
    assert catalog.names[0:2] == list(catalog.names)
    assert not catalog.refused
    with pytest.raises(IndexError):
        catalog.names[2]


def test_several_zips_count_as_one_and_names_tell_them_apart(tmp_path: Path) -> None:
    for stem, number in (("images", 3), ("masks", 2)):
        names = [(f"bg/{place}.jpg", stem.encode()) for place in range(number)]
        (tmp_path / f"{stem}.zip").write_bytes(pack(names))
    catalog = open_catalog([tmp_path / "images.zip", tmp_path / "masks.zip"])
    assert catalog.names[2:4] == ["images/bg/2.jpg", "masks/bg/0.jpg"]
    assert catalog.names.raw(3) == b"bg/0.jpg"
    assert catalog.entries.source.tolist() == [0, 0, 0, 1, 1]


def mangled_end(data: bytes, field: int, value: int) -> bytes:
    place = data.rfind(END) + field
    return data[:place] + struct.pack("<H", value) + data[place + 2 :]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty file"),
        (b"hello " * 99, "not a zip"),
        (ten()[:-30], "without its end"),
        (ten()[:100], "without its end"),
        (ten() + b"more", "without its end"),
        (END + bytes(18), "holds no files"),
        (pack([("folder/", b"")]), "holds no files"),
        (ten(comment=END + bytes(18)), "2 end records"),
        (mangled_end(ten(), 10, 9), "damaged"),
        (mangled_end(ten(), 10, 11), "damaged"),
        (mangled_end(ten(), 10, 60000), "does not fit"),
        (mangled_end(ten(), 4, 1), "one part of a zip split"),
        (ten().replace(b"PK\x01\x02", b"PK\x01\x03", 1), "damaged"),
        (ten()[:10] + ten()[200:], "overlap|does not fit"),
    ],
    ids=[
        "empty", "text", "end-cut", "half", "trailing", "no-entries", "folders-only", "fake-end",
        "fewer", "more", "many", "disks", "signature", "hole",
    ],
)  # fmt: skip
def test_what_is_no_whole_zip_is_refused_in_one_line(
    tmp_path: Path, data: bytes, says: str
) -> None:
    with pytest.raises(ArchiveError, match=says) as error:
        opened(tmp_path, data)
    assert "x.zip" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArchiveError, match="cannot be read"):
        open_catalog([tmp_path / "nowhere.zip"])
    # Opened for reading and writing, a pipe does not wait for its other end.
    held = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        with pytest.raises(ArchiveError, match="not a regular file"):
            open_catalog([tmp_path / "pipe"])
    finally:
        os.close(held)


def central(name: bytes, offset: int, packed: int, size: int, stored: bytes | None = None) -> bytes:
    method, crc = (8, 0) if stored is None else (0, zlib.crc32(stored))
    return struct.pack(
        "<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, method, 0, 0, crc, packed, size,
        len(name), 0, 0, 0, 0, 0, offset,
    ) + name  # fmt: skip


def with_directory(body: bytes, records: list[bytes]) -> bytes:
    directory = b"".join(records)
    count = min(len(records), 0xFFFF)
    end = struct.pack("<4s4H2LH", END, 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


@pytest.mark.parametrize("step", [0, 10, 40])
def test_overlapping_entries_are_refused(tmp_path: Path, step: int) -> None:
    body = bytes(2000)
    records = [central(b"%d.jpg" % n, n * step, 400, 500) for n in range(5)]
    with pytest.raises(ArchiveError, match="overlap"):
        opened(tmp_path, with_directory(body, records))


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    body = bytes(200_000)
    records = [central(b"%d.jpg" % n, n * 20_000, 19_000, 190 << 20) for n in range(10)]
    with pytest.raises(ArchiveError, match="bomb"):
        opened(tmp_path, with_directory(body, records))


def test_entries_with_impossible_sizes_carry_a_fault(tmp_path: Path) -> None:
    body = bytes(50_000)
    records = [
        central(b"fine", 0, 400, 500),
        central(b"lying", 1000, 10, 1_000_000),
        central(b"huge", 2000, 40_000, 300 << 20),
        central(b"void", 45_000, 0, 0),
        central(b"beyond", 49_000, 5_000, 6_000),
    ]
    # The huge one alone stays under what refuses the whole zip.
    catalog = opened(tmp_path, with_directory(body, records))
    found = [FAULTS.get(int(code), "") for code in catalog.entries.fault]
    assert found == [
        "", FAULTS[4], FAULTS[3], FAULTS[5], FAULTS[6],
    ]  # fmt: skip


def test_encrypted_entries_and_foreign_methods_carry_a_fault(tmp_path: Path) -> None:
    data = bytearray(pack([("a", b"1" * 99), ("b", b"2" * 99)]))
    first = data.find(b"PK\x01\x02")
    data[first + 8] |= 1
    second = data.find(b"PK\x01\x02", first + 4)
    data[second + 10] = 93
    catalog = opened(tmp_path, bytes(data))
    assert [FAULTS[int(code)] for code in catalog.entries.fault] == [FAULTS[1], FAULTS[2]]


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/../x", "C:\\x", "C:x", "..\\x", "a/..", "a\nb", "\x7f"]
)
def test_hostile_names_are_refused_by_name(tmp_path: Path, name: str) -> None:
    catalog = opened(tmp_path, pack([("good", b"1"), (name, b"2"), ("fine", b"3")]))
    assert list(catalog.names) == ["good", "fine"]
    assert [each.member for each in catalog.refused] == [name.replace("\\", "/").lstrip("/")]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    link, device, file = zipfile.ZipInfo("link"), zipfile.ZipInfo("device"), zipfile.ZipInfo("f")
    for info, kind in ((link, stat.S_IFLNK), (device, stat.S_IFCHR), (file, stat.S_IFREG)):
        info.create_system = 3
        info.external_attr = (kind | 0o644) << 16
    catalog = opened(tmp_path, pack([(link, b"/etc"), (device, b"x"), (file, b"y")]))
    assert list(catalog.names) == ["f"]
    assert [each.reason.split(",")[0] for each in catalog.refused] == [
        "is a link", "is a device or pipe",
    ]  # fmt: skip


def test_of_two_different_entries_with_one_name_neither_is_taken(tmp_path: Path) -> None:
    catalog = opened(tmp_path, pack([("a", b"1"), ("b", b"2"), ("a", b"3"), ("A", b"4")]))
    assert list(catalog.names) == ["b", "A"]
    assert [(each.member, "twice" in each.reason) for each in catalog.refused] == [("a", True)] * 2


def test_equal_entries_with_one_name_are_taken_once_and_that_is_said(tmp_path: Path) -> None:
    once = [(f"a/{number}.txt", b"hello " * number) for number in range(1, 6)]
    catalog = opened(tmp_path, pack([*once, *once[1:4], ("./a/2.txt", b"hello hello ")]))
    assert sorted(catalog.names) == [name for name, _ in once]
    assert not catalog.refused
    assert catalog.notes == [
        "x.zip: 4 files stand in it twice, with the same bytes; each is taken once"
    ]
    with OpenSources([catalog.sources[0].path]) as handles:
        read = entry_reader(catalog, handles)
        assert {catalog.names[row]: read(row) for row in range(5)} == dict(once)


def test_a_whole_copy_of_an_entry_is_taken_rather_than_one_with_a_fault(tmp_path: Path) -> None:
    body = bytes(1000)
    records = [central(b"a.png", 0, 10, 20), central(b"a.png", 900, 200, 20)]
    catalog = opened(tmp_path, with_directory(body, records))
    assert catalog.entries.offset.tolist() == [0]


def test_a_source_whose_files_are_all_refused_says_why(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"none of its 2 files can be taken; .*as \.\./a\.jpg"):
        opened(tmp_path, pack([("../a.jpg", b"1"), ("../b.jpg", b"2")]))


@pytest.mark.parametrize(
    ("stored", "used"),
    [
        ("./", []), ("/", []), ("./a/b.png", ["a/b.png"]), ("/a/b.png", ["a/b.png"]),
        ("a//b///c.png", ["a/b/c.png"]), ("a/./b/././c.png", ["a/b/c.png"]),
        (".//./x.png", ["x.png"]), ("a/.hidden/..x.png", ["a/.hidden/..x.png"]),
        ("Ame\u0301lie/e\u0301.png", ["Am\xe9lie/\xe9.png"]),
        ("\u1112\u1161\u11ab.png", ["\ud55c.png"]), ("a\\\u00fc\\b.png", ["a/\xfc/b.png"]),
    ],
    ids=ascii,
)  # fmt: skip
def test_names_are_used_in_one_form_and_found_as_stored(
    tmp_path: Path, stored: str, used: list[str]
) -> None:
    catalog = opened(tmp_path, pack([("good.png", b"1"), (stored, b"2"), ("z.png", b"3")]))
    assert list(catalog.names) == ["good.png", *used, "z.png"]
    assert not catalog.refused
    with OpenSources([catalog.sources[0].path]) as handles:
        read = entry_reader(catalog, handles)
        assert [read(row) for row in range(len(used) + 2)] == [b"1", *[b"2"] * len(used), b"3"]


@pytest.mark.parametrize("charset", ["cp932", "gbk", "big5"])
@pytest.mark.parametrize("folder", ["", "d/", "d\\"])
def test_a_backslash_inside_a_letter_separates_no_folders(
    tmp_path: Path, charset: str, folder: str
) -> None:
    letters = {"cp932": "\u8868\u5341\u4e88", "gbk": "\u4e57\u5213", "big5": "\u8a31\u529f"}
    names = [folder.encode() + f"{each}01.png".encode(charset) for each in letters[charset]]
    assert any(b"\\01" in name for name in names)
    data = pack([(f"{place}" * len(name), b"x%d" % place) for place, name in enumerate(names)])
    for place, name in enumerate(names):
        data = data.replace(b"%d" % place * len(name), name)
    catalog = opened(tmp_path, data)
    assert not catalog.refused
    assert len(set(catalog.names)) == len(names)
    assert all(name.count("/") == len(folder.strip("\\/")) for name in catalog.names)
    with OpenSources([catalog.sources[0].path]) as handles:
        read = entry_reader(catalog, handles)
        assert [read(row) for row in range(len(names))] == [b"x%d" % n for n in range(len(names))]


@pytest.mark.parametrize("valid", [True, False])
def test_a_unicode_path_field_names_the_entry_if_its_crc_is_right(
    tmp_path: Path, valid: bool
) -> None:
    info = zipfile.ZipInfo("____up.png")
    field = "\u041e\u043b\u044f/1.png".encode()
    crc = zlib.crc32(b"____up.png") ^ (not valid)
    info.extra = struct.pack("<2HBL", 0x7075, 5 + len(field), 1, crc) + field
    catalog = opened(tmp_path, pack([(info, b"1"), ("up.png", b"2")]))
    assert list(catalog.names) == [field.decode() if valid else "____up.png", "up.png"]
    assert catalog.names.raw(0) == b"____up.png"


def narrow(data: bytes, count: int) -> bytes:
    """The same zip with another number of entries in its end record."""
    place = data.rfind(END)
    return data[: place + 8] + struct.pack("<2H", count, count) + data[place + 12 :]


def test_a_number_of_entries_modulo_65536_is_proven_by_the_records(tmp_path: Path) -> None:
    count = 65_536 + 3
    records = [central(b"%06d" % number, number * 40, 1, 1) for number in range(count)]
    whole = with_directory(bytes(40 * count), records)
    catalog = opened(tmp_path, narrow(whole, 3))
    assert len(catalog.names) == catalog.sources[0].entries == count
    for wrong in (4, 2):
        with pytest.raises(ArchiveError, match=f"does not hold the {wrong} entries"):
            opened(tmp_path, narrow(whole, wrong))


def over_4_gib(path: Path, files: list[tuple[bytes, bytes, int]], *, skew: int = 0) -> Path:
    """A sparse zip without zip64, as macOS's Archive Utility writes: offsets modulo 4 GiB.

    Args:
        path: The zip.
        files: Name, data, and bytes that are left free before each file.
        skew: Added to each stated offset.
    """
    directory = b""
    with path.open("wb") as file:
        for name, data, gap in files:
            if gap:  # A file that is too large to be a picture.
                filler = b"filler-%d" % file.tell()
                directory += central(filler, (file.tell() + skew) % 2**32, gap, gap)
                file.write(local(filler, b"", gap))
                file.seek(gap, 1)
            directory += central(name, (file.tell() + skew) % 2**32, len(data), len(data), data)
            file.write(local(name, data, len(data)) + data)
        place, count = file.tell(), directory.count(b"PK\x01\x02")
        end = struct.pack("<4s4H2LH", END, 0, 0, count, count, len(directory), place % 2**32, 0)
        file.write(directory + end)
    return path


def local(name: bytes, data: bytes, size: int) -> bytes:
    return (
        struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), size, size, len(name), 0
        )
        + name
    )


GIB = 1 << 30
FILES = [
    (b"a.png", b"one", 0), (b"b.png", b"two", 3 * GIB), (b"c.png", b"three", 3 * GIB),
    (b"d.png", b"four", 3 * GIB), (b"e.png", b"five", 1000),
]  # fmt: skip


def test_offsets_modulo_4_gib_are_proven_by_the_local_headers(tmp_path: Path) -> None:
    path = over_4_gib(tmp_path / "mac.zip", FILES)
    catalog = open_catalog([path])
    rows = [row for row, name in enumerate(catalog.names) if not name.startswith("filler")]
    with OpenSources([str(path)]) as handles:
        read = entry_reader(catalog, handles)
        assert [read(row) for row in rows] == [data for _, data, _ in FILES]
    assert path.stat().st_size > 8 * GIB


def test_offsets_modulo_4_gib_that_are_not_proven_are_named(tmp_path: Path) -> None:
    path = over_4_gib(tmp_path / "mac.zip", FILES, skew=7)
    with pytest.raises(ArchiveError, match=r"over 4 GiB without zip64.*Archive Utility.*zip -r"):
        open_catalog([path])


def test_seventy_thousand_entries_are_read_in_a_second(tmp_path: Path) -> None:
    import time

    names = [b"data_all/fg_bg/bg_%03d/fg_%06d.jpg" % (n % 100, n) for n in range(70_000)]
    records = [central(name, n * 120, 40, 41) for n, name in enumerate(names)]
    data = bytearray(with_directory(bytes(8_400_000), records))
    place = data.rfind(END)
    length, offset = struct.unpack_from("<2L", data, place + 12)
    end64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 70_000, 70_000, length, offset
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    data[place:place] = end64 + locator
    begun = time.process_time()
    catalog = opened(tmp_path, bytes(data))
    assert time.process_time() - begun < 1
    assert catalog.names[69_999] == names[-1].decode()
    assert catalog.entries.offset[-1] == 69_999 * 120


_MEASURE = r"""
import re, sys
from pathlib import Path
from shardify.layout.detect import detect
from shardify.sources.nested_zips import UnpackCache
from shardify.sources.open_sources import open_sources
with UnpackCache() as cache:
    catalog = open_sources([Path(sys.argv[1])], cache)
layout = detect(catalog.names, where="x")
print(len(catalog.names), len(layout.keys))
# Not ru_maxrss: that one begins at the peak of whoever started this process.
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_over_a_million_entries_stay_under_400_mb(tmp_path: Path) -> None:
    count = 400_000
    path = tmp_path / "x.zip"
    with path.open("wb") as file:
        body = (3 * count + 100) * 200
        file.seek(body)  # Sparse: nothing but the directory is ever read.
        place = entries = length = 0
        names = [b"data_all/bg/park%d.jpg" % (n + 1) for n in range(100)]
        for form in (b"fg_bg/fg_%03d_bg_%03d_%06d.jpg", b"fg_bg_mask/fg_%03d_bg_%03d_mask_%06d.jpg",
                     b"fg_bg_depth/mask_fg_bg/fg_bg/mask_fg_%03d_bg_%03d_%06d.png"):  # fmt: skip
            names += [b"data_all/" + form % (n % 100 + 1, n // 4000 + 1, n) for n in range(count)]
        for name in names:
            length += file.write(central(name, place, 20, 21))
            place, entries = place + 200, entries + 1
        end64 = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, length, body
        )
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, body + length, 1)
        end = struct.pack("<4s4H2LH", END, 0, 0, 0xFFFF, 0xFFFF, length, body, 0)
        file.write(end64 + locator + end)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=True
    )
    found, memory = done.stdout.splitlines()
    assert found == f"{3 * count + 100} {count}"
    assert int(memory) * 1024 < 400e6
