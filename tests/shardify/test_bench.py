"""The benchmark compares like with like, and its arithmetic is plain."""

import json
import tarfile
from pathlib import Path

import pytest

from shardify.bench import CONTENDERS, main, measure, page, summarise
from shardify.bench_phases import phases
from shardify.process_cost import Run
from shardify.synth.generate import generate


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "x.zip"
    generate(path, samples=20, backgrounds=2, size=32, seed=0)
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


@pytest.mark.slow
def test_phases_name_every_part_and_add_up_to_something(source: Path) -> None:
    found = phases(source)
    assert {each.who for each in found} == {"parent", "beside", "workers"}
    assert all(each.seconds >= 0 for each in found)
    assert sum(each.seconds for each in found) > 0.05
    assert found[0].each == pytest.approx(found[0].seconds / 20 * 1e6)


def test_the_page_is_made_of_the_json_alone(tmp_path: Path) -> None:
    runs = {name: [Run(wall=2, cpu=3, memory=4_000_000)] for name in CONTENDERS}
    found = {
        "command": "python -m shardify.bench x.zip",
        "date": "2026-11-22T10:00:00+00:00",
        "samples": 100,
        "bytes": 5_000_000,
        "machine": {"processor": "P", "cores": 2, "load_before": 0.1, "python": "3.11.7"},
        "versions": {"numpy": "2"},
        "table": summarise(runs, 100),
        "phases": [{"who": "workers", "what": "reading", "seconds": 0.5, "each": 5000.0}],
    }
    (tmp_path / "x.json").write_text(json.dumps(found))
    main(["--json", str(tmp_path / "x.json"), "--page", str(tmp_path / "x.md")])
    text = (tmp_path / "x.md").read_text()
    assert text == page(found)
    for name in CONTENDERS:
        assert f"| {name} | 50 | 2.00 (2.00 to 2.00) | 3.0 | 4 | 1.0 (1.0 to 1.0) |" in text
    assert "| workers | reading | 0.50 | 5000.0 |" in text
