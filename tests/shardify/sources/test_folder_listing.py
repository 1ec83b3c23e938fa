"""A folder of plain files is the same data set as a zip of them; nothing outside it is read."""

import os
import shutil
from pathlib import Path

import pytest
from shardline_bucket import BUCKET, serve
from shardline_scenes import composite
from shardline_sources import (
    content,
    files_of,
    inline,
    only,
    pack,
    run,
    shards,
    spread,
    stop_after,
)

from shardify.cli import main
from shardify.conversion.survey import BuildOptions, survey
from shardify.dataset.manifest import Manifest
from shardify.errors import OutputError, SourceError
from shardify.sources.folder_listing import list_folder
from shardify.storage.readers import FolderReader, open_folder

__all__ = ["inline"]

pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return files_of()


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return spread(tmp_path / "data", files)


def test_a_folder_gives_the_shards_of_a_zip_of_it_in_any_order(
    tmp_path: Path, folder: Path, files: dict[str, bytes]
) -> None:
    run([pack(tmp_path / "data.zip", files)], tmp_path / "zip")
    report = run([folder], tmp_path / "one")
    run([spread(tmp_path / "again" / "data", files, seed=7)], tmp_path / "two")
    assert shards(tmp_path / "one") == shards(tmp_path / "zip")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    (source,) = report.manifest.source
    assert (source.name, source.entries) == ("data", len(files))
    assert source.bytes == sum(map(len, files.values()))


def test_litter_and_finished_data_sets_in_the_folder_are_passed_over(
    tmp_path: Path, folder: Path
) -> None:
    run([folder], tmp_path / "plain")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "__MACOSX" / "bg").mkdir(parents=True)
    (folder / "__MACOSX" / "bg" / "._park1.jpg").write_bytes(b"x")
    run([folder], tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    (tmp_path / "out").rename(folder / "out")
    assert run([folder], folder / "out").already
    with pytest.raises(SourceError, match="made; expected the pictures"):
        survey([folder / "out"], BuildOptions())


@pytest.mark.parametrize("out", ["data", "data/out", "data/bg/../deep/out", "link/out"])
def test_a_new_out_inside_a_source_is_refused(tmp_path: Path, folder: Path, out: str) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = content(folder)
    with pytest.raises(OutputError, match=r"(out|data): lies in the source .*; choose another OUT"):
        run([folder], tmp_path / out)
    assert content(folder) == before


def test_an_out_around_a_source_is_refused(tmp_path: Path, folder: Path) -> None:
    packed = pack(tmp_path / "all" / "x.zip", files_of())
    for source in (folder, packed, tmp_path / "all" / "missing.zip"):
        with pytest.raises(OutputError, match=rf": holds the source {source}; .*another OUT"):
            run([source], source.parent)
    with pytest.raises(OutputError, match=r"^memory://a/b/out: lies in the source memory://a/b, "):
        run(["memory://a/b"], "memory://a/b/out")
    with pytest.raises(OutputError, match=r"^memory://a: holds the source memory://a/b\.zip; "):
        run(["memory://a/b.zip"], "memory://a")


def test_several_trees_are_one_data_set(tmp_path: Path, files: dict[str, bytes]) -> None:
    run([pack(tmp_path / "data.zip", files)], tmp_path / "zip")
    for role in ("bg", "fg_bg", "fg_bg_mask", "fg_bg_depth"):
        spread(tmp_path / "parts", only(files, role))
    found = [tmp_path / "parts" / role for role in ("fg_bg_depth", "bg", "fg_bg_mask", "fg_bg")]
    report = run(found, tmp_path / "out")
    assert shards(tmp_path / "out") == shards(tmp_path / "zip")
    assert [each.name for each in report.manifest.source] == [each.name for each in found]


def test_a_folder_may_hold_zips_and_files(tmp_path: Path, files: dict[str, bytes]) -> None:
    run([pack(tmp_path / "data.zip", files)], tmp_path / "zip")
    mixed = spread(tmp_path / "mixed", only(files, "bg", "fg_bg"))
    pack(mixed / "more" / "masks.zip", only(files, "fg_bg_mask"))
    pack(mixed / "more" / "depths", only(files, "fg_bg_depth"))  # A zip by its content alone.
    report = run([mixed], tmp_path / "out")
    assert shards(tmp_path / "out") == shards(tmp_path / "zip")
    assert [(each.name, each.entries) for each in report.manifest.source] == [
        ("mixed", 16), ("more/depths", 12), ("more/masks.zip", 12),
    ]  # fmt: skip


def test_links_and_devices_are_named_and_not_followed(tmp_path: Path, folder: Path) -> None:
    secret = tmp_path / "secret"
    spread(secret, only(files_of(4, first=100), "fg_bg", "fg_bg_mask", "fg_bg_depth"))
    (folder / "fg_bg" / "outside").symlink_to(secret / "fg_bg")
    (folder / "bg" / "park9.jpg").symlink_to(folder / "bg" / "park1.jpg")
    os.mkfifo(folder / "bg" / "park8.jpg")
    (folder / "bg" / "park\\7.jpg").write_bytes(b"x")
    (folder / "bg" / "line\nbreak.jpg").write_bytes(b"x")
    manifest = run([folder], tmp_path / "out").manifest
    assert sum(split.samples for split in manifest.splits.values()) == 12
    assert manifest.rejected.by_reason == {
        "is a device or pipe, not a file": 1,
        "is a link, not a file": 2,
        "its name has control characters or climbs out": 1,
    }
    assert "park9.jpg" in (tmp_path / "out" / "rejected.jsonl").read_text()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "data").symlink_to(folder)
    with pytest.raises(SourceError, match=r"nothing but links \(1\)"):
        survey([tmp_path / "links"], BuildOptions())
    # The user's own word for the folder may be a link.
    assert survey([tmp_path / "links" / "data"], BuildOptions()).usable.sum() == 12


