"""A build is exact, resumable and the same for everybody; or it is refused and nothing is there."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shardline_sources
from PIL import Image
from shardline_scenes import SIDE, background, encoded, flat_mask, noise

from shardify.conversion import output_folder
from shardify.conversion.build import BuildReport, build
from shardify.conversion.survey import BuildOptions, survey
from shardify.dataset.manifest import Manifest
from shardify.dataset.verify import verify
from shardify.errors import BuildError, LayoutError, OutputError, ShardifyError
from shardify.storage import readahead
from shardify.storage.page_cache import CacheReader
from shardify.storage.readahead import ReadAhead
from shardify.workers.factory import start_build_workers

OPTIONS = BuildOptions(val=0.25, workers=1, shard_samples=5)


def files_of(samples: int = 24, backgrounds: int = 4) -> dict[str, bytes]:
    files = shardline_sources.files_of(samples, backgrounds)
    return {f"data_all/{name}": data for name, data in files.items()}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def run(source: Path, out: Path, **options: object) -> BuildReport:
    return build(
        [source], out, BuildOptions(**{"val": 0.25, "workers": 1, "shard_samples": 5} | options)
    )  # type: ignore[arg-type]


def test_every_sample_stands_in_the_shards_once_with_its_own_background(tmp_path: Path) -> None:
    files = files_of()
    report = run(pack(tmp_path / "x.zip", files), tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    assert report.manifest == manifest
    seen: set[str] = set()
    on: dict[str, set[int]] = {"train": set(), "val": set()}
    for split, shards in manifest.splits.items():
        for shard in shards.shards:
            with tarfile.open(tmp_path / "out" / shard.name) as tar:
                for info in tar:
                    key, _, extension = info.name.partition(".")
                    data = tar.extractfile(info).read()  # type: ignore[union-attr]
                    folder = key[7:13]
                    if extension == "bg.cls":
                        seen.add(key)
                        on[split].add(int(data))
                        assert manifest.backgrounds[int(data)].id.endswith(str(int(folder[3:])))
                        continue
                    role = extension.split(".")[0]
                    name = {
                        "fg_bg": f"data_all/fg_bg/{folder}/{key}.jpg",
                        "mask": f"data_all/fg_bg_mask/{folder}/mask_{key}.jpg",
                        "depth": f"data_all/fg_bg_depth/{folder}/depth_{key}.png",
                    }[role]
                    assert data == files[name]
    assert len(seen) == 24
    assert not on["train"] & on["val"]
    assert on["val"]
    with tarfile.open(tmp_path / "out" / "backgrounds.tar") as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    assert found == {
        each.member: files[f"data_all/bg/{each.member}"] for each in manifest.backgrounds
    }


def test_the_manifest_tells_sizes_and_statistics(tmp_path: Path) -> None:
    manifest = run(pack(tmp_path / "x.zip", files_of()), tmp_path / "out").manifest
    assert manifest.roles["bg"].sizes == [[40, 30, 4]]
    assert manifest.roles["fg_bg"].sizes == [[24, 24, 24]]
    assert manifest.roles["fg_bg"].channels == 3
    assert manifest.roles["mask"].threshold == 150
    assert manifest.roles["depth"].sizes == [[16, 16, 24]]
    assert manifest.roles["depth"].extensions == ["png"]
    assert manifest.stats["bg"].samples == 4
    assert manifest.stats["fg_bg"].samples == 18
    assert manifest.stats["depth"].mean[0] == pytest.approx(0.5, abs=0.05)
    assert len(manifest.stats["fg_bg"].std) == 3


def test_the_same_bytes_for_any_workers_and_entry_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of()
    first = pack(tmp_path / "x.zip", files)
    run(first, tmp_path / "one")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    old = os.umask(0o077)
    try:
        run(first, tmp_path / "three", workers=3)
    finally:
        os.umask(old)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    (tmp_path / "other").mkdir()
    turned = pack(tmp_path / "other" / "x.zip", dict(reversed(files.items())))
    run(turned, tmp_path / "turned", workers=2)
    one, two = content(tmp_path / "one"), content(tmp_path / "turned")
    # The manifest names the directory's digest, which the order is part of.
    del one["manifest.json"], two["manifest.json"]
    assert one == two


def test_another_seed_gives_another_order_of_the_same_samples(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    a = run(source, tmp_path / "a").manifest
    b = run(source, tmp_path / "b", seed=1).manifest
    assert a.splits["train"].shards[0].sha256 != b.splits["train"].shards[0].sha256
    assert a.backgrounds == b.backgrounds


def test_without_validation_all_samples_train(tmp_path: Path) -> None:
    manifest = run(pack(tmp_path / "x.zip", files_of()), tmp_path / "out", val=0).manifest
    assert manifest.splits["train"].samples == 24
    assert manifest.splits["val"].samples == 0


def test_foregrounds_can_be_held_back_instead(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    found = survey([source], BuildOptions(val=0.3, group_by="fg"))
    assert found.layout.foreground is not None
    sides = [
        {int(each) for plan in plans for each in found.layout.foreground[plan.samples]}
        for plans in found.shards.values()
    ]
    assert not sides[0] & sides[1]
    assert sides[1]


def test_samples_on_one_background_can_be_held_back_each_for_itself(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of(backgrounds=1))
    assert run(source, tmp_path / "out", group_by="none").manifest.splits["val"].samples == 6


BAD = "data_all/fg_bg_mask/bg_002/mask_fg_001_bg_002_000001.jpg"


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "empty"), (b"plain text", "not an image"), (b"\xff\xd8\xff\xe0", "truncated JPEG")],
)
def test_a_bad_member_is_named_and_its_sample_left_out(
    tmp_path: Path, data: bytes, says: str
) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: data})
    manifest = run(source, tmp_path / "out", max_bad=0.1).manifest
    assert sum(split.samples for split in manifest.splits.values()) == 23
    lines = [
        json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().split("\n")[:-1]
    ]
    assert [(line["key"], line["member"], line["role"]) for line in lines] == [
        ("fg_001_bg_002_000001", BAD, "mask")
    ]
    assert says in lines[0]["reason"]
    assert manifest.rejected.count == 1
    assert list(manifest.rejected.by_reason) == [lines[0]["reason"]]


def test_too_much_that_is_bad_refuses_the_build_and_publishes_nothing(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: b"text"})
    with pytest.raises(BuildError, match=r"1 of 24 samples are bad.*--max-bad.*not an image"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    # Only the limit changed: what is finished is of use.
    assert run(source, tmp_path / "out", max_bad=0.1).manifest.rejected.count == 1


def test_a_bad_background_takes_its_samples_along(tmp_path: Path) -> None:
    name = "data_all/bg/park3.jpg"
    source = pack(tmp_path / "x.zip", files_of() | {name: b"text"})
    with pytest.raises(BuildError, match="6 of 24 samples"):
        run(source, tmp_path / "out")
    manifest = run(source, tmp_path / "out", max_bad=0.3).manifest
    assert [each.id[-1] for each in manifest.backgrounds] == ["1", "2", "4"]
    assert [each.index for each in manifest.backgrounds] == [0, 1, 2]
    assert sum(split.samples for split in manifest.splits.values()) == 18
    for split in manifest.splits.values():
        for shard in split.shards:
            with tarfile.open(tmp_path / "out" / shard.name) as tar:
                for info in tar:
                    if info.name.endswith("bg.cls"):
                        index = int(tar.extractfile(info).read())  # type: ignore[union-attr]
                        assert manifest.backgrounds[index].id[-1] == info.name[12]


def test_a_zip_of_nothing_but_damage_is_refused(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", dict.fromkeys(files_of(), b"text"))
    with pytest.raises(BuildError, match=r"none of the 16 image files looked at can be read"):
        run(source, tmp_path / "out", max_bad=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_zip_without_masks_is_built_without_and_says_that_nothing_was_proven(
    tmp_path: Path,
) -> None:
    files = {name: data for name, data in files_of().items() if "mask" not in name}
    manifest = run(pack(tmp_path / "x.zip", files), tmp_path / "out").manifest
    assert list(manifest.roles) == ["bg", "fg_bg", "depth"]
    assert str(manifest.layout["background"]["proof"]).startswith("none: without masks")  # type: ignore[index]
    assert sum(split.samples for split in manifest.splits.values()) == 24


def test_masks_under_another_name_are_known_by_their_pixels_or_asked_for(tmp_path: Path) -> None:
    files = {
        f"data_all/stuff/{name[-10:]}" if "mask" in name else name: data
        for name, data in files_of().items()
    }
    bare = {name: data for name, data in files.items() if "/bg/" in name or "/fg_bg/" in name}
    with pytest.raises(LayoutError, match=r"no masks .* among 4 bg, 24 fg_bg"):
        run(pack(tmp_path / "x.zip", bare), tmp_path / "out")
    one = encoded(np.zeros((SIDE, SIDE), np.uint8), "PNG")
    flat = {name: one if "stuff" in name else data for name, data in files.items()}
    with pytest.raises(LayoutError, match=r"no masks .* among 4 bg, 24 fg_bg, 24 depth, 24 others"):
        run(pack(tmp_path / "x.zip", flat), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files = {
        name: flat_mask(255, "JPEG") if "stuff" in name else data for name, data in files.items()
    }
    manifest = run(pack(tmp_path / "x.zip", files), tmp_path / "out").manifest
    assert list(manifest.roles) == ["bg", "fg_bg", "mask", "depth"]


def test_out_that_is_a_file_or_holds_something_else_is_refused(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="a file"):
        run(source, tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"precious\.txt"):
        run(source, tmp_path / "folder")
    assert (tmp_path / "file").read_text() == "mine"
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["precious.txt"]
    with pytest.raises(ShardifyError):
        run(source, tmp_path / "file" / "below")


def test_a_finished_data_set_is_left_alone(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    run(source, tmp_path / "out")
    before = content(tmp_path / "out")
    assert run(source, tmp_path / "out", workers=2).already
    with pytest.raises(OutputError, match=r"other options \(seed\)"):
        run(source, tmp_path / "out", seed=1)
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match="another source"):
        run(pack(tmp_path / "other" / "x.zip", files_of(25)), tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_leftovers_are_no_data_and_are_cleared(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: b"text"})
    with pytest.raises(BuildError):
        run(source, tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out" / ".shardify" / "staging"):
        (folder / "train-00000.tar.tmp").write_bytes(b"half")
        (folder / "train-00099.tar").write_bytes(b"an earlier plan's")
    run(source, tmp_path / "out", max_bad=0.1)
    run(source, tmp_path / "fresh", max_bad=0.1)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_a_refused_build_leaves_nothing_under_a_final_name(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: b"text"})
    with pytest.raises(BuildError):
        run(source, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".shardify"]
    assert list((tmp_path / "out").glob(".shardify/staging/*.tar"))


@pytest.mark.parametrize("options", [{}, {"codec": "png", "res": (8, 16)}])
@pytest.mark.parametrize("moves", [0, 3, 100])
@pytest.mark.parametrize("kill", [False, True])
def test_a_build_that_was_stopped_while_it_moved_its_files_goes_on_to_the_same_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    moves: int,
    kill: bool,
) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    run(source, tmp_path / "whole", **options)
    replace, calls = Path.replace, itertools.count()

    def killed(self: Path, target: Path) -> Path:
        # After so many moves, or, when all are made, at the manifest of the whole.
        if "staging" in self.parts and not self.name.endswith(".tmp") and next(calls) >= moves:
            raise KeyboardInterrupt
        if Path(target) == tmp_path / "out" / "manifest.json":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        if kill:
            patched.setattr(output_folder, "_move_back", lambda _: None)
        run(source, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    if not kill:
        assert {"train-00000.tar", "backgrounds.tar"}.isdisjoint(content(tmp_path / "out"))
        assert not list((tmp_path / "out").glob("res-*/*"))
    run(source, tmp_path / "out", **options)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("narrow", [1, 12])
def test_depth_maps_of_8_and_of_16_bits_are_refused(tmp_path: Path, narrow: int) -> None:
    files = files_of(24)
    names = sorted(name for name in files if "depth" in name)
    for number, name in enumerate(names):
        plane = np.full((SIDE, SIDE), 7 * number)
        wide = number >= narrow
        files[name] = encoded(plane.astype(np.uint16 if wide else np.uint8), "PNG")
    with pytest.raises(BuildError, match=r"depth maps with .*; expected one.*; save all"):
        run(pack(tmp_path / "x.zip", files), tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tar"))


def test_an_unfinished_build_of_something_else_is_refused(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: b"text"})
    with pytest.raises(BuildError):
        run(source, tmp_path / "out")
    with pytest.raises(OutputError, match=r"unfinished build.*\(val\)"):
        run(source, tmp_path / "out", val=0.5)


@pytest.mark.parametrize("memory", [1 << 40, 100_000])
def test_a_build_gives_the_same_bytes_however_its_zip_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    source = pack(tmp_path / "x.zip", files_of(48))
    run(source, tmp_path / "plain", shard_samples=2)
    read: list[object] = []
    step = CacheReader._wait
    monkeypatch.setattr(CacheReader, "_is_cached", lambda *_: False)

    def counted(*given: Any) -> None:
        read.append(given)
        step(*given)

    monkeypatch.setattr(CacheReader, "_wait", counted)
    monkeypatch.setattr(readahead, "available_memory", lambda: memory)
    run(source, tmp_path / "out", shard_samples=2, workers=2)
    assert read
    assert content(tmp_path / "out") == content(tmp_path / "plain")


def test_what_an_earlier_run_finished_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: b"text"})
    with pytest.raises(BuildError):
        run(source, tmp_path / "out")
    kept = len(list((tmp_path / "out" / ".shardify").glob("*-*.json")))
    asked: list[list[int]] = []
    paced = ReadAhead.ready_tasks

    def watched(self: ReadAhead, tasks: Any, rows: Any, *rest: Any, **more: Any) -> Iterator[Any]:
        asked.append([each.size for each in rows()])
        return paced(self, tasks, rows, *rest, **more)

    monkeypatch.setattr(ReadAhead, "ready_tasks", watched)
    run(source, tmp_path / "out", max_bad=0.1)
    assert kept and asked[0].count(0) == kept < len(asked[0])


COMMAND = [
    sys.executable, "-m", "shardify", "build", "--val", "0.25", "--shard-samples", "2", "--workers",
    "2", "--verify", "decode",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source, and what an uninterrupted build makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    source = pack(folder / "x.zip", files_of(48))
    run(source, folder / "out", shard_samples=2, verify="decode")
    return source, content(folder / "out")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("shards", [0, 5])
def test_a_build_that_was_cut_off_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: tuple[Path, dict[str, bytes]], number: signal.Signals, shards: int
) -> None:
    source, expected = whole
    out = tmp_path / "out"
    process = subprocess.Popen([*COMMAND, source, out], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if out.exists() and len(list(out.glob(".shardify/staging/*.idx"))) >= shards:
            break
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert b"Traceback" not in errors
    assert process.returncode in ((-number, 0) if number == signal.SIGKILL else (130, 0))
    assert (process.returncode == 130) == (b"Interrupted" in errors)
    run(source, out, shard_samples=2, verify="decode")
    assert content(out) == expected


def test_photographs_convert_exactly(tmp_path: Path, photos: Path) -> None:
    report = build([photos], tmp_path / "out", BuildOptions())
    manifest = report.manifest
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 1900, "val": 100,
    }  # fmt: skip
    assert manifest.rejected.count == 0
    assert len(manifest.backgrounds) == 100
    assert manifest.roles["fg_bg"].sizes == [[250, 250, 2000]]
    assert manifest.roles["depth"].sizes == [[224, 224, 2000]]
    assert not verify(tmp_path / "out").problems


def test_several_resolutions_are_data_sets_with_the_same_keys_in_the_same_order(
    tmp_path: Path,
) -> None:
    source = pack(tmp_path / "x.zip", files_of() | {BAD: b"text"})
    report = run(source, tmp_path / "out", res=(16, 8), codec="raw", max_bad=0.1)
    top = Manifest.load(tmp_path / "out")
    assert [(each.res, each.path) for each in top.resolutions] == [(8, "res-008"), (16, "res-016")]
    assert top.splits == {}
    keys = []
    for each in top.resolutions:
        folder = tmp_path / "out" / each.path
        part = Manifest.load(folder)
        assert part.roles["fg_bg"].sizes == [[each.res, each.res, 23]]
        assert part.roles["fg_bg"].codec == "raw"
        assert (part.roles["mask"].bits, part.roles["depth"].bits) == (1, 8)
        assert part.roles["bg"].sizes == [[each.res, each.res, 4]]
        assert part.costs["mask"]["iou"] == 1
        found = {}
        for split in part.splits.values():
            for shard in split.shards:
                with tarfile.open(folder / shard.name) as tar:
                    found |= {info.name: info.size for info in tar}
        assert {size for name, size in found.items() if name.endswith("fg_bg.raw")} == {
            3 * each.res**2
        }
        assert {size for name, size in found.items() if name.endswith("mask.raw")} == {
            each.res**2 // 8
        }
        keys.append(list(found))
    assert keys[0] == keys[1]
    assert len(report.parts) == 2
    assert not verify(tmp_path / "out", deep=True, workers=1).problems
    damaged = tmp_path / "out" / "res-008" / "train-00000.idx"
    damaged.write_text("")
    for stated in (tmp_path / "out", tmp_path / "out" / "res-016"):
        text = (stated / "manifest.json").read_text()
        (stated / "manifest.json").write_text(text.replace('"seed": 0', '"seed": 4'))
    assert [problem.partition(":")[0] for problem in verify(tmp_path / "out").problems] == [
        "manifest.json", "res-008/train-00000.idx", "res-016/manifest.json",
    ]  # fmt: skip
    top.save(tmp_path / "out")
    again = run(source, tmp_path / "out", res=(16, 8), codec="raw", max_bad=0.1)
    assert again.already


def test_one_resolution_is_written_to_out_itself(tmp_path: Path) -> None:
    manifest = run(pack(tmp_path / "x.zip", files_of()), tmp_path / "out", res=(8,)).manifest
    assert manifest.roles["fg_bg"].extensions == ["jpg"]
    assert manifest.roles["mask"].extensions == ["png"]
    assert manifest.roles["depth"].sizes == [[8, 8, 24]]
    assert 0 < manifest.costs["fg_bg"]["rmse"] < 0.1
    assert manifest.costs["depth"]["rmse"] == 0


def test_resolutions_need_not_be_square(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    top = run(source, tmp_path / "out", res=("16x8", 8, (12, 20))).manifest
    stored = [("8", "res-008"), ("12x20", "res-12x20"), ("16x8", "res-16x8")]
    assert [(str(each.res), each.path) for each in top.resolutions] == stored
    for each in top.resolutions:
        part = Manifest.load(tmp_path / "out" / each.path)
        for role in ("bg", "fg_bg", "mask", "depth"):
            assert part.roles[role].sizes[0][:2] == [each.size.width, each.size.height]
    assert run(source, tmp_path / "out", res=((16, 8), "8x8", "12x20")).already


def test_the_manifest_of_squares_has_their_sides_as_numbers(tmp_path: Path) -> None:
    run(pack(tmp_path / "x.zip", files_of()), tmp_path / "out", res=(8, 16))
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert written["options"]["res"] == [8, 16]
    assert [each["res"] for each in written["resolutions"]] == [8, 16]


def test_raw_pictures_of_several_sizes_are_refused(tmp_path: Path) -> None:
    name = "data_all/bg/park1.jpg"
    source = pack(tmp_path / "x.zip", files_of() | {name: background(1, (44, 33))})
    with pytest.raises(BuildError, match="pass --res"):
        run(source, tmp_path / "out", codec="raw")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_masks_of_zeros_and_ones_are_converted_and_that_is_recorded(tmp_path: Path) -> None:
    files = files_of()
    files |= {name: flat_mask(1) for name in files if "mask" in name}
    manifest = run(pack(tmp_path / "x.zip", files), tmp_path / "out").manifest
    assert manifest.layout["masks"] == "level 1"
    assert list(manifest.layout["converted"].values()) == [24]
    assert manifest.roles["mask"].extensions == ["png"]
    assert manifest.stats["mask"].mean[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("options", [{}, {"codec": "png", "res": (8, 16)}])
def test_a_worker_that_dies_costs_nothing_but_a_rerun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    source = pack(tmp_path / "x.zip", files_of(48))
    from shardify.workers.process_pool import Workers

    ordinary = Workers.map

    def killing(self: Workers, tasks: object) -> object:
        for number, result in enumerate(ordinary(self, tasks)):  # type: ignore[arg-type]
            yield result
            if number == 4:
                for pid in self.pids:
                    os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Workers, "map", killing)
    with pytest.raises(BuildError, match=r"died by signal 9.*run the same command again"):
        run(source, tmp_path / "out", workers=2, **options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(Workers, "map", ordinary)
    run(source, tmp_path / "out", workers=2, **options)
    run(source, tmp_path / "whole", **options)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def contradicting(path: Path, samples: int) -> Path:
    """A zip in which each composite is exactly the background after the one that it is said to be
    on."""
    whole = {number: encoded(noise(number), "PNG") for number in range(1, 5)}
    files = {f"bg/park{number}.png": data for number, data in whole.items()}
    for number in range(samples):
        back = number % 4 + 1
        files[f"fg_bg/bg_{back}_{number}.png"] = whole[back % 4 + 1]
        corner = np.zeros((24, 24), np.uint8)
        corner[:2, :2] = 255
        files[f"mask/bg_{back}_{number}.png"] = encoded(corner, "PNG")
    return pack(path, files)


@pytest.mark.parametrize("there", [False, True])
def test_a_build_that_the_pixels_refuse_leaves_nothing_behind(tmp_path: Path, there: bool) -> None:
    source = contradicting(tmp_path / "x.zip", 200)
    if there:
        (tmp_path / "out").mkdir()
    with pytest.raises(LayoutError, match="pixels contradict"):
        run(source, tmp_path / "out", workers=2)
    assert (tmp_path / "out").exists() == there
    assert not there or not list((tmp_path / "out").iterdir())


def test_what_killed_workers_left_goes_with_a_refused_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = contradicting(tmp_path / "x.zip", 200)
    halves = [
        ".shardify/staging/train-00001.idx.tmp",
        ".shardify/staging/train-00001.tar.0badcafe.tmp",
        ".shardify/train-00001.json.tmp",
    ]

    def withdraw_(out: Path, *given: Any, **how: Any) -> None:
        for half in halves:
            (out / half).write_bytes(b"half")
        output_folder.roll_back(out, *given, **how)

    monkeypatch.setattr("shardify.conversion.build.roll_back", withdraw_)
    with pytest.raises(LayoutError, match="pixels contradict"):
        run(source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_workers_that_were_hired_before_are_gone_when_a_refused_build_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = contradicting(tmp_path / "x.zip", 400)
    chosen = {"codec": "keep", "res": (), "verify": "decode", "workers": 2, "scheduler": None}
    pids: list[int] = []
    alive: list[int] = []

    def withdraw_(*given: Any, **how: Any) -> None:
        alive.extend(pid for pid in pids if Path(f"/proc/{pid}").exists())
        output_folder.roll_back(*given, **how)

    monkeypatch.setattr("shardify.conversion.build.roll_back", withdraw_)
    with start_build_workers([source], tmp_path / "out", **chosen) as pool:
        pids += pool.pids  # type: ignore[attr-defined]
        with pytest.raises(LayoutError, match="pixels contradict"):
            build(
                [source],
                tmp_path / "out",
                BuildOptions(verify="decode", shard_samples=20),
                pool=pool,
            )
    assert len(pids) == 2 and not alive
    assert not (tmp_path / "out").exists()


def test_what_inspect_prints_builds_the_same_data_set_as_a_layout_file(tmp_path: Path) -> None:
    source = pack(tmp_path / "x.zip", files_of())
    (tmp_path / "layout.toml").write_text(survey([source], OPTIONS).layout_file())
    given = survey([source], BuildOptions(val=0.25, layout=tmp_path / "layout.toml"))
    assert given.digest() == survey([source], OPTIONS).digest()
    plain = run(source, tmp_path / "plain").manifest
    told = run(source, tmp_path / "told", layout=tmp_path / "layout.toml").manifest
    assert told.splits == plain.splits


def test_a_layout_file_leaves_out_the_folder_that_all_share(tmp_path: Path) -> None:
    files = {
        f"{name.rpartition('/')[0]}/{int(name[-10:-4]) // 4}{name[-4:]}" if "/bg/" not in name
        else name: data
        for name, data in files_of().items()
    }  # fmt: skip
    source = pack(tmp_path / "x.zip", files)
    found = survey([source], OPTIONS)
    assert found.layout.keys[0] == "fg_bg_bg_001_0"
    (tmp_path / "layout.toml").write_text(found.layout_file())
    given = survey([source], BuildOptions(val=0.25, layout=tmp_path / "layout.toml"))
    assert given.layout.keys == found.layout.keys
    assert given.digest() == found.digest()


def test_a_folder_of_zips_is_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    files = files_of()
    for role in ("bg/", "fg_bg/", "fg_bg_mask/", "fg_bg_depth/"):
        part = {name: data for name, data in files.items() if f"data_all/{role}" in name}
        pack(tmp_path / "parts" / f"{role[:-1]}.zip", part)
    whole = run(pack(tmp_path / "x.zip", files), tmp_path / "whole").manifest
    parts = run(tmp_path / "parts", tmp_path / "out").manifest
    assert [each.name for each in parts.source] == [
        "bg.zip", "fg_bg.zip", "fg_bg_depth.zip", "fg_bg_mask.zip",
    ]  # fmt: skip
    assert parts.splits["train"].samples == whole.splits["train"].samples
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardifyError, match="a folder without zips or images"):
        run(tmp_path / "empty", tmp_path / "nothing")


def unrelated(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same, with other backgrounds than the samples stand on."""
    backs = {name: background(90 + place) for place, name in enumerate(files) if "/bg/" in name}
    return files | backs


