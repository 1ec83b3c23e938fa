"""The made-up data set: repeatable, aligned, named like the real one, and hard enough."""

import hashlib
import io
import os
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from shardline_sources import content, shards

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.errors import OutputError
from shardify.layout import detect
from shardify.synth import compose, generate
from shardify.workers.process_pool import Workers

Pixels = npt.NDArray[np.int32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "small.zip"
    report = generate.generate(path, samples=60, backgrounds=8, size=250, seed=5, workers=1)
    assert report.entries == 8 + 3 * 60
    assert report.bytes == path.stat().st_size
    return path


def pixels(source: zipfile.ZipFile, name: str, square: int = 0) -> Pixels:
    picture = Image.open(io.BytesIO(source.read(name)))
    if square:
        picture = picture.resize((square, square), Image.Resampling.BILINEAR)
    return np.asarray(picture).astype(np.int32)


def samples(source: zipfile.ZipFile) -> list[tuple[Pixels, Pixels, Pixels, Pixels]]:
    """bg squashed, fg_bg, mask, depth of each sample."""
    names = source.namelist()
    found = detect.detect(names, where="synth")
    return [
        (
            pixels(source, names[found.background_members[found.background[row]]], 250),
            *(pixels(source, names[found.members[role][row]]) for role in found.roles[1:]),
        )  # type: ignore[misc]
        for row in range(len(found.keys))
    ]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of ``made`` in the published zips."""
    path = tmp_path_factory.mktemp("released") / "new"
    report = generate.generate(
        path, samples=60, backgrounds=8, size=250, seed=5, released=True, workers=1
    )  # fmt: skip
    assert (report.zips, report.entries) == (8, 8 + 3 * 60)
    assert report.bytes == sum(file.stat().st_size for file in path.iterdir())
    return path


def entries(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as source:
        assert source.testzip() is None
        return source.infolist()


def test_same_arguments_give_the_same_bytes_whatever_the_workers(
    made: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.zip"
    generate.generate(again, samples=60, backgrounds=8, size=250, seed=5, workers=2)
    assert again.read_bytes() == made.read_bytes()
    other = tmp_path / "other.zip"
    generate.generate(other, samples=60, backgrounds=8, size=250, seed=6, workers=1)
    assert other.read_bytes() != made.read_bytes()


def test_published_zips_have_the_same_bytes_whatever_the_workers(
    released: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    generate.generate(again, samples=60, backgrounds=8, size=250, seed=5, released=True, workers=2)
    assert content(again) == content(released)


def test_pictures_are_those_of_every_machine_with_the_locked_libraries() -> None:
    # A digest of pixels, not of files: it holds for any zlib and any JPEG encoder.
    stage = compose.make_scene(1, 2)
    cutout = compose.make_cutout(1, 2)
    digest = hashlib.sha256(stage.picture.tobytes() + stage.nearness.tobytes())
    for plane in (cutout.colour, cutout.alpha, cutout.bulge):
        digest.update(plane.tobytes())
    assert digest.hexdigest()[:16] == "fd92eaa586daefd1"


def test_names_pair_every_sample_with_the_park_of_its_number(made: Path) -> None:
    names = zipfile.ZipFile(made).namelist()
    assert names[:8] == [f"data_all/bg/park{number}.jpg" for number in range(1, 9)]
    assert names[8] == "data_all/fg_bg/fg_001_bg_001_000000.jpg"
    assert names[8 + 60] == "data_all/fg_bg_mask/fg_001_bg_001_mask_000000.jpg"
    depth = "data_all/fg_bg_depth/mask_fg_bg/fg_bg/mask_fg_001_bg_001_000000.png"
    assert names[8 + 120] == depth
    found = detect.detect(names, where="synth")
    assert len(found.keys) == 60
    assert not found.rejected
    assert sorted(np.bincount(found.background)) == [7] * 4 + [8] * 4
    for row, key in enumerate(found.keys):
        assert found.background_ids[found.background[row]] == f"park{int(key.split('_')[3])}"


def test_published_zips_hold_the_same_pictures_under_the_authors_names(
    made: Path, released: Path
) -> None:
    names = (
        "bg.zip", "fg_bg_correct", "dataset_fg_bg_Mask_final",
        "depth_1.zip", "depth_2.zip", "depth_3.zip", "depth_4.zip", "depth_5.zip",
    )  # fmt: skip
    assert {file.name for file in released.iterdir()} == set(names)
    zips = [entries(released / name) for name in names]
    assert [each[0].filename for each in zips[:4]] == [
        "bg/park1.jpg",
        "fg_bg/fg_001_bg_001_000000.jpg",
        "fg_bg_mask/fg_001_bg_001_mask_000000.jpg",
        "mask_fg_bg/fg_bg/mask_fg_001_bg_001_000000.png",
    ]
    numbers = [
        [int(entry.filename.rpartition("_")[2].removesuffix(".png")) for entry in each]
        for each in zips[3:]
    ]
    assert numbers == [list(range(first, first + 12)) for first in range(0, 60, 12)]
    expected = [
        (entry.filename.removeprefix("data_all/").removeprefix("fg_bg_depth/"), entry.CRC)
        for entry in entries(made)
    ]
    assert [(entry.filename, entry.CRC) for each in zips for entry in each] == expected


def test_published_zips_become_the_same_shards_as_the_one_zip(
    made: Path, released: Path, tmp_path: Path
) -> None:
    for source, out in ((made, "one"), (released, "eight")):
        report = build([source], tmp_path / out, BuildOptions(val=0.2, workers=1))
        assert sum(split.samples for split in report.manifest.splits.values()) == 60
    assert shards(tmp_path / "one") == shards(tmp_path / "eight")


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_no_published_zip_is_empty(tmp_path: Path, samples: int) -> None:
    out = tmp_path / "out"
    generate.generate(
        out, samples=samples, backgrounds=2, size=32, seed=0, released=True, workers=1
    )
    counts = [len(entries(file)) for file in sorted(out.glob("depth_*.zip"))]
    assert counts == {1: [1], 4: [1, 1, 1, 1], 7: [2, 1, 2, 1, 1]}[samples]
    assert len(list(out.iterdir())) == 3 + len(counts)
    assert len(entries(out / "fg_bg_correct")) == samples
    assert len(entries(out / "bg.zip")) == 2


def test_one_sample_on_one_background_is_a_set(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    generate.generate(path, samples=1, backgrounds=1, size=64, seed=0)
    assert [entry.filename for entry in entries(path)] == [
        "data_all/bg/park1.jpg",
        "data_all/fg_bg/fg_001_bg_001_000000.jpg",
        "data_all/fg_bg_mask/fg_001_bg_001_mask_000000.jpg",
        "data_all/fg_bg_depth/mask_fg_bg/fg_bg/mask_fg_001_bg_001_000000.png",
    ]
    with zipfile.ZipFile(path) as source:
        ((back, front, mask, depth),) = samples(source)
    assert (back.shape, front.shape, mask.shape) == ((250, 250, 3), (64, 64, 3), (64, 64))
    assert depth.shape == (57, 57)


def test_sizes_and_formats_are_those_of_the_real_data_set(made: Path) -> None:
    with zipfile.ZipFile(made) as source:
        assert source.testzip() is None
        mean: dict[str, list[int]] = {}
        for entry in source.infolist():
            role = entry.filename.split("/")[1]
            mean.setdefault(role, []).append(entry.file_size)
            assert entry.compress_type == zipfile.ZIP_DEFLATED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            with Image.open(io.BytesIO(source.read(entry))) as picture:
                if role == "bg":
                    assert (750, 422) <= picture.size <= (1600, 1067)
                else:
                    expected = {
                        "fg_bg": ("JPEG", "RGB", 250),
                        "fg_bg_mask": ("JPEG", "L", 250),
                        "fg_bg_depth": ("PNG", "L", 224),
                    }[role]
                    assert (picture.format, picture.mode, picture.width) == expected
                    assert picture.width == picture.height
    assert 3000 < np.mean(mean["fg_bg"]) < 5500
    assert 1500 < np.mean(mean["fg_bg_mask"]) < 2600
    assert 4000 < np.mean(mean["fg_bg_depth"]) < 6500


def test_outside_the_mask_a_composite_is_its_background(made: Path) -> None:
    with zipfile.ZipFile(made) as source:
        for back, front, mask, _ in samples(source):
            outside = mask < 3
            loss = np.abs(front - back).mean(axis=2)
            assert loss[outside].mean() < 10
            stranger = np.abs(front - np.roll(back, 60, axis=1)).mean(axis=2)
            assert stranger[outside].mean() > 2 * loss[outside].mean()


def test_masks_and_depth_are_spread_like_the_published_ones(made: Path) -> None:
    with zipfile.ZipFile(made) as source:
        taken = samples(source)
    masks = [(mask >= 150).mean() for _, _, mask, _ in taken]
    assert 0.18 < np.mean(masks) < 0.30
    assert np.std(masks) > 0.04
    assert 0.15 < np.mean([depth.mean() / 255 for *_, depth in taken]) < 0.32
    # Gray edges: some pixels lie between object and scene.
    assert all(((mask > 40) & (mask < 215)).any() for _, _, mask, _ in taken)


def test_depth_follows_the_object_and_the_scene(made: Path) -> None:
    with zipfile.ZipFile(made) as source:
        for _, _, mask, depth in samples(source):
            small = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((224, 224)))
            rim = np.asarray(
                Image.fromarray((small >= 128).astype(np.uint8) * 255).resize((28, 28))
            )
            wide = np.asarray(Image.fromarray(rim).resize((224, 224))) > 0
            around = wide & (small < 20)
            assert depth[small >= 250].mean() > depth[around].mean() + 3
            assert depth[-20:].mean() > depth[:20].mean() or (small[:20] > 128).mean() > 0.2


def test_a_threshold_on_the_difference_does_not_find_all_objects(made: Path) -> None:
    found = []
    with zipfile.ZipFile(made) as source:
        for back, front, mask, _ in samples(source):
            truth, guess = mask >= 150, np.abs(front - back).max(axis=2) > 25
            found.append((truth & guess).sum() / (truth | guess).sum())
    assert 0.5 < np.mean(found) < 0.9
    assert np.min(found) < 0.7


@pytest.mark.parametrize("released", [False, True])
def test_an_existing_file_is_not_touched(tmp_path: Path, released: bool) -> None:
    path = tmp_path / "precious.zip"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"precious.zip: exists already; .*; remove it or name"):
        generate.generate(path, samples=1, backgrounds=1, size=32, seed=0, released=released)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("released", [False, True])
def test_an_existing_folder_is_not_touched(tmp_path: Path, released: bool) -> None:
    path = tmp_path / "precious"
    path.mkdir()
    with pytest.raises(OutputError, match=r"precious: exists already; expected a new"):
        generate.generate(path, samples=1, backgrounds=1, size=32, seed=0, released=released)
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("released", [False, True])
def test_a_missing_folder_is_named(tmp_path: Path, released: bool) -> None:
    path = tmp_path / "absent" / "a.zip"
    with pytest.raises(OutputError, match=r"no folder .*absent; expected one to write in"):
        generate.generate(path, samples=1, backgrounds=1, size=32, seed=0, released=released)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("released", [False, True])
def test_a_dead_worker_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    class Dying(Workers):
        def __enter__(self) -> Workers:
            os.kill(self.pids[0], signal.SIGKILL)
            return super().__enter__()

    monkeypatch.setattr(generate, "Workers", Dying)
    with pytest.raises(OutputError, match=r"out: a worker died; expected room in memory"):
        generate.generate(
            tmp_path / "out", samples=40, backgrounds=4, size=250, seed=0, released=released,
            workers=2,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("released", [False, True])
def test_nothing_is_left_behind_by_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "write_directory", full)
    with pytest.raises(OutputError, match=r"a.zip: cannot be written \(No space left on device\)"):
        generate.generate(
            tmp_path / "a.zip", samples=1, backgrounds=1, size=32, seed=0, released=released,
            workers=1,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate.Section, "add", full)
    begun = time.monotonic()
    with pytest.raises(OutputError, match="No space left on device"):
        generate.generate(
            tmp_path / "a.zip", samples=4000, backgrounds=400, size=250, seed=0, workers=2
        )
    assert time.monotonic() - begun < 30
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", ["samples", "backgrounds", "size", "seed"])
def test_numbers_out_of_range_are_named(tmp_path: Path, argument: str) -> None:
    numbers = {"samples": 1, "backgrounds": 1, "size": 32, "seed": 0} | {argument: -1}
    with pytest.raises(ValueError, match=f"{argument} is -1; expected"):
        generate.generate(tmp_path / "a.zip", **numbers)


def test_progress_counts_up_to_all_samples(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate.generate(
        tmp_path / "a.zip", samples=7, backgrounds=3, size=32, seed=0, workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(3, 7), (5, 7), (7, 7)]


def test_all_foregrounds_and_both_sides_take_turns() -> None:
    tasks = list(generate._tasks(2000, 100, 250, 0))
    plan = [each for task in tasks for each in task.samples]
    assert [number for number, _, _ in plan] == list(range(2000))
    used = np.bincount([foreground for _, foreground, _ in plan])[1:]
    assert used.min() == used.max() == 20
    assert sum(mirrored for *_, mirrored in plan) == 1000
