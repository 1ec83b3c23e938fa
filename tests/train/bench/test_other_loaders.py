import dataclasses
from pathlib import Path

import numpy as np
import pytest
from shardline_samples import write_data_set

from shardify.loader.augmentation import matrices
from shardify.loader.loader import Loader
from train.bench.other_loaders import warp, webdataset_batches
from train.bench.pillow_renderer import PillowRenderer


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_reads_the_shards_as_the_loader_does(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data", train=40, val=13)
    val = list(
        webdataset_batches(
            Path(folder), split="val", res=32, batch_size=5, workers=0, augment=False
        )
    )
    assert [len(batch.bg) for batch in val] == [5, 5, 3]
    train = list(webdataset_batches(Path(folder), split="train", res=32, batch_size=16, workers=0))
    assert [tuple(tensor.shape) for tensor in train[0]] == [
        (16, 3, 32, 32), (16, 3, 32, 32), (16, 1, 32, 32), (16, 1, 32, 32)
    ]  # fmt: skip
    assert len(train) == 2


def test_the_reference_draws_what_the_loader_draws_by_default(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data", train=40, val=13)
    reference = PillowRenderer(folder, res=32)
    with Loader(folder, split="train", res=32, batch_size=16, seed=3) as loader:
        indexes = loader.samples_of(0, 0)
        drawn = loader._feed._draws(indexes, 0)
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
