"""A picture much larger than the batch is reduced as Pillow reduces it, wherever it is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shardline_samples import Images, write_data_set
from shardline_tiny_run import TinyNet

from shardify.errors import DataError
from shardify.images.codecs import resize
from shardify.loader.loader import Loader
from shardify.loader.reduction import reduce_table, reduced_sizes
from shardify.loader.scaled_decode import ScaledDecoder, ScaledImage
from shardify.resolution import ResolutionLike, resolution
from train.checkpoint.trained_model import Trained
from train.config import Config
from train.inference.predict import Predictor
from train.optim.criterion import make_criterion

LEVELS = 1.5
"""Largest RMSE between two ways, in levels of 255."""


def photograph(number: int, width: int, height: int) -> np.ndarray:
    """Detail at every scale, as in a photograph: noise of 1 to 64 pixels, and edges."""
    rng = np.random.default_rng(number)
    total = np.zeros((height, width, 3))
    for grain in (1, 2, 4, 8, 16, 32, 64):
        shape = (-(-height // grain), -(-width // grain), 3)
        blocks = rng.normal(0, 14, shape).repeat(grain, 0).repeat(grain, 1)
        total += blocks[:height, :width]
    return (total + 128).clip(0, 255).astype(np.uint8)


def rmse(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((one.astype(float) - other) ** 2).mean()))


def shrunk(plane: np.ndarray, res: ResolutionLike) -> np.ndarray:
    image = Image.fromarray(plane.astype(np.float32) if plane.dtype == np.uint16 else plane)
    return np.asarray(image.resize(resolution(res)[::-1], Image.Resampling.BILINEAR))


def predicted_input(image: np.ndarray, res: ResolutionLike) -> np.ndarray:
    """What `train predict` gives the network, in levels of 255."""
    stats = (
        {role: [0.0] * 3 for role in ("bg", "fg_bg")},
        {role: [1.0] * 3 for role in ("bg", "fg_bg")},
    )
    trained = Trained(
        path=Path("x"), model=TinyNet("unet"), criterion=make_criterion(Config().loss, ("mask",)),
        res=resolution(res), mean=stats[0], std=stats[1], config=Config(), step=0,
    )  # fmt: skip
    predictor = Predictor(trained, device=torch.device("cpu"), res=res)
    return 255 * predictor._input(image, "fg_bg", image.shape[:2])[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "res"),
    [
        ((100, 100), 64),
        ((250, 250), 64),
        ((500, 333), 64),
        ((500, 500), 256),
        ((2000, 1500), 128),
        ((500, 333), (64, 112)),
        ((333, 500), (96, 208)),
    ],
)
def test_every_way_gives_pillows_antialiased_picture(
    tmp_path: Path, size: tuple[int, int], res: ResolutionLike
) -> None:
    width, height = size

    def images(number: int) -> Images:
        gray = photograph(number, width, height)
        mask = np.where(gray[..., 0] > 128, 255, 0).astype(np.uint8)
        return gray, mask, gray[..., 1].astype(np.uint16) * 257

    folder = write_data_set(
        tmp_path / "data", train=1, val=1, backgrounds=1, images=images,
        background=lambda _: photograph(90, width, height),
    )  # fmt: skip
    ways = {}
    for kernel in ("fused", "dali"):
        options = {"split": "val", "res": res, "batch_size": 1, "augment": False}
        with Loader(folder, kernel=kernel, **options) as loader:
            batch = next(iter(loader))
            stats = loader.manifest.stats
        shown = {
            role: 255 * (getattr(batch, role)[0].permute(1, 2, 0) * torch.tensor(stats[role].std)
            + torch.tensor(stats[role].mean)).numpy()
            for role in ("bg", "fg_bg")
        }  # fmt: skip
        ways[kernel] = shown | {
            role: 255 * getattr(batch, role)[0, 0].numpy() for role in ("mask", "depth")
        }
    fg_bg, mask, depth = images(1)
    bg = photograph(90, width, height)
    wanted = {"bg": shrunk(bg, res), "fg_bg": shrunk(fg_bg, res), "depth": shrunk(depth, res) / 257}
    for planes in ways.values():
        for role, plane in wanted.items():
            assert rmse(planes[role], plane) < LEVELS, role
        # Where an average is half object, either is right.
        assert (planes["mask"] != np.where(shrunk(mask, res) >= 128, 255, 0)).mean() < 0.02
    assert rmse(predicted_input(fg_bg, res), wanted["fg_bg"]) < LEVELS
    assert rmse(resize(fg_bg, "fg_bg", res), wanted["fg_bg"]) < LEVELS
    assert rmse(ways["fused"]["fg_bg"], ways["dali"]["fg_bg"]) < 0.5
    assert (ways["fused"]["mask"] == resize(mask, "mask", res)).mean() > 0.98


@pytest.mark.parametrize("size", [(512, 512), (601, 743), (1003, 757), (2000, 1500)])
def test_a_large_jpeg_is_decoded_at_a_smaller_size_and_looks_the_same(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    width, height = size

    def images(number: int) -> Images:
        image = photograph(number, width, height)
        return image, image[..., 0], image[..., 1]

    folder = write_data_set(tmp_path / "data", train=3, val=0, images=images, picture="JPEG")
    decoded: list[tuple[int, ...]] = []

    def record(decoder: ScaledDecoder, payload: np.ndarray) -> ScaledImage | str:
        image = decode(decoder, payload)
        assert not isinstance(image, str)
        decoded.append((image.width, image.height, *image.pixels.shape))
        return image

    decode = ScaledDecoder._decode
    monkeypatch.setattr(ScaledDecoder, "_decode", record)
    options = {"res": 64, "batch_size": 3, "seed": 3}
    with Loader(folder, **options) as one, Loader(folder, kernel="dali", **options) as other:
        fused, dali = next(iter(one)), next(iter(other))
    level = 1 / 255 / min(one.manifest.stats["fg_bg"].std)
    assert rmse(fused.fg_bg.numpy(), dali.fg_bg.numpy()) < LEVELS * level
    assert (fused.mask != dali.mask).float().mean() < 0.02
    assert decoded == [(*size, 64, 64, 3)] * 3


def test_a_damaged_large_jpeg_is_named(tmp_path: Path) -> None:
    folder = write_data_set(
        tmp_path / "data", train=2, val=0, picture="JPEG",
        images=lambda number: (photograph(number, 600, 600), *2 * [np.zeros((60, 60), np.uint8)]),
    )  # fmt: skip
    tar = folder / "train-00000.tar"
    data = tar.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    tar.write_bytes(data[:start] + bytes(2) + data[start + 2 :])
    with (
        Loader(folder, res=64, batch_size=2) as loader,
        pytest.raises(DataError, match="fg_bg does not decode"),
    ):
        next(iter(loader))


def test_a_turned_picture_is_the_reduced_one_turned(tmp_path: Path) -> None:
    """The pattern of a checkerboard of single pixels never shows, at any angle."""
    board = (np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)

    def images(_number: int) -> Images:
        return np.repeat(board[..., None], 3, 2), np.full_like(board, 255), board

    folder = write_data_set(
        tmp_path / "data", train=8, val=1, images=images,
        background=lambda _: np.repeat(board[..., None], 3, 2),
    )  # fmt: skip
    with Loader(folder, res=64, batch_size=8) as loader:
        batch = next(iter(loader))
    assert float((255 * batch.depth - 127.5).abs().max()) < 2
    assert float(batch.mask.min()) == 1


def test_pictures_of_several_sizes_are_reduced_each_by_its_own(tmp_path: Path) -> None:
    def images(number: int) -> Images:
        side = (30, 60, 200)[number % 3]
        image = photograph(number, side, side)
        return image, np.where(image[..., 0] > 128, 255, 90).astype(np.uint8), image[..., 0]

    folder = write_data_set(tmp_path / "data", train=12, val=6, images=images)
    options = {"res": 32, "batch_size": 6}
    with Loader(folder, **options) as one, Loader(folder, kernel="dali", **options) as other:
        for fused, dali in zip(one, other, strict=True):
            assert rmse(255 * fused.depth.numpy(), 255 * dali.depth.numpy()) < 0.6
            assert (fused.mask != dali.mask).float().mean() < 0.01
            level = 1 / 255 / min(one.manifest.stats["fg_bg"].std)
            assert rmse(fused.fg_bg.numpy(), dali.fg_bg.numpy()) < 0.6 * level


def test_small_pictures_and_small_reductions_are_left_to_the_warp() -> None:
    sizes = [[64, 96], [97, 96], [31, 4000]]
    assert reduced_sizes(sizes, 64).tolist() == [[64, 96], [64, 96], [31, 64]]
    table = np.zeros((3, 96, 90, 3), np.uint8)
    assert reduce_table(table, 64) is table
    assert reduce_table(table, 32).shape == (3, 32, 32, 3)
