import numpy as np
import torch

from shardify.loader.device_tables import DeviceTables

CPU = torch.device("cpu")


def test_each_sample_gets_its_background_and_its_piece_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    backgrounds = rng.integers(0, 255, (4, 6, 5, 3), np.uint8)
    noise = rng.integers(-99, 99, (3, 20, 20)).astype(np.int8)
    picks = DeviceTables(backgrounds, noise, res=8, device=CPU)
    numbers = np.array([2, 0, 2], np.int32)
    places = np.array([[0, 0], [3, 11], [11, 3]], np.int32)
    found, grain = picks([numbers, places])
    assert picks.tables == 2
    assert picks.stream is None
    assert np.array_equal(found.numpy(), backgrounds[numbers])
    assert grain.is_contiguous()
    for (row, column), piece in zip(places, grain, strict=True):
        wanted = noise[:, row : row + 8, column : column + 8].transpose(1, 2, 0)
        assert np.array_equal(piece.numpy(), wanted)


def test_what_there_is_none_of_is_left_out() -> None:
    noise = np.zeros((3, 9, 9), np.int8)
    assert DeviceTables(None, None, res=4, device=CPU).tables == 0
    (grain,) = DeviceTables(None, noise, res=4, device=CPU)([np.array([[4, 0]])])
    assert grain.shape == (1, 4, 4, 3)
    backgrounds = np.zeros((2, 3, 3, 3), np.uint8)
    (found,) = DeviceTables(backgrounds, None, res=4, device=CPU)([np.array([1, 1])])
    assert found.shape == (2, 3, 3, 3)
