import dataclasses
import gc
import sys

import numpy as np
import pytest
import torch
from shardline_samples import matrices

from shardify.loader.augmentation import NOISE_UNIT, draw, no_augmentation, noise_table
from shardify.loader.batch import ROLES, RenderSettings
from shardify.loader.cpu_renderer import Buffers, Renderer
from shardify.loader.reduction import HALF, reduced_sizes
from shardify.resolution import ResolutionLike, resolution
from train.bench.pillow_renderer import warp

NORMAL = np.array(
    [[[0.02, 0.03, 0.04], [-2, -1, 0.5]], [[0.05, 0.01, 0.02], [-1, -3, 1]]], np.float32
)


def images_of(sizes: list[tuple[int, int]], depth_bits: int, seed: int = 0) -> list[np.ndarray]:
    """bg, fg_bg, mask, depth of one sample, noise all over; sizes are (height, width)."""
    rng = np.random.default_rng(seed)
    levels = np.uint16 if depth_bits == 16 else np.uint8
    return [
        rng.integers(0, 256, (*sizes[0], 3), dtype=np.uint8),
        rng.integers(0, 256, (*sizes[1], 3), dtype=np.uint8),
        rng.integers(0, 256, sizes[2], dtype=np.uint8),
        rng.integers(0, 2**depth_bits, sizes[3]).astype(levels),
    ]


def table_of(samples: list[list[np.ndarray]]) -> np.ndarray:
    return np.array(
        [
            [(image.__array_interface__["data"][0], *image.shape[1::-1]) for image in sample]
            for sample in samples
        ],
        np.int64,
    )


def renderer(res: ResolutionLike, **options) -> Renderer:
    settings = {
        "normal": NORMAL, "threshold": 150.0, "depth_bits": 8, "augment": True, "threads": 1,
        "dtype": torch.float32, "channels_last": False, "device": torch.device("cpu"),
        "batch_size": 1, "roles": ROLES,
    }  # fmt: skip
    return Renderer(RenderSettings(res=resolution(res), **{**settings, **options}))


