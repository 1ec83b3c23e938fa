"""What a build has finished is on the disk before anything says that it is."""

import os
from pathlib import Path

import pytest

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.errors import BuildError
from shardify.storage.atomic_write import TEMPORARY, BackgroundSync, atomic_path, write_text
from shardify.storage.paths import Url, as_path
from shardify.synth.generate import generate

OPTIONS = BuildOptions(val=0.25, workers=1, shard_samples=10)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "x.zip"
    generate(path, samples=40, backgrounds=4, size=64, seed=0)
    return path


def name_of(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


def test_all_files_are_on_the_disk_before_the_manifest_appears(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, events = os.fsync, list[str]()

    def watch(descriptor: int) -> None:
        real(descriptor)
        events.append(name_of(descriptor))

    monkeypatch.setattr("os.fsync", watch)
    report = build([source], tmp_path / "out", OPTIONS)
    files = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json"}
    assert len(files) > 2 * len(report.manifest.splits["train"].shards)
    before = events[: events.index("manifest.json.tmp")]
    assert files <= {name.removesuffix(TEMPORARY) for name in before}
    assert before[-1] == "out"


def test_a_shard_that_the_disk_loses_is_one_line_and_no_manifest_appears(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = os.fsync, list[str]()

    def fail_once(descriptor: int) -> None:
        # As the kernel does: what was lost is told to the first who asks, and to nobody again.
        if not lost and name_of(descriptor).startswith("train-"):
            lost.append(name_of(descriptor))
            raise OSError(5, "Input/output error")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail_once)
        with pytest.raises(BuildError, match=r"Input/output error; .*run the same command again"):
            build([source], tmp_path / "out", OPTIONS)
    assert lost
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not build([source], tmp_path / "out", OPTIONS).already


def test_a_file_that_is_gone_is_told_when_all_are_waited_for(tmp_path: Path) -> None:
    url = as_path("memory://x/y.tar")
    assert isinstance(url, Url)
    with BackgroundSync() as flushing:
        flushing.add(url)
        flushing.finish()
        flushing.add(tmp_path / "absent.tar")
        with pytest.raises(FileNotFoundError):
            flushing.finish()


@pytest.mark.parametrize("durable", [False, True])
def test_what_a_block_wrote_takes_its_place_at_the_end(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "maps.png"
    path.write_text("old")
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["maps.png"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [True, False])
def test_after_an_error_the_old_file_stands_and_no_half_of_the_new(
    tmp_path: Path, error: type[BaseException], begun: bool
) -> None:
    path = tmp_path / "maps.png"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        if begun:
            temporary.write_text("ne")
        raise error
    assert [each.name for each in tmp_path.iterdir()] == ["maps.png"]
    assert path.read_text() == "old"


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "Größe")
    assert (tmp_path / "page.html").read_bytes() == "Größe".encode()
