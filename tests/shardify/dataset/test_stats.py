"""Figures of a data set are those of its samples, in every codec."""

from pathlib import Path

import numpy as np
import pytest

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.dataset.manifest import Manifest
from shardify.dataset.stats import BINS, DataSet, dataset_stats, measure_samples
from shardify.errors import ManifestError, VerifyError
from shardify.synth.generate import generate


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "x.zip"
    generate(path, samples=40, backgrounds=4, size=32, seed=0)
    return path


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    out = source.parent / "out"
    build([source], out, BuildOptions(val=0.25, shard_samples=15, workers=1))
    return out


def test_every_sample_is_found_with_its_pixels(built: Path) -> None:
    data = DataSet(built)
    assert len(data) == 40
    samples = list(data.samples(1000))
    assert len({sample.key for sample in samples}) == 40
    for sample in samples:
        assert set(sample.planes) == {"fg_bg", "mask", "depth"}
        assert sample.planes["fg_bg"].shape == (32, 32, 3)
        assert f"_bg_{int(data.manifest.backgrounds[sample.background].id[4:]):03d}_" in sample.key
    assert len(list(data.samples(7))) <= 7


def test_backgrounds_are_counted_by_split(built: Path) -> None:
    data = DataSet(built)
    background_uses = data.background_uses()
    for split in data.manifest.splits.values():
        split.backgrounds.clear()  # As an older program left it.
    assert data.background_uses() == background_uses
    assert sum(background_uses["train"].values()) == 30
    assert sum(background_uses["val"].values()) == 10
    assert not set(background_uses["train"]) & set(background_uses["val"])


def test_findings_are_those_of_the_decoded_samples(built: Path) -> None:
    data = DataSet(built)
    found = measure_samples(data, most=1000)
    samples = list(data.samples(1000))
    assert found.samples == 40
    assert sum(found.mask_area) == 40
    assert len(found.mask_area) == len(found.depth) == BINS
    assert sum(found.depth) == sum(sample.planes["depth"].size for sample in samples)
    low = min(int(sample.planes["depth"].min()) for sample in samples)
    high = max(int(sample.planes["depth"].max()) for sample in samples)
    assert found.ranges["depth"] == pytest.approx([low / 255, high / 255])


def test_figures_join_manifest_and_samples(built: Path) -> None:
    found = dataset_stats(built)
    manifest = Manifest.load(built)
    assert found["samples"] == {"train": 30, "val": 10}
    assert found["roles"]["fg_bg"]["mean"] == manifest.stats["fg_bg"].mean
    assert found["roles"]["bg"]["bytes"] == (built / "backgrounds.tar").stat().st_size
    stored = sum(path.stat().st_size for path in built.glob("*-*.tar"))
    assert 0 < sum(found["roles"][role]["bytes"] for role in ("fg_bg", "mask", "depth")) < stored


def test_raw_planes_of_several_resolutions_are_read(source: Path, tmp_path: Path) -> None:
    build([source], tmp_path / "out", BuildOptions(res=(8, 16), codec="raw", workers=2))
    data = DataSet(tmp_path / "out")
    sample = next(data.samples(1))
    assert sample.planes["fg_bg"].shape == (16, 16, 3)
    assert set(np.unique(sample.planes["mask"])) <= {0, 255}
    assert next(data.backgrounds([0])).shape == (16, 16, 3)


def test_damage_is_one_line(built: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(ManifestError):
        dataset_stats(tmp_path)
    shutil.copytree(built, tmp_path / "out")
    (tmp_path / "out" / "train-00000.tar").write_bytes(b"")
    with pytest.raises(VerifyError, match=r"train-00000\.tar.*shardify verify"):
        dataset_stats(tmp_path / "out")
    (tmp_path / "out" / "train-00000.idx").unlink()
    with pytest.raises(VerifyError, match=r"train-00000\.idx"):
        dataset_stats(tmp_path / "out")
