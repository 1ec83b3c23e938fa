"""The benchmark compares like with like, and its arithmetic is plain."""

import tarfile
from pathlib import Path

import pytest

from shardify.bench import CONTENDERS, Run, main, measure, summarise
from shardify.synth import make


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "x.zip"
    make(path, samples=20, backgrounds=2, size=32, seed=0)
    return path


@pytest.mark.parametrize("peer", ["zipfile + tarfile", "zipfile + webdataset.ShardWriter"])
def test_a_peer_writes_every_sample_whole(source: Path, tmp_path: Path, peer: str) -> None:
    main(["--peer", peer, str(source), str(tmp_path / "out")])
    (shard,) = (tmp_path / "out").iterdir()
    with tarfile.open(shard) as tar:
        names = tar.getnames()
    keys = {name.partition(".")[0] for name in names}
    assert len(keys) == 20
    assert {name.partition(".")[2] for name in names} == {
        "fg_bg.jpg", "mask.jpg", "depth.png", "bg.cls",
    }  # fmt: skip
    assert len(names) == 80


def test_a_run_is_measured_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    run = measure("shardify build", source, tmp_path)
    assert 0 < run.cpu
    assert 0 < run.wall
    assert run.memory > 1 << 20
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="exit code 1"):
        measure("shardify build", source / "missing", tmp_path)


def test_times_compare_runs_of_the_same_round() -> None:
    runs = {
        "fast": [Run(wall=1, cpu=2, memory=5), Run(wall=2, cpu=4, memory=9)],
        "slow": [Run(wall=6, cpu=6, memory=1), Run(wall=16, cpu=6, memory=1)],
    }
    table = summarise(runs, samples=30)
    assert table["fast"]["samples_per_second"] == 20
    assert (table["fast"]["times_min"], table["fast"]["times_max"]) == (6, 8)
    assert table["fast"]["memory_max"] == 9
    assert table["slow"]["times_median"] == 1
    assert list(CONTENDERS)[-1].endswith("ShardWriter")
