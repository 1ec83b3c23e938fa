"""Where a depth map has holes, the batch says so, and what is beside them does not change."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shardline_samples import Images, matrices, scene, write_data_set

from shardify.loader.augmentation import AugmentationDraws, no_augmentation, rotations
from shardify.loader.batch import ROLES, Batch, RenderSettings
from shardify.loader.cpu_renderer import Renderer
from shardify.loader.loader import Loader
from shardify.loader.reduction import reduced_sizes
from shardify.resolution import resolution
from train.bench.pillow_renderer import PillowRenderer


def depth_map(number: int, width: int, height: int, bits: int, invalid: int = 0) -> np.ndarray:
    """A slope with waves, far from 0, with a tenth of single holes, a large one and a border."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width] / max(width, height)
    levels = (2**bits - 1) * (0.55 + 0.2 * np.sin(7 * x + number) + 0.2 * y)
    holes = rng.random((height, width)) < 0.1
    holes |= np.hypot(x - rng.uniform(0.2, 0.7), y - rng.uniform(0.2, 0.7)) < 0.18
    holes[:, : width // 12] = True
    levels = np.where(holes, invalid, levels)
    return levels.astype(np.uint16 if bits == 16 else np.uint8)


def triangle(length: int, shorter: int) -> np.ndarray:
    """Weights of a triangle filter: (shorter, length), rows of sum 1."""
    scale = max(length / shorter, 1)
    centres = (np.arange(shorter) + 0.5) * length / shorter
    rows = (1 - np.abs(np.arange(length) + 0.5 - centres[:, None]) / scale).clip(0)
    return rows / rows.sum(1, keepdims=True)


def bilinear(height: int, width: int, matrix: np.ndarray, res: int) -> np.ndarray:
    """Weights of four neighbours, the nearest edge pixel outside: (res * res, height * width)."""
    y, x = np.mgrid[:res, :res] + 0.5
    across = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] - 0.5).clip(0, width - 1).ravel()
    down = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] - 0.5).clip(0, height - 1).ravel()
    left, top = np.minimum(across.astype(int), width - 2), np.minimum(down.astype(int), height - 2)
    u, v = across - left, down - top
    weights, at = np.zeros((res * res, height * width)), np.arange(res * res)
    for row, column, share in (
        (top, left, (1 - u) * (1 - v)), (top, left + 1, u * (1 - v)),
        (top + 1, left, (1 - u) * v), (top + 1, left + 1, u * v),
    ):  # fmt: skip
        weights[at, row * width + column] += share
    return weights


def expected(
    levels: np.ndarray, invalid: int, angle: float, res: int
) -> tuple[np.ndarray, np.ndarray]:
    """Levels, and the weight of what is valid, in float64: (res, res) each."""
    known = levels != invalid
    values = np.where(known, levels, 0).astype(float)
    height, width = levels.shape
    wide, high = reduced_sizes((width, height), res).tolist()
    if (wide, high) != (width, height):
        rows, columns = triangle(height, high), triangle(width, wide)
        weight = rows @ known @ columns.T
        known = weight > 0.5
        values = np.where(known, np.rint(rows @ values @ columns.T / np.maximum(weight, 0.5)), 0)
    matrix = matrices(np.float32([angle]), width=wide, height=high, res=res, aspect=1.0)[0]
    matrix = matrix.astype(float)
    weights = bilinear(high, wide, matrix, res)
    weight = weights @ known.ravel()
    found = weights @ values.ravel() / np.maximum(weight, 1e-9)
    return found.reshape(res, res), weight.reshape(res, res)


def renderer(res: int, bits: int, invalid: int | None) -> Renderer:
    settings = {
        "normal": np.ones((2, 2, 3), np.float32), "threshold": 150.0, "depth_bits": bits,
        "augment": True, "threads": 1, "dtype": torch.float32, "channels_last": False,
        "device": torch.device("cpu"), "batch_size": 1, "roles": ROLES,
        "invalid": {} if invalid is None else {"depth": invalid},
    }  # fmt: skip
    return Renderer(RenderSettings(res=resolution(res), **settings))


def turned(angle: float) -> AugmentationDraws:
    angles = np.float32([angle])
    return replace(no_augmentation(1), angle=angles, rotation=rotations(angles))


