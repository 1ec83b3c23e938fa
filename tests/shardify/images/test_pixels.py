"""Pictures of every kind become pixels of one meaning, or are refused by name."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardify.errors import ImageError
from shardify.images.channel_stats import channel_stats, fast_stats
from shardify.images.depth import DepthEncoding
from shardify.images.parser import MASK_THRESHOLD, ImageInfo, parse
from shardify.images.pixels import (
    STANDARD,
    STORED,
    LabelEncoding,
    normalize,
    pixels,
)

NOISE = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def saved(image: "Image.Image | np.ndarray", kind: str = "PNG", **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def settled(
    data: bytes, role: str, meaning: LabelEncoding = STANDARD
) -> tuple[np.ndarray, ImageInfo, str]:
    stored, picture, rule, plane, _ = normalize(data, parse(data), role, meaning)
    again = parse(stored)
    assert again._replace(trait="") == picture._replace(trait="")
    found = pixels(stored, again, role, STANDARD)
    assert plane is None or (plane == found).all()
    return found, picture, rule


@pytest.mark.parametrize(
    ("data", "role"),
    [
        (saved(NOISE, "JPEG"), "fg_bg"),
        (saved(NOISE, "JPEG", progressive=True), "bg"),
        (saved(NOISE[..., 0], "JPEG"), "fg_bg"),
        (saved(NOISE), "fg_bg"),
        (saved(NOISE[..., 0]), "depth"),
        (saved(NOISE[..., 0].astype(np.uint16) * 257), "depth"),
        (saved(NOISE[..., 0], "JPEG"), "mask"),
        (saved(NOISE[..., 0], "JPEG") + b"trailing", "depth"),
    ],
)
def test_what_is_plain_is_kept_byte_for_byte(data: bytes, role: str) -> None:
    stored, picture, rule, plane, _ = normalize(data, parse(data), role, STANDARD)
    assert plane is None
    assert stored is data
    assert picture == parse(data)
    assert rule == ""


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_become_png_with_the_same_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(NOISE, kind, **options)
    found, picture, rule = settled(data, "fg_bg")
    with Image.open(io.BytesIO(data)) as image:
        assert (found == np.asarray(image.convert("RGB"))).all()
    assert picture.kind == "png"
    assert rule.startswith("fg_bg: ")
    assert rule.endswith(" to PNG")


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_palettes_alpha_and_bits_become_plain_colour(mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    found, picture, rule = settled(saved(image), "fg_bg")
    assert (found == np.asarray(image.convert("RGB"))).all()
    assert (picture.kind, picture.channels, picture.bits) == ("png", 3, 8)
    assert rule


def test_cmyk_becomes_rgb() -> None:
    found, picture, rule = settled(saved(Image.fromarray(NOISE).convert("CMYK"), "JPEG"), "fg_bg")
    assert found.shape == (12, 16, 3)
    assert (picture.channels, rule) == (3, "fg_bg: CMYK JPG to PNG")


def test_a_turned_jpeg_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[None], 8, axis=0)
    found, picture, rule = settled(saved(ramp, "JPEG", exif=exif.tobytes()), "fg_bg")
    assert (picture.width, picture.height) == (8, 16)
    assert found[0].mean() < 30 < 220 < found[-1].mean()
    assert rule == "fg_bg: rotated JPG to PNG"


def test_16_bit_depth_keeps_every_bit() -> None:
    wide = (NOISE[..., 0].astype(np.uint16) << 8) | NOISE[..., 1]
    for data in (saved(wide), saved(wide, "TIFF"), npy(wide), npy(wide.astype(np.int64))):
        found, picture, _ = settled(data, "depth")
        assert (found == wide).all()
        assert picture.bits == 16


def test_floating_depth_is_stored_in_stated_steps() -> None:
    metres = NOISE[..., 0].astype(np.float32) / 2
    metres[0, 0], metres[0, 1] = np.nan, -1
    found, _, rule = settled(npy(metres), "depth")
    assert found[0, :2].tolist() == [0, 0]
    assert (found[1:] == metres[1:] * 256).all()
    assert rule == "depth: float32 NPY (1 is 256 of 65535) to PNG"
    with pytest.raises(ImageError, match=r"at most 256 can be stored.*scale = 10 "):
        settled(npy(metres * 10), "depth")
    share = metres[1:] / 255
    encoding = LabelEncoding(depth=DepthEncoding(source="floating-point", scale=65535))
    found, _, _ = settled(npy(share), "depth", encoding)
    assert np.abs(found / 65535 - share).max() < 1e-5


def test_gray_depth_saved_in_colour_is_taken_and_a_colour_map_refused() -> None:
    gray = np.repeat(NOISE[..., :1], 3, axis=2)
    found, picture, _ = settled(saved(gray), "depth")
    assert (found == gray[..., 0]).all()
    assert picture.channels == 1
    with pytest.raises(ImageError, match="in colours"):
        settled(saved(NOISE), "depth")


@pytest.mark.parametrize(
    ("plane", "meaning"),
    [
        (np.array([[0, 1], [1, 0]], np.uint8), LabelEncoding("level 1")),
        (np.array([[0, 255], [255, 0]], np.uint8), STANDARD),
    ],
)
def test_masks_become_0_and_255(plane: np.ndarray, meaning: LabelEncoding) -> None:
    for data in (saved(plane), npy(plane), saved(plane, "TIFF")):
        found, _, rule = settled(data, "mask", meaning)
        assert found.tolist() == [[0, 255], [255, 0]]
        assert bool(rule) == (meaning != STANDARD or data[1:4] != b"PNG")


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA")])
@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_of_one_colour_has_its_object_in_alpha(kind: str, mode: str, colour: int) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    plane = np.zeros((8, 8), np.uint8)
    image = Image.new("L", (8, 8), colour).convert(mode)
    image.putalpha(Image.fromarray(plane))
    assert not settled(saved(image, kind, **options), "mask")[0].any()
    plane[:3] = 255
    image.putalpha(Image.fromarray(plane))
    found, _, rule = settled(saved(image, kind, **options), "mask")
    assert (found == plane).all()
    assert "(object by its alpha)" in rule


def test_a_mask_whose_gray_tells_or_that_is_opaque_is_read_as_gray() -> None:
    gray = np.array([[0, 255]], np.uint8)
    for plane in (gray, np.zeros_like(gray)):
        image = Image.fromarray(plane).convert("RGBA")
        found, _, rule = settled(saved(image), "mask")
        assert (found == plane).all()
        assert "by its alpha" not in rule


def test_gif_masks_are_read_by_their_palette() -> None:
    plane = np.array([[0, 255], [255, 0]], np.uint8)
    found, _, rule = settled(saved(plane, "GIF"), "mask")
    assert found.tolist() == plane.tolist()
    assert "GIF" in rule


@pytest.mark.parametrize(
    ("array", "role"),
    [(np.zeros((4, 4), np.uint8), "fg_bg"), (np.zeros((4, 4, 3), np.uint8), "mask"),
     (np.zeros((4, 4, 3)), "fg_bg")],
)  # fmt: skip
def test_arrays_that_do_not_fit_their_role_are_refused(array: np.ndarray, role: str) -> None:
    with pytest.raises(ImageError, match="which is no"):
        settled(npy(array), role)


def test_damaged_pixels_are_an_image_error() -> None:
    data = bytearray(saved(NOISE))
    place = data.find(b"IDAT") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="cannot be decoded"):
        pixels(bytes(data), ImageInfo("png", 16, 12, 3, 8), "fg_bg", STANDARD)


def test_moments_are_those_of_the_pixels() -> None:
    mean, std = channel_stats(NOISE)
    assert mean == pytest.approx((NOISE / 255).mean((0, 1)).tolist())
    assert std == pytest.approx((NOISE / 255).std((0, 1)).tolist())
    wide = NOISE[..., 0].astype(np.uint16) * 257
    mean, std = channel_stats(wide)
    assert mean == pytest.approx([(wide / 65535).mean()])
    assert std == pytest.approx([(wide / 65535).std()])
    mask = pixels(saved(NOISE[..., 0]), ImageInfo("png", 16, 12, 1, 8), "mask", STORED)
    assert channel_stats(mask)[0] == pytest.approx([(NOISE[..., 0] >= MASK_THRESHOLD).mean()])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("role", "mode"), [("fg_bg", "RGB"), ("mask", "RGB"), ("mask", "L"),
                                            ("depth", "L"), ("fg_bg", "L")])  # fmt: skip
def test_a_gauged_picture_has_the_moments_of_its_pixels(kind: str, role: str, mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(buffer, kind)
    data = buffer.getvalue()
    found = parse(data)
    assert fast_stats(data, found, role, STORED) == channel_stats(pixels(data, found, role, STORED))
    with pytest.raises(ImageError, match=r"cannot be decoded|ends early|end early"):
        fast_stats(data[:60], found, role, STORED)
