import dataclasses
import gc
import hashlib
import io
import itertools
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from shardline_samples import Images, matrices, scene, write_data_set

from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader import background_table
from shardify.loader.augmentation import Augmentation, draw
from shardify.loader.batch import Batch
from shardify.loader.loader import Loader
from shardify.storage.readahead import ReadAhead
from train.bench.pillow_renderer import PillowRenderer

PLAIN = Augmentation(shift=0, hue=0, saturation=0, value=0, noise=0)
"""Rotation alone."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("pipeline") / "data")


def ramps(_number: int) -> Images:
    """Every pixel says where it is: red is its column, green its row; depth and mask likewise."""
    y, x = np.mgrid[:64, :64]
    fg_bg = np.stack([x * 4, y * 4, x * 0 + 90], axis=-1).astype(np.uint8)
    return fg_bg, (x * 4).astype(np.uint8), (y * 4).astype(np.uint8)


@pytest.fixture(scope="module")
def ramped(tmp_path_factory) -> Path:
    return write_data_set(
        tmp_path_factory.mktemp("ramped") / "data",
        train=24,
        images=ramps,
        background=lambda _: ramps(0)[0],
    )


def levels(loader: Loader, batch: Batch, role: str) -> np.ndarray:
    """A normalised picture back in levels of 255."""
    stats = loader.manifest.stats[role]
    mean, std = torch.tensor(stats.mean), torch.tensor(stats.std)
    picture = getattr(batch, role) * std.view(3, 1, 1) + mean.view(3, 1, 1)
    return (picture * 255).numpy()


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def collect(loader: Loader) -> list[Batch]:
    with loader:
        return list(loader)


# How shards get into memory


class Asked(ReadAhead):
    """Which files were read ahead, and whether that has ended."""

    all: ClassVar[list["Asked"]] = []

    def __init__(self, files: Sequence[Path]) -> None:
        self.names = [file.name for file in files]
        self.closed = False
        self.all.append(self)
        super().__init__(files)

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def asked(monkeypatch) -> list[Asked]:
    monkeypatch.setattr(Asked, "all", [])
    monkeypatch.setattr("shardify.loader.loader.ReadAhead", Asked)
    return Asked.all


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_shards_of_a_split_are_read_in_order_until_the_loader_is_closed(
    data, asked, split
) -> None:
    with Loader(str(data), split=split, res=32, batch_size=4):
        shards = Manifest.load(data).splits[split].shards
        assert [(each.names, each.closed) for each in asked] == [
            ([shard.name for shard in shards], False)
        ]
    assert asked[0].closed


def test_a_loader_that_is_dropped_reads_nothing_on(data, asked) -> None:
    loader = Loader(str(data), split="train", res=32, batch_size=4)
    assert not asked[0].closed
    del loader
    gc.collect()
    assert asked[0].closed


def test_shards_that_are_held_in_memory_are_not_read_ahead(data, asked) -> None:
    with Loader(str(data), split="train", res=32, batch_size=4, cache="ram"):
        assert [each.names for each in asked] == [[]]


def test_a_loader_that_does_not_start_reads_nothing_on(data, asked, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("no")

    monkeypatch.setattr("shardify.loader.loader.BatchProducer", fail)
    with pytest.raises(DataError):
        Loader(str(data), split="train", res=32, batch_size=4)
    assert [each.closed for each in asked] == [True]


# What moves, and what changes colour


@pytest.mark.parametrize("kernel", ["fused", "dali"])
def test_all_four_images_move_by_the_transform_that_was_drawn(ramped, kernel) -> None:
    res = 48
    with Loader(ramped, res=res, batch_size=8, seed=5, augmentation=PLAIN, kernel=kernel) as loader:
        for step, batch in enumerate(loader):
            drawn = draw(loader.samples_of(0, step), seed=5, epoch=0, augmentation=PLAIN)
            looks = matrices(drawn.angle, width=64, height=64, res=res)
            y, x = np.mgrid[:res, :res] + 0.5
            pictures = [levels(loader, batch, role) for role in ("bg", "fg_bg")]
            for n, look in enumerate(looks):
                # Outside the source its edge is repeated: a clipped coordinate.
                column, row = (
                    (4 * (look[axis, 0] * x + look[axis, 1] * y + look[axis, 2] - 0.5)).clip(0, 252)
                    for axis in (0, 1)
                )
                for picture in pictures:
                    assert picture[n, 0] == pytest.approx(column, abs=0.01)
                    assert picture[n, 1] == pytest.approx(row, abs=0.01)
                    assert picture[n, 2] == pytest.approx(90, abs=0.01)
                assert batch.depth[n, 0].numpy() * 255 == pytest.approx(row, abs=0.01)
                clear = np.abs(column - 150) > 0.01
                assert np.array_equal(batch.mask[n, 0].numpy()[clear], (column >= 150)[clear])
            assert len(np.unique(drawn.angle)) == 8


@pytest.mark.parametrize("kernel", ["fused", "dali"])
def test_targets_never_see_colour_or_noise(data, kernel) -> None:
    wild = Augmentation(shift=60, hue=90, saturation=0.9, value=0.9, noise=40)
    settings = {"res": 32, "batch_size": 8, "kernel": kernel}
    for one, other in zip(
        collect(Loader(data, augmentation=PLAIN, **settings)),
        collect(Loader(data, augmentation=wild, **settings)),
        strict=True,
    ):
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.depth, other.depth)
        assert (one.bg - other.bg).abs().mean() > 0.1
        assert (one.fg_bg - other.fg_bg).abs().mean() > 0.1


def test_both_pictures_of_a_sample_get_the_same_colour_and_noise(ramped) -> None:
    with Loader(ramped, res=32, batch_size=8) as loader:
        for batch in loader:
            bg, fg_bg = levels(loader, batch, "bg"), levels(loader, batch, "fg_bg")
            assert bg == pytest.approx(fg_bg, abs=0.01)


def test_noise_has_the_deviation_that_was_drawn(tmp_path) -> None:
    gray = np.full((32, 32, 3), 128, np.uint8)
    flat = (gray, gray[..., 0], gray[..., 0])
    folder = write_data_set(
        tmp_path / "data", train=64, images=lambda _: flat, background=lambda _: gray
    )
    limits = Augmentation(shift=0, hue=0, saturation=0, value=0, noise=12)
    with Loader(folder, res=64, batch_size=64, augmentation=limits) as loader:
        batch = next(iter(loader))
        drawn = draw(loader.samples_of(0, 0), seed=0, epoch=0, augmentation=limits)
        spread = levels(loader, batch, "bg").std(axis=(1, 2, 3))
    assert spread == pytest.approx(drawn.noise, rel=0.05, abs=0.05)


# The same picture by other means


@pytest.mark.parametrize("depth_bits", [8, 16])
@pytest.mark.parametrize("res", [28, 64])
def test_kernel_and_dali_operators_give_the_same_batches(tmp_path, res, depth_bits) -> None:
    def deep(number: int) -> Images:
        fg_bg, mask, depth = scene(number)
        return fg_bg, mask, depth if depth_bits == 8 else depth.astype(np.uint16) * 251

    folder = write_data_set(tmp_path / "data", train=20, val=5, images=deep)
    for split, augment in (("train", True), ("val", False)):
        settings = {"split": split, "augment": augment, "res": res, "batch_size": 8}
        fused = collect(Loader(folder, **settings))
        dali = collect(Loader(folder, kernel="dali", **settings))
        assert len(fused) == len(dali) > 0
        for one, other in zip(fused, dali, strict=True):
            # A thousandth of a deviation is a twentieth of one level of 255.
            assert (one.bg - other.bg).abs().max() < 1e-3
            assert (one.fg_bg - other.fg_bg).abs().max() < 1e-3
            assert (one.depth - other.depth).abs().max() < 1e-5
            assert (one.mask != other.mask).float().mean() < 1e-3


def test_images_of_many_sizes_are_each_resized_from_their_own(tmp_path) -> None:
    def grown(number: int) -> Images:
        return scene(number, size=30 + 7 * (number % 4), depth_size=20 + 5 * (number % 3))

    folder = write_data_set(tmp_path / "data", train=20, val=5, images=grown)
    settings = {"res": 36, "batch_size": 8}
    fused = collect(Loader(folder, **settings))
    dali = collect(Loader(folder, kernel="dali", **settings))
    assert len({size[0] for size in Manifest.load(folder).roles["depth"].sizes}) == 3
    for one, other in zip(fused, dali, strict=True):
        assert (one.fg_bg - other.fg_bg).abs().max() < 1e-3
        assert (one.depth - other.depth).abs().max() < 1e-5


def test_loaders_of_one_data_set_share_its_backgrounds_and_let_go_of_them(data, tmp_path) -> None:
    other = write_data_set(tmp_path / "other", background=lambda n: scene(2000 + n, size=60)[0])
    gc.collect()
    before = len(background_table._TABLES)
    with (
        Loader(data, res=28) as first,
        Loader(data, res=32, split="val") as second,
        Loader(other, res=48) as third,
    ):
        assert first._producer._backgrounds is second._producer._backgrounds
        assert first._producer._backgrounds is not third._producer._backgrounds
        assert len(background_table._TABLES) == before + 2
    del first, second, third
    gc.collect()
    assert len(background_table._TABLES) == before


@pytest.mark.parametrize("kernel", ["fused", "dali"])
@pytest.mark.parametrize("depth_bits", [8, 16])
def test_raw_shards_give_the_batches_of_encoded_ones(tmp_path, depth_bits, kernel) -> None:
    def odd(number: int) -> Images:
        fg_bg, mask, depth = scene(number, size=37, depth_size=29)
        return fg_bg, mask, depth if depth_bits == 8 else depth.astype(np.uint16) * 251

    folders = [
        write_data_set(
            tmp_path / picture,
            train=20,
            images=odd,
            background=lambda index: scene(50 + index, size=37)[0],
            picture=picture,
        )
        for picture in ("PNG", "RAW")
    ]
    for split, augment in (("train", True), ("val", False)):
        settings = {"split": split, "augment": augment, "res": 32, "batch_size": 8}
        encoded, raw = (collect(Loader(folder, kernel=kernel, **settings)) for folder in folders)
        assert len(encoded) == len(raw) == 2
        assert all(same(*pair) for pair in zip(encoded, raw, strict=True))


def test_a_raw_member_of_another_length_is_named(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data", picture="RAW")
    manifest = Manifest.load(folder)
    for role, text in (("mask", "raw mask of 200 bytes"), ("depth", "raw depth of 1296 bytes")):
        wide = dataclasses.replace(manifest.roles[role], sizes=[[44, 40, 53]])
        dataclasses.replace(manifest, roles={**manifest.roles, role: wide}).save(folder)
        with pytest.raises(DataError, match=rf"s00000: {text}; the manifest's 44x40 pixels take"):
            Loader(folder)
    mixed = dataclasses.replace(manifest.roles["mask"], codec="keep")
    dataclasses.replace(manifest, roles={**manifest.roles, "mask": mixed}).save(folder)
    with pytest.raises(DataError, match="only bg, fg_bg, depth in the raw codec"):
        Loader(folder)


@pytest.mark.parametrize("picture", ["PNG", "RAW"])
def test_a_shard_may_be_larger_than_two_gigabytes(tmp_path, picture) -> None:
    folder = write_data_set(tmp_path / "data", train=8, val=0, picture=picture)
    expected = [collect(Loader(folder, res=24, batch_size=8, kernel=k)) for k in ("fused", "dali")]
    hole, shard, index = 5 << 29, folder / "train-00000.tar", folder / "train-00000.idx"
    tar = shard.read_bytes()
    with shard.open("wb") as file:
        file.seek(hole)
        file.write(tar)
    head, *lines = [line.split(" ") for line in index.read_text().splitlines()]
    for words in lines:
        words[1::4] = [str(int(offset) + hole) for offset in words[1::4]]
    index.write_text("".join(" ".join(words) + "\n" for words in (head, *lines)))
    manifest = Manifest.load(folder)
    (old,) = manifest.splits["train"].shards
    manifest.splits["train"].shards[0] = dataclasses.replace(old, bytes=hole + len(tar))
    manifest.save(folder)
    for kernel, one in zip(("fused", "dali"), expected, strict=True):
        found = collect(Loader(folder, res=24, batch_size=8, kernel=kernel))
        assert all(same(*pair) for pair in zip(one, found, strict=True))


def test_sixteen_bit_depth_keeps_its_precision(tmp_path) -> None:
    fine = (np.arange(36 * 36).reshape(36, 36) + 30_000).astype(np.uint16)
    folder = write_data_set(
        tmp_path / "data", train=8, val=0, images=lambda number: (*scene(number)[:2], fine)
    )
    for kernel in ("fused", "dali"):
        with Loader(folder, res=36, batch_size=8, augment=False, kernel=kernel) as loader:
            depth = next(iter(loader)).depth[0, 0].numpy()
        assert depth * 65535 == pytest.approx(fine, abs=0.02)


@pytest.mark.parametrize("picture", ["PNG", "JPEG"])
def test_a_plain_resize_agrees_with_pillow(tmp_path, picture) -> None:
    folder = write_data_set(tmp_path / "data", picture=picture)
    pillow = PillowRenderer(folder, res=32, augment=False)
    with Loader(folder, split="val", res=32, batch_size=13, augment=False) as loader:
        batch = next(iter(loader))
        shards = loader._sampler.shards
        for n, index in enumerate(loader.samples_of(0, 0).tolist()):
            fg_bg, mask, depth = (
                Image.open(io.BytesIO(shards.payloads(np.array([index]), role)[0]))
                for role in ("fg_bg", "mask", "depth")
            )
            number = int(shards.backgrounds(np.array([index]), count=3)[0])
            drawn = pillow.draws(index, seed=0, epoch=0)
            planes = pillow(fg_bg.convert("RGB"), mask.convert("L"), depth, number, drawn)
            std = np.array(loader.manifest.stats["bg"].std).reshape(3, 1, 1)
            # Pillow cuts to whole levels and has a JPEG decoder of its own.
            level = 1 / 255 / std
            assert np.abs(batch.bg[n].numpy() - planes[0]).max() < (3.5 * level).max()
            assert np.abs(batch.fg_bg[n].numpy() - planes[1]).max() < (3.5 * level).max()
            assert (batch.mask[n].numpy() != planes[2]).mean() < 0.01
            assert np.abs(batch.depth[n].numpy() - planes[3]).max() < 1.01 / 255


@pytest.mark.parametrize("kernel", ["fused", "dali"])
def test_dtype_and_layout_are_as_asked(data, kernel) -> None:
    settings = {"res": 32, "batch_size": 8, "kernel": kernel}
    plain = collect(Loader(data, **settings))[0]
    other = collect(Loader(data, dtype=torch.bfloat16, channels_last=True, **settings))[0]
    for one, two in zip(plain, other, strict=True):
        assert two.dtype == torch.bfloat16
        assert two.is_contiguous(memory_format=torch.channels_last)
        assert one == pytest.approx(two.float(), abs=0.03)


# Which samples, when


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 13, 16])
def test_validation_sees_every_sample_once_and_untouched(data, batch_size, world_size) -> None:
    whole = collect(
        Loader(data, split="val", res=24, batch_size=13, augment=False, kernel="fused")
    )[0]
    seen: list[int] = []
    lengths = set()
    for rank in range(world_size):
        loader = Loader(
            data, split="val", res=24, batch_size=batch_size, augment=False, rank=rank,
            world_size=world_size, seed=rank,
        )  # fmt: skip
        lengths.add(len(loader))
        for step, batch in enumerate(collect(loader)):
            indexes = loader.samples_of(0, step)
            assert len(indexes) == len(batch.bg)
            assert same(batch, Batch(*(tensor[indexes] for tensor in whole)))
            seen += indexes.tolist()
    assert sorted(seen) == list(range(13))
    assert len(lengths) == 1


def test_training_drops_the_last_partial_batch_on_every_rank(data) -> None:
    seen: list[int] = []
    for rank in range(3):
        loader = Loader(data, res=24, batch_size=4, rank=rank, world_size=3)
        batches = collect(loader)
        assert [len(batch.bg) for batch in batches] == [4, 4, 4] == [4] * len(loader)
        seen += np.concatenate([loader.samples_of(0, step) for step in range(3)]).tolist()
    assert len(set(seen)) == 36


def test_each_epoch_has_an_order_of_its_own_and_a_rerun_repeats_it(data) -> None:
    with Loader(data, res=24, batch_size=8) as first, Loader(data, res=24, batch_size=8) as second:
        epochs = [list(first), list(first)]
        assert first.epoch == 2
        for epoch in epochs:
            assert all(same(*pair) for pair in zip(epoch, list(second), strict=True))
    assert not same(epochs[0][0], epochs[1][0])
    assert loader_keys(first, 0) != loader_keys(first, 1)
    assert sorted(loader_keys(first, 0)) == sorted(loader_keys(first, 1))


def loader_keys(loader: Loader, epoch: int) -> list[str]:
    return [
        key for step in range(len(loader)) for key in loader.keys(loader.samples_of(epoch, step))
    ]


def test_a_samples_augmentation_is_its_own_whatever_surrounds_it(data) -> None:
    def by_sample(**settings) -> dict[int, Batch]:
        loader = Loader(data, res=24, **settings)
        found = {}
        for step, batch in enumerate(collect(loader)):
            for n, index in enumerate(loader.samples_of(0, step).tolist()):
                found[index] = Batch(*(tensor[n] for tensor in batch))
        return found

    reference = by_sample(batch_size=8)
    for settings in (
        {"batch_size": 5, "threads": 1},
        {"batch_size": 10, "threads": 3, "prefetch": 1},
        {"batch_size": 4, "rank": 1, "world_size": 2},
        {"batch_size": 8, "order": "block"},
        {"batch_size": 8, "order": "sequential", "cache": "ram"},
    ):
        found = by_sample(**settings)
        assert len(found) >= 20
        for index, planes in found.items():
            assert same(planes, reference[index])


def test_an_epoch_left_early_is_over(data) -> None:
    with Loader(data, res=24, batch_size=8) as loader:
        for _ in loader:
            break
        assert loader.epoch == 1
        second = list(loader)
    with Loader(data, res=24, batch_size=8) as loader:
        loader.epoch = 1
        assert all(same(*pair) for pair in zip(second, list(loader), strict=True))


# State


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("step", [0, 1, 4, 5])
def test_a_new_loader_goes_on_bit_for_bit(data, epoch, step) -> None:
    with Loader(data, res=24, batch_size=8, seed=3) as loader:
        for _ in range(epoch):
            list(loader)
        batches = iter(loader)
        list(itertools.islice(batches, step))
        state = json.loads(json.dumps(loader.state_dict()))
        rest = list(batches) + list(loader)
    # Another seed, thread count and prefetch: the state decides.
    with Loader(data, res=24, batch_size=8, seed=9, threads=1, prefetch=3) as resumed:
        resumed.load_state_dict(state)
        assert resumed.epoch == (epoch + 1 if step == 5 else epoch)
        again = list(resumed) if step < 5 else []
        again += list(resumed)
    assert len(again) == len(rest) == 10 - step
    assert all(same(*pair) for pair in zip(rest, again, strict=True))


def digest(batch: Batch) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in batch)).hexdigest()


def test_a_new_process_goes_on_bit_for_bit(data) -> None:
    code = (
        "import hashlib, itertools, json, sys\n"
        "from shardify.loader.loader import Loader\n"
        "state, takes = json.loads(sys.argv[1])\n"
        f"loader = Loader({str(data)!r}, res=24, batch_size=8, seed=3)\n"
        "if state: loader.load_state_dict(state)\n"
        "digest = lambda b: hashlib.sha256(b''.join(t.numpy().tobytes() for t in b)).hexdigest()\n"
        "found = [digest(b) for take in takes for b in itertools.islice(loader, take)]\n"
        "print(json.dumps([found, loader.state_dict()]))\n"
        "loader.close()\n"
    )

    def in_a_process(state: object, takes: list[int]) -> list[object]:
        command = [sys.executable, "-c", code, json.dumps([state, takes])]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(found)

    first, state = in_a_process(None, [3])
    # The rest of the first epoch, and one more step than the second has in all.
    second, end = in_a_process(state, [9, 9])
    with Loader(data, res=24, batch_size=8, seed=3) as loader:
        expected = [digest(batch) for batch in [*loader, *loader]]
        assert end == loader.state_dict()
    assert first + second == expected
    assert len(set(expected)) == 10


def test_memory_is_flat_over_fifty_epochs(data) -> None:
    def held() -> int:
        # Not the mapped files: what a process shares of them grows as others end.
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    with Loader(data, res=64, batch_size=8) as loader:
        # Buffers and arenas settle in the first epochs.
        for _ in range(10):
            for _ in loader:
                pass
        gc.collect()
        before = held()
        for _ in range(50):
            for _ in loader:
                pass
        gc.collect()
        grown = held() - before
    # One batch is 1 MB: a leak of one an epoch would be fifty.
    assert grown < 4_000, f"{grown} KB more after 250 batches"


def test_another_number_of_ranks_goes_on_without_loss_or_repeat(data) -> None:
    first = [Loader(data, res=24, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    seen: list[int] = []
    for rank, loader in enumerate(first):
        with loader:
            list(itertools.islice(loader, 3))
            state = loader.state_dict()
            seen += np.concatenate([loader.samples_of(0, step) for step in range(3)]).tolist()
        assert state["consumed"] == 24, rank
    for rank in range(4):
        with Loader(data, res=24, batch_size=2, rank=rank, world_size=4) as loader:
            loader.load_state_dict(state)
            batches = list(loader)
            places = [loader._sampler.samples_of(0, step, consumed=24) for step in range(2)]
            assert len(batches) == 2
            seen += np.concatenate(places).tolist()
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize(
    ("other", "message"),
    [({"train": 41}, "samples"), ({"backgrounds": 2}, "fingerprint"), ({}, None)],
)
def test_the_state_of_other_data_is_refused(data, tmp_path, other, message) -> None:
    with Loader(data, res=24, batch_size=8) as loader:
        state = loader.state_dict()
    with Loader(write_data_set(tmp_path / "data", **other), res=24, batch_size=8) as loader:
        if message is None:
            loader.load_state_dict(state)
        else:
            with pytest.raises(DataError, match=f"of data with {message}"):
                loader.load_state_dict(state)


# Faults


def damage(folder: Path, key: str, role: str, how: bytes) -> None:
    """Overwrite the first bytes of one member in its shard."""
    for path in folder.glob("*.idx"):
        for line in path.read_text().splitlines()[1:]:
            words = line.split()
            for at in range(0, 16, 4):
                if words[at + 3].startswith(f"{key}.{role}."):
                    content = bytearray(path.with_suffix(".tar").read_bytes())
                    offset = int(words[at + 1])
                    content[offset : offset + len(how)] = how
                    path.with_suffix(".tar").write_bytes(content)
                    return
    raise AssertionError(f"no {key}.{role}")


@pytest.mark.parametrize("role", ["fg_bg", "mask", "depth"])
def test_an_image_that_does_not_decode_is_named(tmp_path, role) -> None:
    folder = write_data_set(tmp_path / "data")
    damage(folder, "s00021", role, b"\0" * 24)
    with (
        Loader(folder, res=24, batch_size=8, order="sequential") as loader,
        pytest.raises(DataError, match=rf"train-00001\.tar: s00021: {role} does not decode") as e,
    ):
        batches = iter(loader)
        for _ in range(5):
            next(batches)
    assert "not the one that the manifest describes" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_image_that_fails_ahead_of_its_step_is_named(tmp_path, monkeypatch) -> None:
    """A step decodes while the one before it is fetched, and fails both."""
    folder = write_data_set(tmp_path / "data")
    damage(folder, "s00021", "mask", b"\0" * 24)
    with Loader(folder, res=24, batch_size=8, order="sequential") as loader:
        pipe = loader._producer._pipe
        share = pipe.share_outputs

        def failing() -> Any:
            # The damaged sample is of the third step; the second is asked for.
            if next(asked) == 1:
                raise RuntimeError("Critical error in pipeline:\nencountered:\n\nfailure")
            return share()

        asked = itertools.count()
        monkeypatch.setattr(pipe, "share_outputs", failing)
        batches = iter(loader)
        next(batches)
        with pytest.raises(DataError, match=r"s00021: mask does not decode \(not an image"):
            next(batches)


def test_memory_that_runs_out_in_dali_is_told_as_that(data, monkeypatch) -> None:
    def full() -> None:
        raise RuntimeError("Critical error in pipeline:\nError: CUDA allocation failed\nCurrent")

    with Loader(data, res=24, batch_size=8) as loader:
        monkeypatch.setattr(loader._producer._pipe, "share_outputs", full)
        wanted = r"memory ran out while DALI made a batch at 24 px \(.*\); use a smaller one"
        with pytest.raises(DataError, match=wanted):
            next(iter(loader))


def test_going_on_without_a_sample_is_offered_only_where_its_shard_is_as_built(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data")
    damage(folder, "s00021", "mask", b"\0" * 24)
    manifest = Manifest.load(folder)
    shard = manifest.splits["train"].shards[1]
    for offered in (False, True):
        with (
            Loader(folder, res=24, batch_size=8) as loader,
            pytest.raises(DataError, match="s00021: mask does not decode") as e,
        ):
            list(loader)
        assert ("--exclude s00021" in str(e.value)) == offered
        digest = hashlib.sha256((folder / shard.name).read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(manifest.to_json().replace(shard.sha256, digest))


def test_the_loader_goes_on_without_a_sample_that_is_excluded(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data")
    damage(folder, "s00021", "mask", b"\0" * 24)
    with Loader(folder, res=24, batch_size=8, exclude=["s00021"]) as loader:
        assert loader.samples == 39
        assert sum(len(batch.bg) for batch in loader) == 32
        assert loader.state_dict()["fingerprint"] != Loader(folder).state_dict()["fingerprint"]
    with pytest.raises(ValueError, match="only in training"):
        Loader(folder, split="val", exclude=["s00045"])


def test_an_index_that_lies_is_named_with_the_sample(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data")
    path = folder / "train-00001.idx"
    lines = path.read_text().splitlines()
    # Possible, but not what the tar says.
    words = lines[3].split()
    words[6] = str(int(words[6]) - 10)
    lines[3] = " ".join(words)
    path.write_text("\n".join(lines) + "\n")
    with (
        Loader(folder, res=24, batch_size=8) as loader,
        pytest.raises(DataError, match=r"train-00001\.tar: s00018: the index has s00018\.mask"),
    ):
        list(loader)


def test_an_undecodable_background_is_named_at_once(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data")
    path = folder / "backgrounds.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmember("b1.png").offset_data
        size = tar.getmember("b1.png").size
    content = bytearray(path.read_bytes())
    content[offset : offset + 24] = bytes(24)
    path.write_bytes(content)
    manifest = Manifest.load(folder)
    digest = hashlib.sha256(content[offset : offset + size]).hexdigest()
    text = manifest.to_json().replace(manifest.backgrounds[1].sha256, digest)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="background b1: does not decode"):
        Loader(folder)


def test_a_batch_that_the_split_cannot_fill_is_refused(data) -> None:
    with pytest.raises(DataError, match="40 samples in split 'train'; a step takes 64"):
        Loader(data, batch_size=32, rank=0, world_size=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"res": 0}, {"batch_size": 0}, {"rank": 1}, {"seed": -1}, {"kernel": "other"},
        {"cache": "tape"}, {"kernel": "fused", "device": "cuda"}, {"order": "random"},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(data, wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        next(iter(Loader(data, **{"batch_size": 4, **wrong})))


def test_closing_twice_and_in_mid_epoch_is_fine(data) -> None:
    loader = Loader(data, res=24, batch_size=4)
    next(iter(loader))
    loader.close()
    loader.close()


def test_ctrl_c_ends_at_once_and_leaves_nothing_running(data) -> None:
    # Batches that take a while: Python itself loses one Ctrl-C of some hundred where threads start.
    code = (
        "import sys\n"
        "from shardify.loader.loader import Loader\n"
        f"loader = Loader({str(data)!r}, res=512, batch_size=4)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for batch in loader: pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - started < 20
    assert process.returncode == -signal.SIGINT, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_a_script_that_ends_in_mid_epoch_stops_the_thread_before_dali(data) -> None:
    code = (
        "import threading\n"
        "from shardify.loader.loader import Loader\n"
        "from nvidia.dali.pipeline import Pipeline\n"
        f"loader = Loader({str(data)!r}, res=64, batch_size=1, prefetch=1)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "shutdown = Pipeline._shutdown\n"
        "def told(pipe):\n"
        "    print([t.name for t in threading.enumerate() if t.name == 'shardline-ahead'])\n"
        "    shutdown(pipe)\n"
        "Pipeline._shutdown = told\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.splitlines()) == {"[]"}
