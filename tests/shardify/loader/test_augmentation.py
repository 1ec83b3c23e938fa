import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shardline_samples import matrices

from shardify.loader.augmentation import (
    NOISE_MARGIN,
    NOISE_UNIT,
    Augmentation,
    AugmentationDraws,
    draw,
    no_augmentation,
    noise_table,
    philox,
)

# Random123's known answers for philox4x32 with ten rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, expected) -> None:
    words = philox(tuple(np.array([word], np.uint64) for word in counter), key)
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


@given(
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**31),
)
def test_a_draw_does_not_depend_on_its_batch(samples, seed, epoch) -> None:
    together = draw(np.array(samples), seed=seed, epoch=epoch)
    for place, sample in enumerate(samples):
        alone = draw(np.array([sample]), seed=seed, epoch=epoch)
        for field in dataclasses.fields(alone):
            assert np.array_equal(
                getattr(together, field.name)[place], getattr(alone, field.name)[0]
            )


def test_draws_differ_between_samples_epochs_and_seeds() -> None:
    samples = np.arange(100)
    first = draw(samples, seed=0, epoch=0)
    assert len(np.unique(first.angle)) == 100
    for other in (draw(samples, seed=1, epoch=0), draw(samples, seed=0, epoch=1)):
        assert not np.any(other.angle == first.angle)
        assert not np.any(other.noise == first.noise)


def test_draws_fill_their_bounds_and_stay_inside() -> None:
    limits = Augmentation(angle=30, shift=10, hue=5, saturation=0.2, value=0.1, noise=4)
    drawn = draw(np.arange(20_000), seed=0, epoch=0, augmentation=limits)
    assert np.abs(drawn.angle).max() == pytest.approx(30, rel=0.01)
    assert drawn.angle.mean() == pytest.approx(0, abs=0.5)
    assert (drawn.noise.min() >= 0, drawn.noise.max() <= 4) == (True, True)
    assert drawn.noise.mean() == pytest.approx(2, rel=0.02)
    assert (drawn.place.min(), drawn.place.max()) == (0, NOISE_MARGIN - 1)
    assert np.abs(np.corrcoef(drawn.place.T)[0, 1]) < 0.03
    moved = np.any(drawn.colour[:, :, 3] != 0, axis=1)
    assert moved.mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(drawn.colour[moved, :, 3]).max() == pytest.approx(10, rel=0.01)
    assert np.array_equal(drawn.colour[moved][:, :, :3], np.tile(np.eye(3), (moved.sum(), 1, 1)))


def test_default_rotation_fills_the_authors_ten_degrees_and_never_exceeds_them() -> None:
    angle = draw(np.arange(20_000), seed=0, epoch=0).angle
    assert angle.min() == pytest.approx(-10, rel=0.01)
    assert angle.max() == pytest.approx(10, rel=0.01)
    assert np.abs(angle).max() <= 10


def test_hue_and_saturation_leave_gray_gray_and_value_scales_it() -> None:
    limits = Augmentation(value=0.2, noise=0)
    drawn = draw(np.arange(200), seed=0, epoch=0, augmentation=limits)
    changed = drawn.colour[np.all(drawn.colour[:, :, 3] == 0, axis=1)]
    grays = changed[:, :, :3] @ np.array([100.0, 100.0, 100.0])
    # The NTSC matrix is rounded to three places: gray is gray to within half a level.
    assert np.ptp(grays, axis=1).max() < 0.5
    assert (79 < grays.min() < 85, 115 < grays.max() < 121) == (True, True)


def test_still_draws_change_nothing() -> None:
    drawn = no_augmentation(3)
    assert np.array_equal(drawn.colour, np.tile(np.eye(3, 4), (3, 1, 1)))
    assert not drawn.angle.any()
    assert not drawn.noise.any()


def test_an_unturned_matrix_maps_the_corners_to_the_corners() -> None:
    matrix = matrices(np.zeros(1, np.float32), width=250, height=100, res=64)[0]
    assert matrix @ [0, 0, 1] == pytest.approx([0, 0], abs=1e-4)
    assert matrix @ [64, 64, 1] == pytest.approx([250, 100], abs=1e-4)


def test_a_quarter_turn_moves_the_right_edge_to_the_top() -> None:
    matrix = matrices(np.array([90], np.float32), width=80, height=80, res=40)[0]
    # Counter-clockwise: what is seen at the middle of the top was at the middle of the right.
    assert matrix @ [20, 0, 1] == pytest.approx([80, 40], abs=1e-4)


def test_noise_is_gaussian_and_always_the_same() -> None:
    table = noise_table(64)
    assert table.shape == (3, 64 + NOISE_MARGIN, 64 + NOISE_MARGIN)
    values = table.astype(np.float64) / NOISE_UNIT
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert (values**4).mean() == pytest.approx(3, abs=0.1)
    neighbours = np.corrcoef(values[:, :, 1:].ravel(), values[:, :, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.01
    assert np.array_equal(table, noise_table(64))


def test_draws_for_many_are_those_for_each() -> None:
    samples = np.arange(100, 130)
    together = draw(samples, seed=3, epoch=2)
    for first, last in ((0, 1), (4, 11), (29, 30), (30, 30)):
        alone, part = draw(samples[first:last], seed=3, epoch=2), together.part(first, last)
        for field in dataclasses.fields(AugmentationDraws):
            assert np.array_equal(getattr(alone, field.name), getattr(part, field.name))
