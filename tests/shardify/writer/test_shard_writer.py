"""A shard is the tar that tarfile would write and the index that DALI would; or its reasons."""

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shardline_sources import open_catalog

from shardify.errors import BuildError
from shardify.images.codecs import Variant
from shardify.images.pixels import STANDARD
from shardify.sources.catalog import ENTRY_DTYPE
from shardify.writer.shard_writer import measure_backgrounds, write_shard
from shardify.writer.tar_writer import TarWriter
from shardify.writer.tasks import STATE_FOLDER, BackgroundTask, ShardTask, staging_folder

ROLES = ("fg_bg", "mask", "depth")


def picture(seed: int, kind: str, mode: str, size: tuple[int, int] = (20, 20)) -> bytes:
    noise = np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, (*size[::-1], 3))
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def payloads(count: int) -> dict[str, bytes]:
    files = {}
    for number in range(count):
        files[f"fg_bg/{number}.jpg"] = picture(number, "JPEG", "RGB")
        files[f"mask/{number}.jpg"] = picture(number, "JPEG", "L")
        files[f"depth/{number}.png"] = picture(number, "PNG", "L", (16, 16))
    return files


def task_of(tmp_path: Path, files: dict[str, bytes], **other: object) -> ShardTask:
    source = tmp_path / "x.zip"
    with zipfile.ZipFile(source, "w", 8) as file:
        for name, data in files.items():
            file.writestr(name, data)
    catalog = open_catalog([source])
    names = list(catalog.names)
    members = np.array(
        [
            [names.index(name) for name in names if name.split("/")[1].split(".")[0] == str(number)]
            for number in range(len(names) // 3)
        ]
    )
    rows = np.empty(members.shape, ENTRY_DTYPE)
    for column in ENTRY_DTYPE.names or ():
        rows[column] = getattr(catalog.entries, column)[members]
    staged(tmp_path).mkdir(parents=True, exist_ok=True)
    joined, ends = catalog.names.joined(members.ravel())
    task = ShardTask(
        out=str(tmp_path / "out"),
        name="train-00000",
        sources=[str(source)],
        roles=ROLES,
        keys=[f"key{number}" for number in range(len(members))],
        names=joined,
        name_ends=ends,
        rows=rows,
        background=[number % 7 for number in range(len(members))],
        measured=[number % 2 == 0 for number in range(len(members))],
        verify="headers",
        label_encoding=STANDARD,
        variants=(Variant(),),
    )
    return dataclasses.replace(task, **other)  # type: ignore[arg-type]


def staged(tmp_path: Path) -> Path:
    """Where shards lie until the whole data set is complete."""
    return Path(str(staging_folder(tmp_path / "out", "")))


def test_headers_are_those_that_tarfile_writes(tmp_path: Path) -> None:
    files = [(b"a.fg_bg.jpg", b"x" * size) for size in (0, 1, 511, 512, 513, 10240)]
    files += [(b"n" * 100, b"12345"), (b"\xc3\xa9.cls", b"00001")]
    theirs = io.BytesIO()
    with (
        (tmp_path / "x.tar").open("wb") as mine,
        tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        writer = TarWriter(mine)
        for name, data in files:
            info = tarfile.TarInfo(name.decode())
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            start = writer.add(name, data)
            assert start == tar.offset - len(data) - (-len(data) % 512)
        digest = writer.finish()
    assert (tmp_path / "x.tar").read_bytes() == theirs.getvalue()
    assert digest == hashlib.sha256(theirs.getvalue()).hexdigest()
    assert writer.offset == len(theirs.getvalue())


def test_a_shard_holds_every_payload_unchanged_in_order(tmp_path: Path) -> None:
    files = payloads(5)
    record = write_shard(task_of(tmp_path, files))
    assert record.samples == 5
    assert record.rejected == []
    with tarfile.open(staged(tmp_path) / "train-00000.tar") as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        assert {(info.mtime, info.uid, info.gid, info.mode) for info in tar} == {(0, 0, 0, 0o644)}
    assert list(found)[:5] == [
        "key0.fg_bg.jpg", "key0.mask.jpg", "key0.depth.png", "key0.bg.cls", "key1.fg_bg.jpg",
    ]  # fmt: skip
    for number in range(5):
        assert found[f"key{number}.fg_bg.jpg"] == files[f"fg_bg/{number}.jpg"]
        assert found[f"key{number}.mask.jpg"] == files[f"mask/{number}.jpg"]
        assert found[f"key{number}.depth.png"] == files[f"depth/{number}.png"]
        assert found[f"key{number}.bg.cls"] == b"%05d" % number
    assert record.parts[0].pictures["depth"] == {"png 16 16 1 8": 5}
    assert record.moments["fg_bg"].samples == 3
    assert len(record.moments["fg_bg"].mean) == 3


def test_the_index_is_the_one_that_wds2idx_writes(tmp_path: Path) -> None:
    write_shard(task_of(tmp_path, payloads(3)))
    tool = Path(sys.executable).with_name("wds2idx")
    if not tool.exists():
        pytest.skip("needs DALI's wds2idx")
    subprocess.run(
        [tool, staged(tmp_path) / "train-00000.tar", tmp_path / "theirs.idx"],
        check=True,
        capture_output=True,
    )
    ours = (staged(tmp_path) / "train-00000.idx").read_text()
    assert ours == (tmp_path / "theirs.idx").read_text()


def test_a_sample_with_a_bad_member_is_left_out_whole_and_named(tmp_path: Path) -> None:
    files = payloads(4)
    files["mask/1.jpg"] = b"not a picture at all"
    files["depth/2.png"] = files["depth/2.png"][:-20]
    record = write_shard(task_of(tmp_path, files))
    assert record.samples == 2
    assert record.rejected == [
        ["key1", "mask/1.jpg", "mask", "not an image (no known signature)"],
        ["key2", "depth/2.png", "depth", "truncated PNG (a chunk runs over the end)"],
    ]
    with tarfile.open(staged(tmp_path) / "train-00000.tar") as tar:
        assert {name.split(".")[0] for name in tar.getnames()} == {"key0", "key3"}


def test_roles_of_different_aspect_are_left_out(tmp_path: Path) -> None:
    files = payloads(2)
    files["depth/1.png"] = picture(1, "PNG", "L", (16, 12))
    record = write_shard(task_of(tmp_path, files))
    assert record.rejected == [
        ["key1", "depth/1.png", "depth", "depth of 16x12 has another aspect than fg_bg of 20x20"]
    ]


def test_damaged_pixels_are_found_by_decode_alone(tmp_path: Path) -> None:
    files = payloads(2)
    data = bytearray(files["depth/0.png"])
    place = data.find(b"IDAT") + 4
    data[place] ^= 0xFF
    import zlib

    size = int.from_bytes(data[place - 8 : place - 4], "big")
    data[place + size : place + size + 4] = zlib.crc32(data[place - 4 : place + size]).to_bytes(
        4, "big"
    )
    files["depth/0.png"] = bytes(data)
    task = task_of(tmp_path, files, measured=[False, False])
    assert write_shard(task).samples == 2
    record = write_shard(dataclasses.replace(task, verify="decode", name="train-00001"))
    assert [each[0] for each in record.rejected] == ["key0"]
    assert "cannot be decoded" in record.rejected[0][3]


def test_a_shard_without_any_good_sample_is_not_written(tmp_path: Path) -> None:
    files = dict.fromkeys(payloads(2), b"text")
    record = write_shard(task_of(tmp_path, files))
    assert record.samples == 0
    assert [each.name for each in (tmp_path / "out").iterdir()] == [STATE_FOLDER]
    assert not list(staged(tmp_path).iterdir())


def test_a_finished_shard_is_kept_and_a_damaged_one_written_again(tmp_path: Path) -> None:
    task = task_of(tmp_path, payloads(3))
    record = write_shard(task)
    tar = staged(tmp_path) / "train-00000.tar"
    whole, made = tar.read_bytes(), tar.stat().st_ino
    assert write_shard(task) == record
    assert tar.stat().st_ino == made
    tar.write_bytes(whole[:-1] + b"x")
    assert write_shard(task) == record
    assert tar.read_bytes() == whole
    (staged(tmp_path) / "train-00000.idx").unlink()
    assert write_shard(task) == record
    state = tmp_path / "out" / STATE_FOLDER / "train-00000.json"
    state.write_text("{}")
    assert write_shard(task) == record
    other = dataclasses.replace(task, background=[5, 5, 5])
    assert write_shard(other).parts != record.parts


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    task = task_of(tmp_path, payloads(2))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr("shardify.writer.tar_writer.TarWriter._flush", full)
    else:
        monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(BuildError, match=r"No space left on device.*run the same command again"):
        write_shard(task)
    assert not list((tmp_path / "out").rglob("*.tar*"))


def test_a_zip_that_went_away_is_one_line(tmp_path: Path) -> None:
    task = task_of(tmp_path, payloads(1))
    (tmp_path / "x.zip").unlink()
    with pytest.raises(BuildError, match=r"x\.zip"):
        write_shard(task)


def test_backgrounds_are_measured_and_bad_ones_passed_over(tmp_path: Path) -> None:
    files = payloads(2)
    files["mask/0.jpg"] = b"text"
    task = task_of(tmp_path, files)
    moments = measure_backgrounds(
        BackgroundTask(sources=task.sources, names=task.entry_names(0), rows=task.rows[0])
    )
    assert moments.samples == 2
