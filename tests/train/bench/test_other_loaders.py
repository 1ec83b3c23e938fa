import contextlib
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from shardline_samples import matrices, write_data_set

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.loader import Loader
from train.bench import cases
from train.bench.fixtures import BenchConfig
from train.bench.other_loaders import (
    ffcv_batches,
    litdata_batches,
    streaming_batches,
    webdataset_batches,
    webdataset_samples,
    zipfile_batches,
)
from train.bench.pillow_renderer import PillowRenderer, warp

# Other people's warnings are not this project's to fix.
pytestmark = pytest.mark.filterwarnings("ignore")

RES, BATCH = 32, 8


def job(folder: Path, scratch: Path, *, threads: int = 0) -> BenchConfig:
    return BenchConfig(
        shards=str(folder), res=RES, batch_size=BATCH, threads=threads, device="cpu",
        scratch=str(scratch),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("batches", [webdataset_batches, zipfile_batches])
def test_shards_and_a_zip_give_whole_batches_beyond_an_epoch(data, tmp_path, batches) -> None:
    samples = epoch(batches(job(data, tmp_path)), steps=6)
    assert len(samples) == 48
    assert [planes.shape for planes in samples[0]] == [
        (3, RES, RES), (3, RES, RES), (1, RES, RES), (1, RES, RES)
    ]  # fmt: skip


def test_the_reference_draws_what_the_loader_draws_by_default(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data", train=40, val=13)
    reference = PillowRenderer(folder, res=32)
    with Loader(folder, split="train", res=32, batch_size=16, seed=3) as loader:
        indexes = loader.samples_of(0, 0)
        drawn = loader._sampler._draws(indexes, 0)
    for n, index in enumerate(indexes.tolist()):
        alone = reference.draws(index, seed=3, epoch=0)
        for field in dataclasses.fields(alone):
            assert np.array_equal(getattr(alone, field.name)[0], getattr(drawn, field.name)[n])


def test_an_unturned_warp_to_the_same_size_is_the_image_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    matrix = matrices(np.zeros(1, np.float32), width=20, height=20, res=20)[0]
    assert warp(image, matrix, 20) == pytest.approx(image, abs=1e-4)


def test_a_quarter_turn_is_numpys() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    matrix = matrices(np.array([90], np.float32), width=20, height=20, res=20)[0]
    assert warp(image, matrix, 20) == pytest.approx(np.rot90(image), abs=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "data"
    return write_data_set(folder, train=40, val=3, per_shard=16)


def reference(folder: Path) -> list[tuple[np.ndarray, ...]]:
    """Every sample of the split as the renderer gives it from the shards."""
    render = PillowRenderer(folder, res=RES)
    return [
        render.encoded(sample, render.draws(index, seed=0, epoch=0))
        for index, sample in enumerate(webdataset_samples(folder, "train"))
    ]


def epoch(batches, steps: int = 5) -> list[tuple[np.ndarray, ...]]:
    with contextlib.closing(batches):
        return [
            tuple(planes.numpy() for planes in sample)
            for batch in itertools.islice(batches, steps)
            for sample in zip(*batch, strict=True)
        ]


def partners(samples, truth) -> list[int]:
    """For each sample the number of the one with its depth, bit for bit."""
    depths = {one[3].tobytes(): index for index, one in enumerate(truth)}
    assert len(depths) == len(truth)
    return [depths[one[3].tobytes()] for one in samples]


def test_streaming_gives_each_sample_once_an_epoch_and_the_same_pixels(data, tmp_path) -> None:
    pytest.importorskip("streaming", exc_type=ImportError)
    samples = epoch(streaming_batches(job(data, tmp_path)))
    truth = reference(data)
    found = partners(samples, truth)
    assert sorted(found) == list(range(40))
    assert found != sorted(found)
    for sample, index in zip(samples, found, strict=True):
        for planes, expected in zip(sample, truth[index], strict=True):
            assert np.array_equal(planes, expected)


def test_ffcv_gives_each_sample_once_an_epoch_and_nearly_the_same_pixels(data, tmp_path) -> None:
    pytest.importorskip("ffcv", exc_type=ImportError)
    samples = epoch(ffcv_batches(job(data, tmp_path, threads=1)))
    truth = reference(data)
    found = partners(samples, truth)
    assert sorted(found) == list(range(40))
    assert found != sorted(found)
    for sample, index in zip(samples, found, strict=True):
        bg, fg_bg, mask, _ = truth[index]
        assert np.array_equal(sample[0], bg)
        assert np.array_equal(sample[2], mask)
        # It has been through a JPEG of quality 90.
        assert np.abs(sample[1] - fg_bg).mean() < 0.1


def test_ffcv_keeps_depth_of_16_bits(tmp_path) -> None:
    pytest.importorskip("ffcv", exc_type=ImportError)
    rng = np.random.default_rng(0)

    def images(index: int):
        colour = np.full((40, 40, 3), index, np.uint8)
        return colour, colour[..., 0], rng.integers(0, 65536, (36, 36), dtype=np.uint16)

    folder = write_data_set(tmp_path / "data", train=8, val=3, images=images)
    samples = epoch(ffcv_batches(job(folder, tmp_path, threads=1)), steps=1)
    assert sorted(partners(samples, reference(folder))) == list(range(8))


def test_ffcv_refuses_images_of_several_sizes(tmp_path) -> None:
    pytest.importorskip("ffcv", exc_type=ImportError)
    folder = write_data_set(tmp_path / "data", train=8, val=3)
    manifest = Manifest.load(folder)
    manifest.roles["depth"].sizes.append([9, 9, 1])
    manifest.save(folder)
    with pytest.raises(DataError, match="depth has images of 2 sizes"):
        next(ffcv_batches(job(folder, tmp_path, threads=1)))


def test_litdata_gives_whole_batches_beyond_an_epoch(data, tmp_path) -> None:
    pytest.importorskip("litdata", exc_type=ImportError)
    samples = epoch(litdata_batches(job(data, tmp_path)), steps=6)
    assert len(samples) == 48
    assert [planes.shape for planes in samples[0]] == [
        (3, RES, RES), (3, RES, RES), (1, RES, RES), (1, RES, RES)
    ]  # fmt: skip


def test_a_library_that_cannot_be_imported_is_not_available(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(cases._LIBRARIES, "FFCV + Pillow", "shardline_broken_peer")
    assert not cases.available("FFCV + Pillow")
    (tmp_path / "shardline_broken_peer.py").write_text("import shardline_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert not cases.available("FFCV + Pillow")
    (tmp_path / "shardline_broken_peer.py").write_text("")
    assert cases.available("FFCV + Pillow")
