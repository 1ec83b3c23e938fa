"""The loader on a GPU. Each check is one function of the device, so that a CPU runs it too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shardline_gpu import (
    SIZES,
    batches,
    copies,
    count_decoders,
    decoders,
    growth,
    levels,
    noisy,
    progressive,
    resumed,
    same,
)
from shardline_samples import write_data_set

from shardify.loader.loader import Loader

ON_BOTH = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]
SAMPLES = 64

HARDWARE = "nvjpeg_hw_decoder"
"""What nvImageCodec calls the JPEG engine."""


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    """PNGs: every decoder gives the same pixels."""
    out = tmp_path_factory.mktemp("exact") / "data"
    return write_data_set(out, train=SAMPLES, images=noisy, background=lambda n: noisy(900 + n)[0])


@pytest.fixture(scope="module")
def lossy(tmp_path_factory) -> Path:
    """Baseline JPEGs, and PNGs for the depth: as the data set has them."""
    out = tmp_path_factory.mktemp("lossy") / "data"
    return write_data_set(
        out, train=SAMPLES, images=noisy, picture="JPEG", background=lambda n: noisy(900 + n)[0]
    )


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Path:
    """No files at all: nothing is decoded, so that a loader starts at once."""
    out = tmp_path_factory.mktemp("pixels") / "data"
    return write_data_set(
        out, train=SAMPLES, images=noisy, picture="RAW", background=lambda n: noisy(900 + n)[0]
    )


# The same batches as on a CPU


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_operators_give_what_the_fused_kernel_gives(exact, split, device) -> None:
    options = {"split": split, "augment": split == "train"}
    expected = batches(exact, "cpu", **options)
    found = batches(exact, device, kernel="dali", **options)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        # The reduction of larger images rounds to levels here, and not there.
        for found_levels in (levels(one.bg, other.bg, 0.21), levels(one.fg_bg, other.fg_bg, 0.22)):
            assert found_levels.max() < 2.5
            assert found_levels.mean() < 0.5
        assert (one.depth - other.depth).abs().max() < 3e-3
        assert (one.mask != other.mask).float().mean() < 2e-3


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("res", [64, 100])
def test_holes_of_depth_are_those_of_the_fused_kernel(tmp_path, res, device) -> None:
    def images(number: int):
        fg_bg, mask, depth = noisy(number)
        holes = np.random.default_rng(number).random((15, 15)) < 0.3
        depth = depth.astype(np.uint16) * 257
        depth[holes.repeat(8, 0).repeat(8, 1)] = 0
        return fg_bg, mask, depth

    data = write_data_set(tmp_path / "data", train=16, images=images, invalid=0)
    expected = batches(data, "cpu", res=res)
    found = batches(data, device, kernel="dali", res=res)
    for one, other in zip(found, expected, strict=True):
        valid, wanted = (batch.valid["depth"] > 0 for batch in (one, other))
        assert (valid != wanted).float().mean() < 2e-3
        assert 0.5 < valid.float().mean() < 0.9
        assert (one.depth - other.depth)[valid & wanted].abs().max() < 6e-3
        assert not one.depth[~valid].any()


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("load", [0.0, 1.0])
def test_jpegs_decode_alike_whoever_decodes_them(lossy, load, device) -> None:
    expected = batches(lossy, "cpu")
    found = batches(lossy, device, kernel="dali", hw_decoder_load=load)
    for one, other in zip(found, expected, strict=True):
        # Decoders differ by a level or two, at edges of colour by more: the CPU's smooths what
        # the camera stored at half the resolution, a GPU's repeats it.
        apart = levels(one.fg_bg, other.fg_bg, 0.22)
        assert apart.mean() < 2
        assert apart.flatten().kthvalue(int(0.99 * apart.numel())).values < 16
        # Backgrounds are decoded once, on the CPU, for both.
        assert levels(one.bg, other.bg, 0.21).max() < 0.5
        assert (one.depth - other.depth).abs().max() < 3e-3
        assert (one.mask != other.mask).float().mean() < 0.01


# Who decodes


@pytest.mark.gpu
def test_the_jpeg_engine_decodes_baseline_jpegs_as_far_as_it_is_asked_to(lossy) -> None:
    (without, idle), (counted, busy) = decoders(lossy, "cuda", [0.0, 1.0])
    if idle is None or busy is None:
        pytest.skip("the driver counts nothing of a JPEG engine: T4 and P100 have none")
    found = {"asked for none": (without, idle), "asked for all": (counted, busy)}
    assert idle == 0, found
    assert without.get(HARDWARE, 0) == 0, found
    # fg_bg and mask of every sample are baseline JPEGs; the depth is a PNG.
    assert busy > 0 or counted.get(HARDWARE, 0) >= 2 * SAMPLES, found
    assert counted.get("libjpeg_turbo_decoder", 0) == 0, found


def test_the_count_of_decoders_is_right_where_it_is_known(lossy) -> None:
    ((found, busy),) = decoders(lossy, "cpu", [1.0])
    # Up to two steps more than an epoch has are decoded ahead and dropped.
    ahead = 2 * SIZES["batch_size"]
    assert 2 * SAMPLES <= found["libjpeg_turbo_decoder"] <= 2 * (SAMPLES + ahead), found
    assert sum(found.values()) <= 3 * (SAMPLES + ahead)
    assert HARDWARE not in found
    assert busy is None or busy >= 0


def test_a_decoder_is_counted_by_image_and_by_batch() -> None:
    log = "[INFO] 0: nvjpeg_hw_decoder decodeBatch num_samples=8\n 0: opencv_png_decoder process #3"
    assert count_decoders(log) == {"nvjpeg_hw_decoder": 8, "opencv_png_decoder": 1}


@pytest.mark.parametrize("device", ON_BOTH)
def test_progressive_jpegs_decode_as_well(lossy, tmp_path, device) -> None:
    other = progressive(lossy, tmp_path / "progressive")
    expected = batches(lossy, device, kernel="dali", hw_decoder_load=1.0)
    found = batches(other, device, kernel="dali", hw_decoder_load=1.0)
    assert len(found) == len(expected) > 0
    for one, two in zip(found, expected, strict=True):
        # Written twice: a second loss of a JPEG's.
        assert levels(one.fg_bg, two.fg_bg, 0.22).mean() < 4
        assert (one.mask != two.mask).float().mean() < 0.02
        assert torch.equal(one.depth, two.depth)


# State


@pytest.mark.parametrize("device", ON_BOTH)
def test_a_loader_goes_on_exactly_where_another_was(lossy, device) -> None:
    places = [0, 3, 7]
    for at, (rest, again) in zip(places, resumed(lossy, device, places), strict=True):
        assert len(rest) == len(again) == 16 - at
        assert all(same(*pair) for pair in zip(rest, again, strict=True)), at


@pytest.mark.parametrize("device", ON_BOTH)
def test_two_runs_give_the_same_batches(lossy, device) -> None:
    first, second = (batches(lossy, device, epochs=2) for _ in range(2))
    assert len(first) == 16
    assert all(same(*pair) for pair in zip(first, second, strict=True))
    assert not same(first[0], first[8])


# Where the batches are, and in which form


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_come_in_the_form_that_was_asked_for(pixels, device, dtype, channels_last) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    plain = batches(pixels, device)
    with Loader(pixels, device=device, dtype=dtype, channels_last=channels_last, **SIZES) as loader:
        for batch, expected in zip(loader, plain, strict=True):
            for tensor, wanted in zip(batch, expected, strict=True):
                assert tensor.dtype == dtype
                assert tensor.device.type == device
                assert tensor.is_contiguous(memory_format=layout)
                # bfloat16 keeps 8 bits: a 256th of a value of up to 4 deviations.
                assert (tensor.float().cpu() - wanted).abs().max() < 0.03


@pytest.mark.parametrize("device", ON_BOTH)
def test_batches_are_the_takers_own_and_stay_as_they_are(pixels, device) -> None:
    with Loader(pixels, device=device, **SIZES) as loader:
        kept = list(loader)
        held = [[tensor.clone() for tensor in batch] for batch in kept]
        for batch in loader:
            del batch
    assert len({tensor.data_ptr() for batch in kept for tensor in batch}) == 4 * len(kept)
    for batch, copy in zip(kept, held, strict=True):
        assert all(torch.equal(*pair) for pair in zip(batch, copy, strict=True))


@pytest.mark.parametrize("device", ON_BOTH)
def test_no_batch_passes_through_the_host(exact, device) -> None:
    res, batch, steps = 512, 16, 3
    found = copies(exact, device, steps, res=res, batch_size=batch)
    picture = batch * 3 * res * res * 4
    if device == "cpu":
        assert found == {"HtoD": [], "DtoH": []}
        return
    assert found["HtoD"], "the profiler saw no copy at all: even encoded images must travel"
    # Encoded images, and decoded ones of 120 x 120, travel to the device; batches are larger.
    assert max(found["HtoD"]) < picture / 4
    assert sum(found["HtoD"]) < (steps + 4) * picture / 4
    assert max(found["DtoH"], default=0) < 4096


@pytest.mark.parametrize(
    ("device", "steps"),
    [("cpu", 300), pytest.param("cuda", 2000, marks=pytest.mark.gpu)],
    ids=["cpu", "cuda"],
)
def test_memory_stays_flat(lossy, device, steps) -> None:
    grown = growth(lossy, device, steps)
    # 64 samples of 64 x 64 are 16 MB: a leak of one tensor a batch would be several GB.
    assert grown["host"] < 60, grown
    assert grown.get("gpu", 0) < 60, grown