def rendered(levels: np.ndarray, drawn: AugmentationDraws, render: Renderer) -> Batch:
    fg_bg, mask, _ = scene(1)
    images = [fg_bg, fg_bg, mask, levels]
    table = [(image.__array_interface__["data"][0], *image.shape[1::-1]) for image in images]
    return render(np.array([table], np.int64), drawn)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("angle", [0.0, 10.0, -7.5])
@pytest.mark.parametrize("factor", [1, 1.3, 2, 3, 5.5, 8])
def test_every_pixel_is_the_mean_of_the_valid_ones_as_numpy_says(
    factor: float, angle: float, bits: int
) -> None:
    res = 24
    invalid = 0 if bits == 16 else 255
    levels = depth_map(3, round(factor * res), round(factor * res * 0.8), bits, invalid)
    batch = rendered(levels, turned(angle), renderer(res, bits, invalid))
    wanted, weight = expected(levels, invalid, angle, res)
    found, valid = batch.depth[0, 0].numpy(), batch.valid["depth"][0, 0].numpy()
    clear = np.abs(weight - 0.5) > 1e-4  # There, rounding may decide.
    assert clear.mean() > 0.9
    assert (valid == (weight > 0.5))[clear].all()
    assert 0.3 < valid.mean() < 0.95
    both = valid & clear
    error = np.abs(found * (2**bits - 1) - wanted)[both]
    assert error.max() < 1.01  # An average half way between two levels may be rounded either way.
    assert (error > 0.02).mean() < 0.05
    assert (found[~valid] == 0).all()


@pytest.mark.parametrize("res", [12, 48])
def test_a_hole_changes_nothing_beyond_the_pixels_that_touch_it(res: int) -> None:
    whole = np.full((48, 48), 40000, np.uint16)
    holes = whole.copy()
    holes[10:30, 12:33] = 0
    for angle in (0.0, 10.0):
        batch = rendered(holes, turned(angle), renderer(res, 16, 0))
        valid = batch.valid["depth"]
        torch.testing.assert_close(
            batch.depth[valid], torch.full_like(batch.depth[valid], 40000 / 65535)
        )
        share = 20 * 21 / 48**2
        assert float((~valid).float().mean()) == pytest.approx(share, abs=0.03)


def test_a_map_without_any_depth_and_one_without_a_hole_are_themselves() -> None:
    for value, valid in ((0, False), (1, True), (65535, True)):
        levels = np.full((40, 30), value, np.uint16)
        for res in (16, 40):
            batch = rendered(levels, turned(10.0), renderer(res, 16, 0))
            assert bool((batch.valid["depth"] == valid).all())
            assert float((batch.depth * 65535 - value).abs().max()) < 0.02
            assert float(batch.depth.max()) <= 1


def test_without_a_hole_the_pixels_are_those_of_the_path_without_validity() -> None:
    levels = depth_map(5, 60, 60, 16, invalid=7)
    for res in (16, 48):
        with_value = rendered(levels, turned(10.0), renderer(res, 16, 1))
        without = rendered(levels, turned(10.0), renderer(res, 16, None))
        assert bool(with_value.valid["depth"].all())
        assert without.valid == {}
        # The reduction rounds to levels; an average half way may be rounded either way.
        error = (with_value.depth - without.depth).abs()
        assert float(error.max()) < 1.01 / 65535 and float(error.mean()) < 1e-6


def holed(number: int) -> Images:
    """Scenes whose depth maps have their own sizes."""
    fg_bg, mask, _ = scene(number)
    side = (36, 90, 200)[number % 3]
    return fg_bg, mask, depth_map(number, side, side, 16)


def same_size(number: int) -> Images:
    fg_bg, mask, _ = scene(number)
    return fg_bg, mask, depth_map(number, 100, 100, 16)