def reduced(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image averaged to another size by a triangle filter, in whole levels."""

    def weights(length: int, shorter: int) -> np.ndarray:
        scale = max(length / shorter, 1)
        centres = (np.arange(shorter) + 0.5) * length / shorter
        rows = 1 - np.abs(np.arange(length) + 0.5 - centres[:, None]) / scale
        return rows.clip(0) / rows.clip(0).sum(1, keepdims=True)

    rows, columns = weights(len(image), height), weights(image.shape[1], width)
    return np.rint(np.einsum("yh,hw...,xw->yx...", rows, image, columns))


def expected(sample, drawn, n: int, res: ResolutionLike, depth_bits: int, augment: bool):
    """The same by NumPy in float64."""
    planes = []
    threshold = 150.0
    aspect = sample[1].shape[1] / sample[1].shape[0]
    high, wide = resolution(res)
    for role, image in enumerate(sample):
        width, height = reduced_sizes(image.shape[1::-1], res).tolist()
        if (height, width) != image.shape[:2]:
            if role == 2:
                image, threshold = np.where(image >= 150, 255, 0), HALF
            image = reduced(image, width, height)
        matrix = matrices(
            drawn.angle[n : n + 1], width=width, height=height, res=res, aspect=aspect
        )[0]
        planes.append(warp(image, matrix, res))
    for role in (0, 1):
        levels = planes[role]
        if augment:
            levels = levels @ drawn.colour[n, :, :3].T.astype(float) + drawn.colour[n, :, 3]
            row, column = drawn.place[n]
            grain = noise_table(res)[:, row : row + high, column : column + wide]
            levels += grain.transpose(1, 2, 0) * (float(drawn.noise[n]) / NOISE_UNIT)
            levels = levels.clip(0, 255)
        planes[role] = (levels * NORMAL[role, 0] + NORMAL[role, 1]).transpose(2, 0, 1)
    return planes[0], planes[1], planes[2] - threshold, planes[3] / (2**depth_bits - 1)


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float, *, level: float) -> None:
    """Compare; an average half way between two levels may be rounded either way."""
    error = np.abs(found - wanted)
    assert error.max() < max(level, tolerance)
    assert (error > tolerance).mean() < 0.1


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("depth_bits", [8, 16])
@pytest.mark.parametrize(
    "sizes",
    [
        [(40, 40)] * 4,
        [(50, 30), (50, 30), (50, 30), (45, 27)],
        [(33, 21), (20, 64), (64, 20), (2, 2)],
        [(2, 2), (3, 2), (2, 3), (250, 250)],
    ],
)
@pytest.mark.parametrize("res", [16, 61, (21, 48), (40, 16)])
def test_every_pixel_is_what_numpy_says(sizes, res, depth_bits, augment) -> None:
    samples = [images_of(sizes, depth_bits, seed) for seed in range(3)]
    drawn = draw(np.arange(3), seed=1, epoch=2) if augment else no_augmentation(3)
    batch = renderer(res, depth_bits=depth_bits, augment=augment)(table_of(samples), drawn)
    for n, sample in enumerate(samples):
        bg, fg_bg, seen, depth = expected(sample, drawn, n, res, depth_bits, augment)
        assert_close(batch.bg[n].numpy(), bg, 2e-3, level=0.08)
        assert_close(batch.fg_bg[n].numpy(), fg_bg, 2e-3, level=0.08)
        assert_close(batch.depth[n, 0].numpy(), depth, 5e-5, level=1.1 / (2**depth_bits - 1))
        wrong = batch.mask[n, 0].numpy() != (seen >= 0)
        # float32 and float64 may fall on either side of the threshold; averages of a half level
        # are rounded either way.
        averaged = reduced_sizes(sizes[2][::-1], res).tolist() != [*sizes[2][::-1]]
        assert np.abs(seen[wrong]).max(initial=0) < (1.01 if averaged else 0.01)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_nothing(threads) -> None:
    samples = [images_of([(40, 40)] * 4, 8, seed) for seed in range(5)]
    drawn = draw(np.arange(5), seed=0, epoch=0)
    alone = renderer(32)(table_of(samples), drawn)
    many = renderer(32, threads=threads)
    for one, other in zip(alone, many(table_of(samples), drawn), strict=True):
        assert torch.equal(one, other)
    many.close()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_larger_than_the_caches_holds_the_same_pixels(channels_last) -> None:
    samples = [images_of([(250, 250)] * 3 + [(224, 224)], 8, seed) for seed in range(4)]
    drawn = draw(np.arange(4), seed=0, epoch=0)
    render = renderer(256, channels_last=channels_last)
    many = render(table_of(samples), drawn)
    for n, sample in enumerate(samples):
        one = dataclasses.replace(
            drawn,
            **{
                field.name: getattr(drawn, field.name)[n : n + 1]
                for field in dataclasses.fields(drawn)
            },
        )
        for alone, among in zip(render(table_of([sample]), one), many, strict=True):
            assert torch.equal(alone[0], among[n])


def test_dtype_and_layout_are_as_asked() -> None:
    samples = [images_of([(40, 40)] * 4, 8)]
    drawn = draw(np.arange(1), seed=0, epoch=0)
    plain = renderer(32)(table_of(samples), drawn)
    other = renderer(32, dtype=torch.bfloat16, channels_last=True)(table_of(samples), drawn)
    for one, two in zip(plain, other, strict=True):
        assert two.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.to(torch.bfloat16), two)


def test_a_batch_of_none_has_the_right_shapes() -> None:
    batch = renderer(32)(np.empty((0, 4, 3), np.int64), no_augmentation(0))
    assert [tuple(tensor.shape) for tensor in batch] == [
        (0, 3, 32, 32), (0, 3, 32, 32), (0, 1, 32, 32), (0, 1, 32, 32)
    ]  # fmt: skip


def test_memory_is_used_again_only_once_nothing_looks_at_it() -> None:
    buffers = Buffers()
    first = buffers.take(1000)
    kept = first[10:20].view(2, 5)
    address = first.data_ptr()
    del first
    gc.collect()
    second = buffers.take(1000)
    assert second.data_ptr() != address
    seen = kept.numpy()
    del kept
    gc.collect()
    third = buffers.take(1000)
    assert third.data_ptr() != address
    del seen
    gc.collect()
    assert buffers.take(1000).data_ptr() == address


def test_no_code_runs_where_a_batch_is_dropped() -> None:
    # An interrupt that arrived there would be lost.
    tensor = Buffers().take(1000)
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(f"{event} {frame.f_code.co_name}"))
    del tensor
    sys.setprofile(None)
    assert not [call for call in called if call.startswith("call")]
