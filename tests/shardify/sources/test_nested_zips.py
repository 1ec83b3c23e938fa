"""Zips inside a zip are read as if they were unpacked; deeper ones and bombs are refused."""

import contextlib
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from shardline_bucket import BUCKET, serve
from shardline_sources import (
    DEFLATED,
    STORED,
    content,
    files_of,
    inline,
    only,
    pack,
    run,
    shards,
    spread,
    stop_after,
    zipped,
)

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions, survey
from shardify.errors import ArchiveError, EntryError, OutputError, ShardifyError, StoreError
from shardify.sources.catalog import OpenSources, entry_reader
from shardify.sources.nested_zips import UnpackCache
from shardify.sources.open_sources import open_sources

__all__ = ["inline"]

ROLES = ("bg", "fg_bg", "fg_bg_mask", "fg_bg_depth")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return files_of()


def inner(files: dict[str, bytes], extension: str = ".zip") -> dict[str, bytes]:
    """A zip for each role, whose name alone tells the role."""
    return {
        f"parts/{role}{extension}": zipped(
            {name.partition("/")[2]: data for name, data in only(files, role).items()}
        )
        for role in ROLES
    }


@pytest.fixture
def plain(tmp_path: Path, files: dict[str, bytes], inline: None) -> dict[str, bytes]:
    """What the same files give when they lie in a folder."""
    del inline
    run([spread(tmp_path / "plain", files)], tmp_path / "whole")
    return shards(tmp_path / "whole")