@pytest.mark.parametrize(
    ("images", "picture"), [(holed, "PNG"), (same_size, "PNG"), (same_size, "RAW")]
)
@pytest.mark.parametrize("res", [24, 80])
def test_the_operators_give_what_the_kernel_gives(
    tmp_path: Path, images: Any, picture: str, res: int
) -> None:
    folder = write_data_set(
        tmp_path / "data", train=12, val=5, images=images, picture=picture, invalid=0
    )
    for options in (
        {"augment": True}, {"split": "val", "augment": False, "channels_last": True}
    ):  # fmt: skip
        options = {"res": res, "batch_size": 4, **options}
        with Loader(folder, **options) as one, Loader(folder, kernel="dali", **options) as other:
            count = 0
            for fused, dali in zip(one, other, strict=True):
                count += len(fused.depth)
                valid, found = fused.valid["depth"], dali.valid["depth"]
                assert valid.shape == found.shape == fused.depth.shape
                assert valid.dtype == found.dtype == torch.bool
                assert float((valid != found).float().mean()) < 2e-3
                both = valid & found
                error = (fused.depth - dali.depth)[both].abs()
                assert float(error.max()) < 1.5 / 255 and float(error.mean()) < 0.3 / 255
                assert float(dali.depth[~found].abs().sum()) == 0
                assert 0.3 < float(valid.float().mean()) < 0.95
            assert count == (12 if options["augment"] else 5)


def test_8_bit_depth_and_other_values_than_0_are_told_from_the_manifest(tmp_path: Path) -> None:
    def images(number: int) -> Images:
        fg_bg, mask, _ = scene(number)
        return fg_bg, mask, depth_map(number, 36, 36, 8, invalid=200)

    folder = write_data_set(tmp_path / "data", train=4, val=1, images=images, invalid=200)
    options = {"res": 36, "batch_size": 4, "augment": False, "order": "sequential"}
    for kernel in ("fused", "dali"):
        with Loader(folder, kernel=kernel, **options) as loader:
            batch = next(iter(loader))
        for number in range(4):
            levels = images(number)[2]
            assert (batch.valid["depth"][number, 0].numpy() == (levels != 200)).all()
            stored = np.rint(batch.depth[number, 0].numpy() * 255)
            assert (stored == np.where(levels == 200, 0, levels)).all()


def test_no_rotation_gives_pillows_reduction_of_valid_pixels(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", train=1, val=6, images=holed, invalid=0)
    pillow = PillowRenderer(folder, res=32, augment=False)
    from PIL import Image

    with Loader(folder, split="val", res=32, batch_size=6, augment=False) as loader:
        batch = next(iter(loader))
    for row in range(6):
        levels = holed(1 + row)[2]
        far = pillow.moved_depth(Image.fromarray(levels), no_augmentation(1), 1.0) / 65535
        found = batch.depth[row, 0].numpy()
        assert ((far > 0) != batch.valid["depth"][row, 0].numpy()).mean() < 0.01
        both = (far > 0) & (found > 0)
        assert np.abs(far - found)[both].max() < 1e-4


@pytest.mark.parametrize("kernel", ["fused", "dali"])
def test_a_batch_is_four_images_and_says_which_pixels_are_valid(
    tmp_path: Path, kernel: str
) -> None:
    folder = write_data_set(tmp_path / "data", train=8, val=3, images=same_size, invalid=0)
    with Loader(folder, res=32, batch_size=4, dtype=torch.bfloat16, kernel=kernel) as loader:
        for bg, fg_bg, mask, depth in loader:
            assert bg.shape == fg_bg.shape and mask.shape == depth.shape
        batch = next(iter(loader))
    assert len(batch) == 4
    valid = batch.valid["depth"]
    assert list(batch.valid) == ["depth"] and valid.dtype == torch.bool
    half = batch.map(lambda tensor: tensor[2:])
    assert len(half.mask) == 2 and torch.equal(half.valid["depth"], valid[2:])
    moved = batch.to("cpu", non_blocking=True)
    assert isinstance(moved, Batch) and torch.equal(moved.valid["depth"], valid)
    assert torch.equal(pickle.loads(pickle.dumps(batch)).valid["depth"], valid)
    changed = batch._replace(depth=torch.zeros_like(batch.depth))
    assert torch.equal(changed.valid["depth"], valid) and not changed.depth.any()


def test_a_rank_without_samples_has_an_empty_validity_too(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", train=4, val=1, images=same_size, invalid=0)
    options = {"split": "val", "res": 16, "batch_size": 4, "augment": False}
    with Loader(folder, **options, rank=1, world_size=2) as loader:
        (batch,) = loader
    assert batch.valid["depth"].shape == (0, 1, 16, 16)


def test_without_an_invalid_value_a_batch_has_no_validity(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path / "data", train=4, val=1, images=same_size)
    for kernel in ("fused", "dali"):
        with Loader(folder, res=16, batch_size=4, kernel=kernel) as loader:
            assert next(iter(loader)).valid == {}
