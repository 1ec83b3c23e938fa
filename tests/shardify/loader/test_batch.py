import pytest
import torch

from shardify.loader.batch import synthetic


@pytest.mark.parametrize("channels_last", [False, True])
def test_synthetic_batch_has_the_shapes_and_ranges_of_a_real_one(channels_last) -> None:
    batch = synthetic(4, 32, channels_last=channels_last)
    assert [tuple(tensor.shape) for tensor in batch] == [
        (4, 3, 32, 32),
        (4, 3, 32, 32),
        (4, 1, 32, 32),
        (4, 1, 32, 32),
    ]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in batch:
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous(memory_format=layout)
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert 0 <= batch.depth.min() <= batch.depth.max() <= 1


def test_synthetic_batch_is_the_same_every_time() -> None:
    assert torch.equal(synthetic(2, 8).bg, synthetic(2, 8).bg)