@pytest.mark.parametrize("extension", [".zip", ".ZIP", ""])
@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_zips_in_a_zip_give_the_shards_of_their_files(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes], method: int, extension: str
) -> None:
    source = pack(tmp_path / "all.zip", inner(files, extension), method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", _forbidden)
        report = run([source], tmp_path / "out")
    assert shards(tmp_path / "out") == plain
    (named,) = report.manifest.source
    assert (named.name, named.entries) == ("all.zip", 4)
    assert not (tmp_path / "out" / ".shardify").exists()


def _forbidden(*_: object, **__: object) -> None:
    raise AssertionError("something was written outside OUT")


def test_inner_zips_lie_beside_plain_files_in_zips_and_folders(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    packed = {name: data for name, data in inner(files).items() if "mask" in name or "dep" in name}
    pack(tmp_path / "data" / "labels.zip", packed, STORED)
    spread(tmp_path / "data", only(files, "bg"))
    spread(tmp_path / "data", {"more/composites": zipped(only(files, "fg_bg"))})
    run([tmp_path / "data"], tmp_path / "out")
    assert shards(tmp_path / "out") == plain


def test_a_zip_wrapped_in_a_zip_with_prepended_bytes_is_read(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    wrapped = zipped({"data.zip": zipped(files, STORED)}, STORED)
    (tmp_path / "all.zip").write_bytes(b"#!/bin/sh\n" * 9 + wrapped)
    run([tmp_path / "all.zip"], tmp_path / "out")
    assert shards(tmp_path / "out") == plain


def test_inspect_writes_nothing_that_stays(tmp_path: Path, files: dict[str, bytes]) -> None:
    source = pack(tmp_path / "all.zip", inner(files))
    assert survey([source], BuildOptions()).usable.sum() == 12
    assert list(tmp_path.iterdir()) == [source]


def test_workers_of_their_own_read_what_was_unpacked(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    source = pack(tmp_path / "all.zip", inner(files))
    report = build([source], tmp_path / "out", BuildOptions(val=0.25, workers=1))
    assert sum(split.samples for split in report.manifest.splits.values()) == 12


def test_an_interrupted_build_finds_what_it_unpacked(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    del plain
    source = pack(tmp_path / "all.zip", inner(files))
    run([source], tmp_path / "once")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run([source], out, progress=stop_after(1))
    work = out / ".shardify" / "inner"
    kept = {path.name: path.stat().st_ino for path in work.glob("*.zip")}
    assert len(kept) == 4
    # One was cut and one is still being written: neither is believed.
    cut, *_ = kept
    (work / cut).write_bytes((work / cut).read_bytes()[:-9])
    (work / f"{cut}.tmp").write_bytes(b"half")
    seen: dict[str, int] = {}

    def look(_done: int, _total: int) -> None:
        seen.update({path.name: path.stat().st_ino for path in work.iterdir()})

    run([source], out, progress=look)
    assert {name: seen[name] for name in kept if name != cut} == {
        name: number for name, number in kept.items() if name != cut
    }
    assert f"{cut}.tmp" not in seen
    assert content(out) == content(tmp_path / "once")


def test_a_refused_source_leaves_nothing_in_out(
    tmp_path: Path, files: dict[str, bytes], inline: None
) -> None:
    del inline
    lone = {name: data for name, data in inner(files).items() if "fg_bg." in name}
    with pytest.raises(ShardifyError, match="no masks"):
        run([pack(tmp_path / "x.zip", lone)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = run([pack(tmp_path / "all.zip", inner(files))], tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(OutputError, match="another source"):
        run([pack(tmp_path / "more.zip", inner(files_of(13)))], tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert run([tmp_path / "all.zip"], tmp_path / "out").manifest == done.manifest
    assert content(tmp_path / "out") == before


def test_two_levels_are_refused_with_the_remedy(tmp_path: Path, files: dict[str, bytes]) -> None:
    for method in (STORED, DEFLATED):
        deep = zipped({"deep.zip": zipped(files)}, method)
        source = pack(tmp_path / f"{method}.zip", {"inner.zip": deep}, method)
        with pytest.raises(ArchiveError, match=r"inner\.zip: holds deep\.zip, .*; unpack"):
            survey([source], BuildOptions())


def test_a_bomb_in_a_zip_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    # 24 MB of zeros in 24 kB, and 60 of them: each zip for itself is under every limit.
    layer = zipped({f"{number}.jpg": bytes(24 << 20) for number in range(1)})
    bomb = zipped({f"{number:03d}.zip": layer for number in range(60)}, DEFLATED)
    (tmp_path / "bomb.zip").write_bytes(bomb)
    with pytest.raises(ArchiveError, match=r"with the zips in it, .* as a zip bomb does; refused"):
        survey([tmp_path / "bomb.zip"], BuildOptions())


def test_an_inner_zip_that_lies_about_its_size_is_refused(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    source = pack(tmp_path / "x.zip", inner(files))
    data = bytearray(source.read_bytes())
    place = data.find(b"PK\x01\x02") + 24
    stated = int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = (stated - 100).to_bytes(4, "little")
    source.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"x\.zip: parts/bg\.zip: unpacks to another size"):
        survey([source], BuildOptions())


def test_a_damaged_inner_zip_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    parts = inner(files)
    parts["parts/fg_bg.zip"] = parts["parts/fg_bg.zip"][:-30]
    with pytest.raises(ArchiveError, match=r"^x\.zip: parts/fg_bg\.zip: a zip without its end"):
        survey([pack(tmp_path / "x.zip", parts, STORED)], BuildOptions())


def test_damage_in_an_inner_entry_leaves_out_its_sample_alone(
    tmp_path: Path, files: dict[str, bytes], inline: None
) -> None:
    del inline
    parts = inner(files)
    data = parts["parts/fg_bg_depth.zip"]
    parts["parts/fg_bg_depth.zip"] = data[:200] + bytes(40) + data[240:]
    report = run([pack(tmp_path / "x.zip", parts, STORED)], tmp_path / "out", max_bad=0.5)
    assert sum(split.samples for split in report.manifest.splits.values()) == 11


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_damaged_zips_in_a_zip_end_in_entries_or_one_line(
    tmp_path: Path, files: dict[str, bytes], method: int
) -> None:
    sound = zipped(inner(files), method)
    path = tmp_path / "x.zip"
    read = refused = 0
    for seed in range(60):
        draw = np.random.Generator(np.random.Philox(key=seed))
        data = bytearray(sound)
        for _ in range(1 + seed % 9):
            data[int(draw.integers(len(data)))] = int(draw.integers(256))
        path.write_bytes(data)
        try:
            with UnpackCache(tmp_path / "out" / ".shardify") as work:
                catalog = open_sources([path], work)
                with OpenSources([each.path for each in catalog.sources]) as handles:
                    entry = entry_reader(catalog, handles)
                    for number in range(len(catalog.names)):
                        with contextlib.suppress(EntryError):
                            read += len(entry(number)) > 0
        except ArchiveError as error:
            assert "\n" not in str(error)
            refused += 1
        assert list(tmp_path.iterdir()) == [path]
    # A deflated one has a checksum for all; of a stored one what is whole is read.
    assert refused > 30 if method == DEFLATED else read > 500


def test_what_is_only_called_a_zip_is_passed_over(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    source = pack(tmp_path / "x.zip", files | {"notes.zip": b"no zip at all", "list": b"PK" * 40})
    report = run([source], tmp_path / "out")
    assert shards(tmp_path / "out") == plain
    assert report.manifest.layout["ignored"] == {".zip": 1, "without extension": 1}


def test_an_encrypted_inner_zip_is_left_out_by_name(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    source = pack(tmp_path / "x.zip", files | {"secret.zip": zipped(files)})
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as file:
        begin = file.start_dir
    record = data.rfind(b"PK\x01\x02", begin)
    data[record + 8] |= 1
    source.write_bytes(data)
    report = run([source], tmp_path / "out")
    assert shards(tmp_path / "out") == plain
    assert report.manifest.rejected.by_reason == {"a zip, encrypted": 1}


def test_inner_zips_of_an_object_in_a_store_are_read_by_ranges(
    tmp_path: Path, files: dict[str, bytes], plain: dict[str, bytes]
) -> None:
    with serve() as store:
        for method in (STORED, DEFLATED):
            url = store.put("all.zip", zipped(inner(files), method))
            run([url], tmp_path / f"{method}")
            assert shards(tmp_path / f"{method}") == plain
        out = f"s3://{BUCKET}/out"
        run([url], out)
        there = {
            name: data for name, data in store.content("out").items() if ".shardify" not in name
        }
    assert {name: data for name, data in there.items() if name.endswith((".tar", ".idx"))} == plain


def test_other_machines_cannot_be_asked_to_read_what_only_this_one_has(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", {"a.zip": zipped({"a.jpg": b"x"})})
    with UnpackCache(shared=True) as work, pytest.raises(StoreError, match="every worker sees"):
        survey([source], BuildOptions(), work)


def test_one_build_at_a_time_unpacks(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", inner(files_of()))
    with UnpackCache(tmp_path / "out" / ".shardify") as work:
        survey([source], BuildOptions(), work)
        with (
            UnpackCache(tmp_path / "out" / ".shardify") as other,
            pytest.raises(OutputError, match="another build"),
        ):
            survey([source], BuildOptions(), other)
    assert not (tmp_path / "out").exists()