def inverted(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same, with masks that are object where there is none."""
    plane = np.full((24, 24), 255, np.uint8)
    plane[16:] = 0
    return {
        name: encoded(plane, "JPEG") if "mask" in name else data for name, data in files.items()
    }


def turned(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same, with composites that ask to be turned upside down, alone."""
    exif = Image.Exif()
    exif[0x0112] = 3
    found = dict(files)
    for name, data in files.items():
        if "/fg_bg/" in name:
            buffer = io.BytesIO()
            Image.open(io.BytesIO(data)).save(buffer, "JPEG", exif=exif)
            found[name] = buffer.getvalue()
    return found


@pytest.mark.parametrize("spoil", [unrelated, inverted, turned])
def test_a_stated_background_that_no_pixel_bears_out_is_refused_unless_that_is_allowed(
    tmp_path: Path, spoil: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    source = pack(tmp_path / "x.zip", spoil(files_of()))
    says = r"no pixels bear it out: it differs by \d\d\.\d .*, any fits 0 of 24 .*--no-check"
    with pytest.raises(LayoutError, match=says):
        run(source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
    told = tmp_path / "layout.toml"
    told.write_text("exif = 'stored'\n" + survey([source], OPTIONS, check=False).layout_file())
    assert "check = false" in told.read_text()
    again = survey([source], BuildOptions(val=0.25, layout=told))
    assert "check = false" in again.layout_file()
    manifest = run(source, tmp_path / "out", layout=told).manifest
    assert manifest.layout["background"]["proof"] == "none: check = false"  # type: ignore[index]
    assert manifest.layout["background"]["settings"]["check"] is False  # type: ignore[index]
    told.write_text(told.read_text().replace("check = false", ""))
    with pytest.raises(LayoutError, match=r"the layout file states .* or set check = false$"):
        run(source, tmp_path / "other", layout=told)
