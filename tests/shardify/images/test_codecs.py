"""Every codec gives back what it stored, or says what that cost."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardify.images.codecs import Variant, encode_pixels, encoding_loss, resize
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, pixels
from shardify.images.png import encode_png
from shardify.images.raw_pixels import raw_length, unpack_raw
from shardify.resolution import Resolution

RNG = np.random.Generator(np.random.Philox(key=3))
COLOUR = RNG.integers(0, 256, (13, 17, 3)).astype(np.uint8)
GRAY = COLOUR[..., 0]
WIDE = (GRAY.astype(np.uint16) << 8) | COLOUR[..., 1]
MASK = np.where(GRAY > 99, np.uint8(255), np.uint8(0))
PLANES = [("fg_bg", COLOUR), ("depth", GRAY), ("depth", WIDE), ("mask", MASK)]


@pytest.mark.parametrize(("role", "plane"), PLANES)
@pytest.mark.parametrize("codec", ["png", "raw"])
def test_lossless_codecs_lose_nothing(role: str, plane: np.ndarray, codec: str) -> None:
    data, picture = encode_pixels(plane, role, "jpg", Variant(codec=codec))
    perfect = 1.0 if role == "mask" else 0.0
    assert encoding_loss(plane, data, picture, role) == perfect
    assert (picture.width, picture.height) == (17, 13)
    if codec == "raw":
        assert (unpack_raw(data, picture, role) == plane).all()
        assert picture.bits == (1 if role == "mask" else 8 * plane.itemsize)
    else:
        assert parse(data) == picture
        assert (pixels(data, picture, role, STANDARD) == plane).all()


def test_raw_members_are_planes_without_a_header() -> None:
    data, _ = encode_pixels(COLOUR, "fg_bg", "jpg", Variant(codec="raw"))
    assert data == COLOUR.transpose(2, 0, 1).tobytes()
    data, _ = encode_pixels(WIDE, "depth", "png", Variant(codec="raw"))
    assert data == WIDE.astype("<u2").tobytes()
    data, _ = encode_pixels(MASK, "mask", "png", Variant(codec="raw"))
    assert len(data) == -(-13 * 17 // 8)
    assert data[0] == int("".join("1" if each else "0" for each in MASK.ravel()[:8]), 2)


def test_raw_bytes_of_another_length_are_refused() -> None:
    for role, plane in PLANES:
        data, picture = encode_pixels(plane, role, "png", Variant(codec="raw"))
        assert raw_length(picture, role) == len(data)
        for bad in (data[:-1], data + b"\0"):
            with pytest.raises(ValueError, match=f"17x13 pixels take {len(data)}"):
                unpack_raw(bad, picture, role)


def test_jpeg_costs_something_and_says_how_much() -> None:
    smooth = np.asarray(Image.fromarray(COLOUR).resize((64, 64)))
    data, picture = encode_pixels(smooth, "fg_bg", "png", Variant(codec="jpeg"))
    assert picture.kind == "jpg"
    assert 0 < encoding_loss(smooth, data, picture, "fg_bg") < 0.05
    mask = resize(MASK, "mask", 64)
    data, picture = encode_pixels(mask, "mask", "png", Variant(codec="jpeg"))
    assert 0.9 < encoding_loss(mask, data, picture, "mask") <= 1
    data, picture = encode_pixels(WIDE, "depth", "png", Variant(codec="jpeg"))
    assert (picture.kind, picture.bits) == ("png", 16)


def test_an_empty_mask_kept_empty_costs_nothing() -> None:
    data, picture = encode_pixels(np.zeros_like(MASK), "mask", "png", Variant(codec="png"))
    assert encoding_loss(np.zeros_like(MASK), data, picture, "mask") == 1.0


@pytest.mark.parametrize(
    ("role", "kind", "expected"),
    [("fg_bg", "jpg", "jpg"), ("fg_bg", "png", "png"), ("mask", "jpg", "png"),
     ("depth", "png", "png"), ("bg", "jpg", "jpg")],
)  # fmt: skip
def test_a_new_size_keeps_the_family_but_never_blurs_targets(
    role: str, kind: str, expected: str
) -> None:
    plane = COLOUR if role in ("bg", "fg_bg") else MASK
    _, picture = encode_pixels(resize(plane, role, 8), role, kind, Variant(res=Resolution(8, 8)))
    assert (picture.kind, picture.width, picture.height) == (expected, 8, 8)


@pytest.mark.parametrize(("role", "plane"), PLANES)
def test_a_new_size_keeps_kind_and_mean(role: str, plane: np.ndarray) -> None:
    small = resize(plane, role, 6)
    assert small.dtype == plane.dtype
    assert small.shape == (6, 6, *plane.shape[2:])
    assert resize(small, role, 6) is small
    assert resize(plane, role, None) is plane
    if role == "mask":
        assert set(np.unique(small)) <= {0, 255}
    else:
        assert small.mean() == pytest.approx(plane.mean(), rel=0.1)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["L", "I;16", "RGB"]))
def test_the_png_writer_is_read_back_by_pillow(width: int, height: int, mode: str) -> None:
    plane = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if mode != "RGB":
        plane = plane[..., 0] if mode == "L" else plane[..., 0].astype(np.uint16) * 251
    data = encode_png(plane)
    parse(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        assert (np.asarray(image) == plane).all()


def test_the_png_writer_refuses_what_it_cannot_say() -> None:
    for bad in (np.zeros((3, 3)), np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 3), np.uint16)):
        with pytest.raises(ValueError, match="expected"):
            encode_png(bad)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_pixels_without_a_value_do_not_bleed_when_depth_is_resized(
    dtype: type, factor: int
) -> None:
    """A hole where holes have half of the weight; elsewhere the average of the valid pixels."""
    side = 96
    y, x = np.mgrid[:side, :side]
    top = np.iinfo(dtype).max
    plane = (top * (0.5 + 0.4 * np.sin(x / 30) * np.cos(y / 40))).astype(dtype)
    holes = plane.copy()
    holes[20:52, 30:70] = 0
    holes[RNG.random(plane.shape) < 0.1] = 0
    res = side // factor
    found, whole = resize(holes, "depth", res, 0), resize(plane, "depth", res)

    centres = (np.arange(res) + 0.5) * factor
    rows = (1 - np.abs(np.arange(side) + 0.5 - centres[:, None]) / factor).clip(0)
    rows /= rows.sum(1, keepdims=True)
    weight = rows @ (holes > 0) @ rows.T
    expected = rows @ holes.astype(float) @ rows.T / np.maximum(weight, 1e-9)
    clear = np.abs(weight - 0.5) > 1e-4  # There, rounding may decide.
    assert ((found > 0) == (weight > 0.5))[clear].all()
    both = (found > 0) & clear
    assert np.abs(found[both] - expected[both]).max() <= 0.51 + top / 2**22
    # A bled hole would be hundreds of levels too near.
    assert np.abs(found[both].astype(float) - whole[both]).max() < 0.03 * top
    assert (found == 0).any()


def test_a_mean_never_becomes_the_value_of_a_hole() -> None:
    plane = np.where(np.indices((8, 8)).sum(0) % 2, 126, 128).astype(np.uint8)
    assert (resize(plane, "depth", 2) == 127).all()
    assert (resize(plane, "depth", 2, 127) == 126).all()


def test_jpeg_keeps_depth_with_holes_exact() -> None:
    holes = np.where(GRAY > 100, GRAY, 0).astype(np.uint8)
    data, picture = encode_pixels(holes, "depth", "jpg", Variant(codec="jpeg"), 0)
    assert picture.kind == "png"
    assert (pixels(data, picture, "depth", STANDARD) == holes).all()
