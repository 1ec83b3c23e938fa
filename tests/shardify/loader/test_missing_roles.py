"""A data set may lack masks, depth or backgrounds: the rest is loaded as ever, these are zero."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shardline_samples import Images, scene, write_data_set

from shardify import cli
from shardify.dataset.manifest import Manifest
from shardify.errors import DataError
from shardify.loader.batch import CHANNELS, ROLES, Batch
from shardify.loader.loader import Loader

SIZES = {"res": 32, "batch_size": 8}
LACKS = [("mask",), ("depth",), ("bg",), ("bg", "mask"), ("bg", "depth"), ("bg", "mask", "depth")]


def odd(number: int) -> Images:
    """No two roles of one size."""
    fg_bg, mask, depth = scene(number, size=37, depth_size=29)
    return fg_bg, mask, depth.astype(np.uint16) * 251


@pytest.fixture(scope="module", params=["PNG", "RAW"])
def codec(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, codec) -> Path:
    return written(tmp_path_factory.mktemp("whole") / "data", codec)


def written(out: Path, codec: str, lacks: tuple[str, ...] = ()) -> Path:
    return write_data_set(
        out,
        train=20,
        images=odd,
        background=lambda index: scene(50 + index, size=37)[0],
        picture=codec,
        lacks=lacks,
    )


def collect(folder: Path, **settings) -> list[Batch]:
    with Loader(folder, **{**SIZES, **settings}) as loader:
        return list(loader)


@pytest.mark.parametrize("lacks", LACKS, ids="-".join)
def test_what_is_there_is_loaded_as_ever_and_the_rest_is_zero(
    whole, codec, tmp_path, lacks
) -> None:
    folder = written(tmp_path / "less", codec, lacks)
    for kernel in ("fused", "dali"):
        for split, augment in (("train", True), ("val", False)):
            settings = {"split": split, "augment": augment, "kernel": kernel}
            expected, found = collect(whole, **settings), collect(folder, **settings)
            assert len(expected) == len(found) == 2
            for full, less in zip(expected, found, strict=True):
                for role, one, two in zip(ROLES, full, less, strict=True):
                    wanted = torch.zeros_like(one) if role in lacks else one
                    assert torch.equal(two, wanted), (kernel, split, role)


def test_a_loader_says_which_roles_there_are(tmp_path) -> None:
    for lacks in ((), *LACKS):
        folder = write_data_set(tmp_path / "-".join(("lacks", *lacks)), val=0, lacks=lacks)
        with Loader(folder, **SIZES) as loader:
            assert loader.roles == frozenset(ROLES) - frozenset(lacks)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", ["fused", "dali"])
def test_zeros_have_the_dtype_and_layout_that_were_asked_for(
    tmp_path, kernel, channels_last
) -> None:
    folder = write_data_set(tmp_path / "data", lacks=("bg", "mask"))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    settings = {"dtype": torch.bfloat16, "channels_last": channels_last, "kernel": kernel}
    train = collect(folder, **settings)
    short = collect(folder, split="val", augment=False, rank=1, world_size=2, **settings)
    assert [len(batch.bg) for batch in short] == [5]
    for batch in (*train, *short):
        for role, tensor in zip(ROLES, batch, strict=True):
            assert tensor.shape == (len(batch.fg_bg), CHANNELS[role], 32, 32)
            assert tensor.dtype == torch.bfloat16
            assert tensor.is_contiguous(memory_format=layout)
            assert bool(tensor.any()) == (role in ("fg_bg", "depth"))


def test_zeros_are_the_takers_own(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data", lacks=("mask",))
    for number, batch in enumerate(collect(folder)):
        assert not batch.mask.any(), number
        batch.mask.fill_(1)


def test_without_composite_images_there_is_nothing_to_load(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data", lacks=("fg_bg",))
    with pytest.raises(DataError, match=r"data: the data set has no fg_bg, only bg, mask, depth; "):
        Loader(folder)


def test_an_index_with_a_role_that_the_manifest_lacks_is_named(tmp_path) -> None:
    folder = write_data_set(tmp_path / "data")
    manifest = Manifest.load(folder)
    del manifest.roles["depth"]
    manifest.save(folder)
    with pytest.raises(DataError, match=r"train-00000\.idx: 256 words; expected 12 for each of 16"):
        Loader(folder)


@pytest.mark.parametrize("roles", [("fg_bg", "depth"), ("fg_bg", "mask"), ("bg", "fg_bg", "mask")])
@pytest.mark.parametrize("codec", ["keep", "raw"])
def test_what_was_built_without_a_role_is_loaded_without_it(tmp_path, roles, codec) -> None:
    source, out = tmp_path / "source.zip", tmp_path / "out"
    write_zip(source, roles)
    sizes = ["--res", "32"] if codec == "raw" else []
    cli.main(["build", str(source), str(out), "--val", "0.3", "--codec", codec, *sizes])
    samples = 0
    for split in ("train", "val"):
        augment = split == "train"
        with Loader(out, split=split, res=32, batch_size=2, augment=augment) as loader:
            assert loader.roles == set(roles)
            for batch in loader:
                samples += len(batch.fg_bg)
                for role, tensor in zip(ROLES, batch, strict=True):
                    assert bool(tensor.any()) == (role in roles), role
    assert samples >= 11


def write_zip(path: Path, roles: tuple[str, ...], samples: int = 12, backgrounds: int = 3) -> None:
    """A source in which each role has a folder."""
    with zipfile.ZipFile(path, "w") as bundle:

        def put(name: str, image: np.ndarray, kind: str) -> None:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, kind)
            bundle.writestr(name, stream.getvalue())

        for number in range(backgrounds if "bg" in roles else 0):
            put(f"bg/bg_{number:03d}.jpg", scene(number, size=48)[0], "JPEG")
        for number in range(samples):
            key = f"fg_{number:03d}_bg_{number % backgrounds:03d}_{number:06d}"
            fg_bg, mask, depth = scene(number)
            put(f"fg_bg/{key}.jpg", fg_bg, "JPEG")
            if "mask" in roles:
                put(f"mask/{key}.jpg", mask, "JPEG")
            if "depth" in roles:
                put(f"depth/{key}.png", depth, "PNG")