def test_a_link_put_in_place_of_a_listed_folder_is_not_followed(tmp_path: Path) -> None:
    spread(tmp_path / "data", {"bg/deep/a.jpg": b"mine"})
    spread(tmp_path / "other", {"deep/a.jpg": b"their"})
    listed = list_folder(tmp_path / "data").files
    shutil.rmtree(tmp_path / "data" / "bg")
    (tmp_path / "data" / "bg").symlink_to(tmp_path / "other")
    tree = FolderReader(str(tmp_path / "data"))
    with pytest.raises(SourceError, match=r"bg/deep/a\.jpg: .* after the folder was listed"):
        tree.payload(listed[0][0], listed[0][2], listed[0][1])
    tree.close()


@pytest.mark.parametrize("how", ["longer", "shorter", "same size", "gone", "a pipe"])
def test_a_file_that_changes_meanwhile_ends_the_build_in_one_line(
    tmp_path: Path, folder: Path, how: str
) -> None:
    victim = next(folder.glob("fg_bg_depth/bg_004/*"))

    def change(_done: int, _total: int) -> None:
        data = victim.read_bytes() if victim.is_file() else b""
        if how == "gone":
            victim.unlink(missing_ok=True)
        elif how == "a pipe":
            victim.unlink()
            os.mkfifo(victim)
        else:
            victim.write_bytes({"longer": data + b"x", "shorter": data[:-1]}.get(how, data))
            os.utime(victim, ns=(1, 1))

    # A shard for each sample: the first is done before the victim's turn, whichever that is.
    with pytest.raises(SourceError, match=rf"{victim.name}: .*; expected files that stay") as told:
        for seed in range(9):
            run([folder], tmp_path / f"{seed}", shard_samples=1, seed=seed, progress=change)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_an_interrupted_build_of_a_folder_goes_on(tmp_path: Path, folder: Path) -> None:
    run([folder], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run([folder], tmp_path / "out", progress=stop_after(2))
    staged = (tmp_path / "out").glob(".shardify/staging/train-*.tar")
    kept = {tmp_path / "out" / path.name: path.stat().st_ino for path in staged}
    assert kept
    run([folder], tmp_path / "out")
    assert all(path.stat().st_ino == number for path, number in kept.items())
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_file_changed_between_two_runs_is_read_again(
    tmp_path: Path, folder: Path, files: dict[str, bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run([folder], tmp_path / "out", progress=stop_after(3))
    changed = 0
    for path in folder.glob("fg_bg/*/*"):
        data = composite(500 + int(path.stem[-3:]), int(path.parent.name[-3:]))
        size = len(files[str(path.relative_to(folder))])
        if len(data) <= size:  # Trailing bytes are allowed: the same size, another picture.
            path.write_bytes(data.ljust(size, b"\0"))
            changed += 1
    assert changed
    run([folder], tmp_path / "out")
    run([folder], tmp_path / "anew")
    assert content(tmp_path / "out") == content(tmp_path / "anew")


def test_a_source_is_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(folder), str(folder) + "/"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        f"Error: {folder}: named twice; expected each source once; name it once\n"
    )


def test_objects_under_a_prefix_are_read_many_at_a_time(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    run([spread(tmp_path / "data", files)], tmp_path / "local")
    with serve() as store:
        for name, data in files.items():
            store.put(f"set/data/{name}", data)
        run([f"s3://{BUCKET}/set/data/"], tmp_path / "out")
        assert shards(tmp_path / "out") == shards(tmp_path / "local")
        there, here = (Manifest.load(tmp_path / out) for out in ("out", "local"))
        assert there.source == here.source
        store.put(f"set/data/{next(iter(files))}", b"another")
        tree = open_folder(f"s3://{BUCKET}/set/data/")
        with pytest.raises(SourceError, match="was changed after it was listed"):
            tree.payload(next(iter(files)).encode(), 0, 99)
